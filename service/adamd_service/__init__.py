"""The adamd server."""
