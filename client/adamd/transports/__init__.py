"""How operations reach a server: HTTP or gRPC, both blocking, both to be ended from another thread."""
