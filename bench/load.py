"""200 sessions stepped by 32 clients at once: adamd and torch RPC in turns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from bench.child import Child
from bench.crowd import Crowd
from bench.park import POLICIES, Park
from bench.plan import Load
from bench.processes import forget_peak, memory

ROUNDS = 4
BOUND = 5.0  # p99 ÷ p50 of adamd


@dataclass(slots=True)
class Loaded:
    """What one server did. ``resident`` and ``peak`` are MB of 10^6 bytes, with all sessions there."""

    name: str
    pid: int
    bound: float | None
    seconds: list[float] = field(default_factory=list)
    whole: float = 0.0
    resident: float = 0.0
    peak: float = 0.0

    @property
    def speed(self) -> float:
        """Return steps per second."""
        return len(self.seconds) / self.whole

    def percentile(self, rank: float) -> float:
        """Return seconds."""
        return float(np.percentile(self.seconds, rank))


def measure(park: Park, load: Load, say: Callable[[str], None]) -> list[Loaded]:
    """Step all sessions of every server in turns, and then compare every one with the reference.

    Raises:
        SystemExit: an error, or a step that is not applied exactly once.

    """
    with ExitStack() as stack:
        runs = [_adamd(stack, park, load, durability, name) for name, durability in _servers()]
        runs += [_rpc(child, load) for child in park.children if child.peer.name == "rpc"]
        for number in range(ROUNDS):
            say(f"load, round {number + 1} of {ROUNDS}")
            for loaded, step, _ in runs[:: 1 if number % 2 else -1]:
                forget_peak(loaded.pid)
                seconds, whole = step(load.steps // ROUNDS or 1)
                loaded.seconds += seconds
                loaded.whole += whole
                loaded.resident, peak = memory(loaded.pid)
                loaded.peak = max(loaded.peak, peak)
        say("load: every session against the reference, bit for bit")
        for _, _, check in runs:
            check()
    return [loaded for loaded, _, _ in runs]


Run = tuple[Loaded, Callable[[int], tuple[list[float], float]], Callable[[], None]]


def _servers() -> list[tuple[str, str]]:
    return [("memory", "memory"), *((policy, "committed") for policy in POLICIES)]


def _adamd(stack: ExitStack, park: Park, load: Load, durability: str, name: str) -> Run:
    service = park.memory if name == "memory" else park.committed[name]
    crowd = Crowd(service.host, service.port, durability, load.sessions, load.parameters, load.clients)
    stack.callback(crowd.close)
    crowd.step(load.warm)
    told = durability if name == "memory" else f"{durability}, {name}"
    return Loaded(f"adamd, {told}", service.pid, BOUND), crowd.step, crowd.check


def _rpc(child: Child, load: Load) -> Run:
    def step(count: int) -> tuple[list[float], float]:
        shape = {"sessions": load.sessions, "parameters": load.parameters, "clients": load.clients}
        told = child.ask("load", **shape, warm=load.warm, steps=count)
        return told["seconds"], told["whole"]

    return Loaded("torch RPC", child.pids["torch RPC, server"], None), step, lambda: None
