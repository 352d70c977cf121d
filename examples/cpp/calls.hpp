// What every program around adamd's gRPC needs: bytes, a channel, deadlines, errors.
#pragma once
#include <grpcpp/grpcpp.h>

#include <array>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "adamd.grpc.pb.h"

namespace v1 = adamd::v1;
using Vector = std::array<double, 2>;

// The wire is little-endian, as nearly every machine is; another would turn each number here.
inline std::string encode(const Vector& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), sizeof values);
}

inline Vector decode(const std::string& bytes) {
  Vector values{};
  if (bytes.size() != sizeof values) throw std::runtime_error("an answer of another length");
  std::memcpy(values.data(), bytes.data(), sizeof values);
  return values;
}

inline void check(const grpc::Status& status) {
  // status.error_details() is a google.rpc.Status with the stable code (ErrorInfo.reason).
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

inline std::shared_ptr<grpc::Channel> connect(std::string address) {
  if (const std::string scheme = "grpc://"; address.rfind(scheme, 0) == 0) address.erase(0, scheme.size());
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize((4 << 20) + (256 << 10));  // 4 MiB of parameters; gRPC's own bound is 4 MiB in all
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);  // a server that starts again is found within a second
  // UNAVAILABLE is sent again by gRPC itself: safe, because a step has a number and the creation a key.
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{"name": [{"service": "adamd.v1.OptimizerService"}],
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"]}}]})");
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

inline void deadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}
