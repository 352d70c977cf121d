"""A TCP proxy before a store: it moves new connections to another port and keeps the others."""

import socket
import threading
from contextlib import suppress

PIECE = 65536


class Proxy:
    """Passes what comes to its `port` on to `target`, a port of this machine that may be changed at any time."""

    def __init__(self, target):
        self.target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def _serve(self):
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def close(self):
        for one in (self._listening, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def pump(source, sink):
    with suppress(OSError):
        while came := source.recv(PIECE):
            sink.sendall(came)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
