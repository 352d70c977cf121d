"""Opens the ports that a server listens on, and explains why one cannot be opened."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

BACKLOG = 1024
OTHERS = {
    "HTTP": "another --port (0 takes a free one)",
    "gRPC": "another --grpc-port (0 takes a free one, off serves HTTP alone)",
}


def check(host: str, http: int, grpc: int | None) -> None:
    """Check that both ports can be opened, before anything is loaded. They are held together, so they must differ.

    Raises:
        SystemExit: one cannot.

    """
    with ExitStack() as sockets:
        sockets.enter_context(listen(host, http, "HTTP"))
        if grpc is not None:
            sockets.enter_context(listen(host, grpc, "gRPC"))


def listen(host: str, port: int, protocol: str) -> socket.socket:
    """Return a listening socket. Only bound, two sockets could share a port, and the later one would fail silently.

    Raises:
        SystemExit: it cannot; in words for a person.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise refusal(host, port, protocol, error) from None
    return listening


def refusal(host: str, port: int, protocol: str, error: OSError) -> SystemExit:
    """Return an exit that says which port cannot be opened, why, and which option helps."""
    why, advice = error.strerror or str(error), f"choose {OTHERS[protocol]}"
    if error.errno == errno.EADDRINUSE:
        why, advice = "the port is taken", f"{advice}, or end the program that listens there"
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        why, advice = f"{host} is no address of this machine", "choose another --host"
    return SystemExit(f"adamd: cannot listen on {host} port {port} for {protocol}: {why}; {advice}")
