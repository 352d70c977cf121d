"""The gRPC contract: adamd.proto and what protoc makes of it."""
