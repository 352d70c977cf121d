"""Transports send operations over HTTP or gRPC. They block, and another thread can cancel them."""
