"""A thousand contributors to one session: one thread, some connections, and every answer timed."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bench.federations import open_session
from bench.plan import Contributors
from bench.processes import Service, forget_peak, memory
from bench.sessions import OCTETS, Bare

ROOM = 1 << 16  # for an answer
WARM = 2  # rounds before the memory that the others are compared with


@dataclass(slots=True)
class Contributed:
    """What came of it. Seconds of each contribution, and of each round until its step can be seen; MB of 10^6 bytes."""

    contributors: int
    parameters: int
    seconds: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    resident: dict[str, tuple[float, float]] = field(default_factory=dict)  # early, and at the end
    peak: dict[str, float] = field(default_factory=dict)

    def percentile(self, rank: float) -> float:
        """Return seconds."""
        return float(np.percentile(self.seconds, rank))


@dataclass(slots=True)
class Line:
    """One connection; it sends the next contribution once the one before is answered."""

    connection: socket.socket
    clients: range
    waiting: Iterator[int] = field(default_factory=lambda: iter(()))
    came: bytearray = field(default_factory=bytearray)
    sent: float = 0.0

    def send(self, target: str, body: bytes) -> bool:
        """Send the next contribution; False where there is none."""
        client = next(self.waiting, None)
        if client is None:
            return False
        head = (
            f"PUT {target}/contributions/ward-{client} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {OCTETS}\r\n"
            f"Content-Length: {len(body)}\r\nAdamd-Num-Examples: {client % 7 + 1}\r\n\r\n"
        )
        self.came.clear()
        self.sent = time.perf_counter()
        self.connection.sendall(head.encode() + body)
        return True

    def receive(self) -> float | None:
        """Take what has arrived; returns the contribution's seconds once its answer is whole.

        Raises:
            SystemExit: the answer is no 202.

        """
        part = self.connection.recv(ROOM)
        self.came += part
        head, end, body = self.came.partition(b"\r\n\r\n")
        if not part or (end and not head[:12].endswith(b" 202")):
            raise SystemExit(f"a contributor was told {bytes(self.came)!r}")
        if not end:
            return None
        [length] = (line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return time.perf_counter() - self.sent if len(body) == int(length) else None


def measure(service: Service, store: int, wanted: Contributors) -> Contributed:
    """Run every round. ``store``: the process of the server's private store.

    Raises:
        SystemExit: an error, or a round that misses one of the contributions.

    """
    found, bare = Contributed(wanted.contributors, wanted.parameters), Bare(service)
    values = np.random.default_rng(wanted.parameters).standard_normal(wanted.parameters, np.float32)
    path = open_session(bare, values, {"quorum": wanted.contributors, "total": wanted.rounds})
    pids, body, held = {"server": service.pid, "store": store}, values.tobytes(), np.empty_like(values)
    early = dict.fromkeys(pids, 0.0)
    lines = [_line(service, place, wanted) for place in range(wanted.connections)]
    try:
        for number in range(1, wanted.rounds + 1):
            began = time.perf_counter()
            found.seconds += _everyone(lines, f"{path}/rounds/{number}", body)
            bare.parameters(path, held, f"?min_step={number}&wait_s=60")
            found.rounds.append(time.perf_counter() - began)
            if number == min(WARM, wanted.rounds - 1):
                early = {name: memory(pid)[0] for name, pid in pids.items()}
                for pid in pids.values():
                    forget_peak(pid)
        for name, pid in pids.items():
            resident, found.peak[name] = memory(pid)
            found.resident[name] = early[name], resident
        counted = len(bare.json("GET", f"{path}/rounds/{wanted.rounds}")["contributions"])
        if counted != wanted.contributors:
            raise SystemExit(f"the last round has {counted} contributions of {wanted.contributors}")
    finally:
        for line in lines:
            line.connection.close()
    bare.json("DELETE", path)
    bare.close()
    return found


def _line(service: Service, place: int, wanted: Contributors) -> Line:
    connection = socket.create_connection((service.host, service.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Line(connection, range(place, wanted.contributors, wanted.connections))


def _everyone(lines: list[Line], target: str, body: bytes) -> list[float]:
    """Have every contributor contribute once; returns the seconds of each."""
    seconds = list[float]()
    with selectors.DefaultSelector() as selector:
        for line in lines:
            line.waiting = iter(line.clients)
            if line.send(target, body):
                selector.register(line.connection, selectors.EVENT_READ, line)
        while selector.get_map():
            ready = selector.select(60)
            if not ready:
                raise SystemExit("no answer for 60 seconds")
            for key, _ in ready:
                taken = key.data.receive()
                if taken is not None:
                    seconds.append(taken)
                    if not key.data.send(target, body):
                        selector.unregister(key.fileobj)
    return seconds
