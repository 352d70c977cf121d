"""Real TCP peers for the SDK's tests: a relay that cuts connections, and a scripted server."""

import socket
import struct
import threading
import time
from contextlib import suppress


class _Listener:
    def __init__(self, receive_buffer=None, wrap=lambda sock: sock):
        self.wrap = wrap
        self.listening = socket.socket()
        if receive_buffer is not None:
            self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(64)
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.lock = threading.Lock()
        self.connections = 0
        self.open = set()
        self.closed = False
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listening.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                number, self.connections = self.connections, self.connections + 1
                self.open.add(sock)
            threading.Thread(target=self._serve_one, args=(sock, number), daemon=True).start()

    def _serve_one(self, sock, number):
        used = None
        try:
            used = self.wrap(sock)
            if used is not None:
                self.serve(used, number)
        except OSError:
            pass
        finally:
            for one in {sock, used} - {None}:
                end(one)
            with self.lock:
                self.open.discard(sock)

    def drop(self):
        """End every connection there is now."""
        with self.lock:
            for sock in self.open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closed = True
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.drop()
        self.thread.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def end(sock, *, reset=False):
    with suppress(OSError):
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Wakes a thread that still receives: as long as it does, close() ends nothing. SHUT_RD sends no FIN.
        sock.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
    sock.close()


class Relay(_Listener):
    """Relays to a server. `cut(number)` is (up, down, reset) for the connection of that number: after so many bytes in
    that direction it ends (None: never). While `up` or `down` is not set, nothing passes in that direction; `holding`
    says that something was held back."""

    def __init__(self, port, cut=lambda number: (None, None, False), wrap=lambda sock: sock):
        self.target, self.cut = port, cut
        self.up, self.down, self.holding = threading.Event(), threading.Event(), threading.Event()
        self.losing = False
        self.hold(False)
        super().__init__(wrap=wrap)

    def serve(self, sock, number):
        up, down, reset = self.cut(number)
        server = socket.create_connection(("127.0.0.1", self.target))
        over = threading.Event()
        pumps = [
            threading.Thread(target=self._pump, args=(*way, over), daemon=True)
            for way in ((sock, server, up, self.up), (server, sock, down, self.down))
        ]
        for pump in pumps:
            pump.start()
        over.wait()
        end(sock, reset=reset)
        end(server)
        for pump in pumps:
            pump.join(5)

    def _pump(self, source, target, limit, flows, over):
        try:
            while limit is None or limit > 0:
                data = source.recv(65536 if limit is None else min(limit, 65536))
                if not data:
                    break
                while not flows.wait(0.02) and not (over.is_set() or self.losing):
                    self.holding.set()
                if not flows.is_set():
                    break
                target.sendall(data)
                limit = None if limit is None else limit - len(data)
        except OSError:
            pass
        over.set()

    def hold(self, held=True):
        """Let nothing pass, or everything again."""
        for flows in (self.up, self.down):
            flows.clear() if held else flows.set()

    def empty(self):
        """End every connection, and wait until what they held back is lost."""
        with self.lock:
            there = set(self.open)
        self.losing = True
        self.drop()
        while there & self.open:
            time.sleep(0.01)
        self.losing = False

    def close(self):
        self.hold(False)
        super().close()


class Scripted(_Listener):
    """Answers the n-th request (over all connections) with the n-th of `answers`, bytes as they are; the last one
    repeats. A tuple (bytes, "close") ends the connection after it. `requests` are (head, body)."""

    def __init__(self, *answers, read_bodies=True, receive_buffer=None, wrap=lambda sock: sock):
        self.answers, self.read_bodies = answers, read_bodies
        self.requests = []
        super().__init__(receive_buffer, wrap)

    def serve(self, sock, number):
        left = b""
        while True:
            while b"\r\n\r\n" not in left:
                data = sock.recv(65536)
                if not data:
                    return
                left += data
            head, _, left = left.partition(b"\r\n\r\n")
            body = b""
            if self.read_bodies:
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-len")
                    ),
                    0,
                )
                while len(left) < length:
                    left += sock.recv(65536)
                body, left = left[:length], left[length:]
            with self.lock:
                answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
                self.requests.append((head.decode(), body))
            closing = isinstance(answer, tuple)
            sock.sendall(answer[0] if closing else answer)
            if closing:
                return


def answer(status, body=b"", kind="application/json", **fields):
    """Return an answer's bytes."""
    lines = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
