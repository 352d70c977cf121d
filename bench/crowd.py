"""Many clients in one thread: each has its own connection and sessions, and steps them in turn.

There is nothing here that could be slow: heads and bodies are bytes, sent in one call, and answers are only counted.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import numpy as np

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan

ROOM = 1 << 16  # for an answer's head, and whatever a refusal says


@dataclass(slots=True)
class Client:
    """One connection; ``paths`` are the sessions that are its own."""

    connection: socket.socket
    paths: list[str]
    buffer: memoryview
    wanted: int = 0  # bytes of the answer's body
    filled: int = 0
    whole: int = 0  # bytes of head and body together, once the head is in
    sent: float = 0.0
    steps: Iterator[tuple[str, int]] = field(default_factory=lambda: iter(()))

    def send(self, body: bytes) -> bool:
        """Send the next step; False where there is none."""
        following = next(self.steps, None)
        if following is None:
            return False
        path, number = following
        head = f"PUT {path}/steps/{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.filled = self.whole = 0
        self.sent = time.perf_counter()
        self.connection.sendall(head.encode() + body)
        return True

    def receive(self) -> float | None:
        """Take what has arrived; returns the step's seconds once its answer is whole.

        Raises:
            SystemExit: the answer is no 200.

        """
        count = self.connection.recv_into(self.buffer[self.filled :])
        if not count:
            raise SystemExit(f"{self.paths[0]}: the server has closed the connection")
        self.filled += count
        if not self.whole:
            end = bytes(self.buffer[: min(self.filled, ROOM)]).find(b"\r\n\r\n")
            if end < 0:
                return None
            if not bytes(self.buffer[:12]).endswith(b" 200"):
                raise SystemExit(f"{self.paths[0]}: {bytes(self.buffer[: self.filled])!r}")
            self.whole = end + 4 + self.wanted
        return time.perf_counter() - self.sent if self.filled == self.whole else None


class Crowd:
    """Sessions of one server, and the clients that step them. All begin with the same vector, and take the same."""

    def __init__(self, host: str, port: int, durability: str, sessions: int, parameters: int, clients: int) -> None:
        random = np.random.default_rng(sessions)
        self.begin = random.standard_normal(parameters, np.float32)
        self._gradient = random.standard_normal(parameters, np.float32)
        self._number = clients
        self._clients: list[Client] = []
        self._control = HTTPConnection(host, port, timeout=60)
        layout = [{"name": "vector", "shape": [parameters]}]
        asked = {"layout": layout, "dtype": "float32", "durability": durability}
        self.paths = [f"/v1/sessions/{self._json('POST', '/v1/sessions', asked)['id']}" for _ in range(sessions)]
        for path in self.paths:
            self._bytes("PUT", f"{path}/parameters", self.begin.tobytes())
        self.connect(host, port)
        self.applied = 0

    def connect(self, host: str, port: int) -> None:
        """Connect every client; a server that was started again has the same sessions."""
        self.disconnect()
        self._control = HTTPConnection(host, port, timeout=60)
        self._clients = [self._client(host, port, self.paths[n :: self._number]) for n in range(self._number)]

    def disconnect(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.connection.close()
        self._clients.clear()
        self._control.close()

    def read(self) -> list[float]:
        """Read the parameters of one session after the other; returns the seconds of each."""
        seconds = []
        for path in self.paths:
            began = time.perf_counter()
            self._bytes("GET", f"{path}/parameters")
            seconds.append(time.perf_counter() - began)
        return seconds

    def _client(self, host: str, port: int, paths: list[str]) -> Client:
        connection = socket.create_connection((host, port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wanted = self.begin.nbytes
        return Client(connection, paths, memoryview(bytearray(ROOM + wanted)), wanted)

    def step(self, count: int, again: int = 0) -> tuple[list[float], float]:
        """Step every session ``count`` times; returns the seconds of every step, and of the whole.

        Every ``again``-th step, if it is not 0, is sent twice in a row, as a client does that got no answer.
        """
        body, seconds = self._gradient.tobytes(), []
        with selectors.DefaultSelector() as selector:
            began = time.perf_counter()
            for client in self._clients:
                client.steps = self._steps(client.paths, count, again)
                if client.send(body):
                    selector.register(client.connection, selectors.EVENT_READ, client)
            while selector.get_map():
                ready = selector.select(60)
                if not ready:
                    raise SystemExit("no answer for 60 seconds")
                for key, _ in ready:
                    taken = key.data.receive()
                    if taken is not None:
                        seconds.append(taken)
                        if not key.data.send(body):
                            selector.unregister(key.fileobj)
            whole = time.perf_counter() - began
        self.applied += count
        return seconds, whole

    def _steps(self, paths: list[str], count: int, again: int) -> Iterator[tuple[str, int]]:
        sent = 0
        for number in range(self.applied + 1, self.applied + count + 1):
            for path in paths:
                sent += 1
                yield path, number
                if again and not sent % again:
                    yield path, number

    def check(self) -> None:
        """Compare every session with the reference after as many steps.

        Raises:
            SystemExit: a step is missing, or counted twice, or one bit differs.

        """
        state = State.fresh(self.begin, 1, parse_settings({"name": "adam"}))
        settings, bounds = parse_settings({"name": "adam"}), (0, len(self.begin))
        for _ in range(self.applied):
            updates = plan(settings, ("vector",), state.counts, (True,), state.params.dtype)
            apply(state, self._gradient, updates, bounds, None, ReferenceKernel())
        wanted = state.params.tobytes()
        for path in self.paths:
            step = self._json("GET", path)["step"]
            if step != self.applied:
                raise SystemExit(f"{path} is at step {step} after {self.applied} steps")
            if self._bytes("GET", f"{path}/parameters") != wanted:
                raise SystemExit(f"{path}: the parameters are not those of {self.applied} steps")

    def close(self) -> None:
        """Delete the sessions."""
        for path in self.paths:
            self._json("DELETE", path)
        self.disconnect()

    def _json(self, method: str, path: str, document: Any = None) -> Any:
        body = b"" if document is None else json.dumps(document).encode()
        raw = self._bytes(method, path, body, "application/json")
        return json.loads(raw) if raw else None

    def _bytes(self, method: str, path: str, body: bytes = b"", media: str = "application/octet-stream") -> bytes:
        about = {"Content-Type": media} if body else {"Accept": media}
        self._control.request(method, path, body or None, about)
        response = self._control.getresponse()
        raw = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {raw[:500]!r}")
        return raw
