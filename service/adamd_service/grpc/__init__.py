"""The gRPC API: it decodes, calls the engine and encodes, as HTTP does. It has no rules of its own."""
