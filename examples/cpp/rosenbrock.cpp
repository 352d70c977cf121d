// Rosenbrock's valley from C++ over gRPC, in float64: ten unary steps, then ten on one stream.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "calls.hpp"

static Vector gradient(const Vector& p) {
  const double x = p[0], y = p[1], t = y - x * x;
  return {(-2 * (1 - x)) - ((400 * x) * t), 200 * t};
}

static void print(const v1::Standing& standing, const Vector& p) {
  std::printf("%llu %.17g %.17g\n", static_cast<unsigned long long>(standing.step()), p[0], p[1]);
}

static v1::Session create(v1::OptimizerService::Stub& adamd, const Vector& start) {
  v1::CreateSessionRequest request;
  auto& settings = *request.mutable_optimizer()->mutable_fields();
  settings["name"].set_string_value("adam");
  settings["lr"].set_number_value(0.05);
  auto* tensor = request.mutable_layout()->add_tensors();
  tensor->set_name("parameters");
  tensor->add_shape(2);
  request.mutable_layout()->set_vector(true);
  request.set_dtype(v1::DTYPE_FLOAT64);
  request.set_parameters(encode(start));
  std::random_device chance;
  request.set_idempotency_key("cpp-" + std::to_string(chance()) + "-" + std::to_string(chance()));
  v1::CreateSessionResponse answer;
  grpc::ClientContext context;
  deadline(context);
  check(adamd.CreateSession(&context, request, &answer));
  return answer.session();
}

int main(int count, char** arguments) try {
  const char* given = count > 1 ? arguments[1] : std::getenv("ADAMD_URL");
  const auto adamd = v1::OptimizerService::NewStub(connect(given ? given : "127.0.0.1:50051"));
  Vector p{-1.2, 1.0};
  const v1::Session session = create(*adamd, p);
  std::string chain = session.chain();

  for (int step = 1; step <= 10; ++step) {
    v1::StepRequest request;
    request.mutable_header()->set_session(session.id());
    request.mutable_header()->set_step(step);
    request.mutable_header()->set_if_match(chain);  // the history that this step builds on
    request.set_gradient(encode(gradient(p)));
    v1::StepResponse answer;
    grpc::ClientContext context;
    deadline(context);
    check(adamd->Step(&context, request, &answer));
    chain = answer.standing().chain();
    p = decode(answer.parameters());
    print(answer.standing(), p);
  }

  grpc::ClientContext context;
  deadline(context);
  const auto stream = adamd->StepStream(&context);
  for (int step = 11; step <= 20; ++step) {
    // A larger body comes in pieces of about 1 MiB: the first with the header, each with its offset.
    v1::StepStreamRequest piece;
    piece.set_data(encode(gradient(p)));
    piece.mutable_header()->set_session(session.id());
    piece.mutable_header()->set_step(step);
    piece.mutable_header()->set_if_match(chain);
    piece.mutable_header()->set_nbytes(piece.data().size());
    if (!stream->Write(piece)) break;  // the stream has ended; Finish says why
    v1::StepStreamResponse answer;
    v1::Standing standing;
    std::string bytes;
    do {
      if (!stream->Read(&answer)) {
        check(stream->Finish());  // says why
        throw std::runtime_error("the stream ended early");
      }
      if (answer.has_standing()) standing = answer.standing();
      bytes += answer.data();
    } while (bytes.size() < standing.nbytes());
    chain = standing.chain();
    p = decode(bytes);
    print(standing, p);
  }
  stream->WritesDone();
  check(stream->Finish());

  grpc::ClientContext last;
  deadline(last);
  v1::DeleteSessionRequest request;
  request.set_session(session.id());
  v1::DeleteSessionResponse answer;
  check(adamd->DeleteSession(&last, request, &answer));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
