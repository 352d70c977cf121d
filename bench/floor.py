"""The floor: the same bytes up and down between two processes over raw sockets, into reused buffers. Nothing else."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen


class Floor:
    """One connection to the peer, for exchanges of ``nbytes`` up and as many down."""

    def __init__(self, port: int, nbytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(nbytes.to_bytes(8, "little"))

    def exchange(self, up: memoryview, down: memoryview) -> None:
        """Send ``up``, receive ``down``."""
        self._socket.sendall(up)
        _fill(self._socket, down)

    def close(self) -> None:
        """Let the peer serve the next connection."""
        self._socket.close()


@contextmanager
def peer() -> Iterator[int]:
    """Run the peer process; yields its port."""
    with Popen([sys.executable, "-m", "bench.floor"], stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def _fill(connection: socket.socket, view: memoryview) -> bool:
    while view:
        count = connection.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


def main() -> None:
    """Serve one connection after the other: a length, then exchanges of that length."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            told = memoryview(bytearray(8))
            _fill(connection, told)
            buffer = memoryview(bytearray(int.from_bytes(told, "little")))
            while _fill(connection, buffer):
                connection.sendall(buffer)
            connection.close()


if __name__ == "__main__":
    main()
