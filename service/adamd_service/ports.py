"""Where a server listens. A port that cannot be had is told by its option, before anything is loaded or started."""

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
    """Look whether both can listen. One port for both is refused too: held at once, the second finds it taken.

    Raises:
        SystemExit: one cannot.

    """
    with ExitStack() as sockets:
        sockets.enter_context(listen(host, http, "HTTP"))
        if grpc is not None:
            sockets.enter_context(listen(host, grpc, "gRPC"))


def listen(host: str, port: int, protocol: str) -> socket.socket:
    """Listen, from now on: two sockets that are only bound may share a port, and the later one would fail in silence.

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
    """Say what could not be had, why, and which option helps."""
    why, advice = error.strerror or str(error), f"choose {OTHERS[protocol]}"
    if error.errno == errno.EADDRINUSE:
        why, advice = "the port is taken", f"{advice}, or end the program that listens there"
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        why, advice = f"{host} is no address of this machine", "choose another --host"
    return SystemExit(f"adamd: cannot listen on {host} port {port} for {protocol}: {why}; {advice}")
