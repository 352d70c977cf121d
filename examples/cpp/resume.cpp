// A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
//
// examples/cpp/resume 127.0.0.1:50051 run-7
#include <cstdio>
#include <random>
#include <thread>

#include "calls.hpp"

static double loss_and_gradient(const Vector& p, Vector& gradient) {
  const double x = p[0], y = p[1], a = 1 - x, t = y - x * x;
  gradient = {-2 * a - (400 * x) * t, 200 * t};
  return a * a + 100 * (t * t);
}

// One call. What got no answer, or shall come again, is sent again for a minute: a step has a number, the creation a key.
template <class Call>
static grpc::Status answered(Call call) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (;;) {
    grpc::ClientContext context;
    deadline(context);
    context.set_wait_for_ready(true);  // gRPC itself waits for a server that starts again
    const grpc::Status status = call(&context);
    const auto code = status.error_code();
    const bool again = code == grpc::UNAVAILABLE || code == grpc::DEADLINE_EXCEEDED || code == grpc::RESOURCE_EXHAUSTED;
    if (!again || std::chrono::steady_clock::now() > until) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

static void begin(v1::OptimizerService::Stub& adamd, const std::string& name) {
  v1::CreateSessionRequest request;
  request.set_name(name);
  auto& settings = *request.mutable_optimizer()->mutable_fields();
  settings["name"].set_string_value("adam");
  settings["lr"].set_number_value(0.3);
  auto& stop = *settings["stop"].mutable_struct_value()->mutable_fields();
  stop["target_loss"].set_number_value(0.1);
  stop["max_steps"].set_number_value(1000);
  auto* tensor = request.mutable_layout()->add_tensors();
  tensor->set_name("parameters");
  tensor->add_shape(2);
  request.mutable_layout()->set_vector(true);
  request.set_dtype(v1::DTYPE_FLOAT64);
  request.set_parameters(encode({-1.2, 1.0}));
  std::random_device chance;
  request.set_idempotency_key(name + "-" + std::to_string(chance()) + "-" + std::to_string(chance()));
  v1::CreateSessionResponse answer;
  const auto status = answered([&](auto* context) { return adamd.CreateSession(context, request, &answer); });
  if (status.error_code() != grpc::ALREADY_EXISTS) check(status);  // it exists: this run has begun already
}

static v1::Standing standing(v1::OptimizerService::Stub& adamd, const std::string& name, Vector& p) {
  v1::GetParametersRequest request;
  request.set_session(name);
  v1::GetParametersResponse piece;  // two numbers come in one
  check(answered([&](auto* context) {
    const auto pieces = adamd.GetParameters(context, request);
    v1::GetParametersResponse next;
    while (pieces->Read(&next)) piece = next;
    return pieces->Finish();
  }));
  p = decode(piece.data());
  return piece.standing();
}

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: resume HOST:PORT NAME");
  const auto adamd = v1::OptimizerService::NewStub(connect(arguments[1]));
  const std::string name = arguments[2];
  begin(*adamd, name);
  Vector p{}, gradient{};
  v1::Standing now = standing(*adamd, name, p);
  while (now.stop().empty()) {
    const double loss = loss_and_gradient(p, gradient);
    v1::StepRequest request;
    request.mutable_header()->set_session(name);
    request.mutable_header()->set_step(now.step() + 1);
    request.mutable_header()->set_if_match(now.chain());  // the history that this step builds on
    (*request.mutable_header()->mutable_metrics())["loss"] = loss;
    request.set_gradient(encode(gradient));
    v1::StepResponse answer;
    check(answered([&](auto* context) { return adamd->Step(context, request, &answer); }));
    now = answer.standing();
    p = decode(answer.parameters());
    std::printf("%llu %.17g %.17g %.17g\n", static_cast<unsigned long long>(now.step()), loss, p[0], p[1]);
    std::fflush(stdout);
  }
  std::printf("stop %s\n", now.stop().c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
