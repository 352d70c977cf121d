"""gRPC: decode, call the engine, encode, as HTTP does. Every rule stands elsewhere."""
