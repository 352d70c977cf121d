"""One run: all contenders of one size side by side, size after size, and every single time kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adamd_service.store import EmbeddedStore
from bench import parity, processes
from bench.contenders import BulkWriter, BySdk, Contender, Floats, KernelAlone, Naive, Session, SocketFloor
from bench.floor import peer
from bench.plan import SNAPSHOT_PERIOD, SNAPSHOT_PHASE, Size
from bench.processes import Service

POLICIES = "always", "everysec"
Say = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """What one size gave: seconds by contender, round by round, in the order in which they were measured."""

    parameters: int
    times: dict[str, list[list[float]]] = field(default_factory=dict)
    snapshots: int = 0
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)  # resident and peak, MB


@dataclass(frozen=True, slots=True)
class Park:
    """Everything that runs."""

    floor: int
    memory: Service
    sdk: Service
    stores: dict[str, EmbeddedStore]
    committed: dict[str, Service]
    naive: dict[str, Service]

    def pids(self) -> dict[str, int]:
        """Return the processes whose memory is told."""
        found = {"adamd, memory": self.memory.pid}
        for policy in POLICIES:
            found[f"adamd, committed {policy}"] = self.committed[policy].pid
            found[f"naive, {policy}"] = self.naive[policy].pid
            pid = self.stores[policy].pid
            assert pid is not None
            found[f"store, {policy} (adamd's session, the naive one, 13 bodies of the bulk writer)"] = pid
        return found


def start(stack: ExitStack, directory: Path, say: Say) -> Park:
    """Start the peer, two stores (the embedded one in both its policies), four servers and two naive services."""
    enter = stack.enter_context
    stores, committed, naive = {}, {}, {}
    for policy in POLICIES:
        say(f"starting a store with appendfsync {policy}, adamd and the naive service on it")
        stores[policy] = enter(processes.store(directory / policy, policy))
        committed[policy] = enter(processes.adamd(f"adamd {policy}", stores[policy].url, directory))
        naive[policy] = enter(processes.naive(f"naive {policy}", stores[policy].url))
    say("starting two servers for memory sessions")
    memory = enter(processes.adamd("adamd memory", stores["everysec"].url, directory))
    sdk = enter(processes.adamd("adamd sdk", stores["everysec"].url, directory))
    return Park(enter(peer()), memory, sdk, stores, committed, naive)


def measure(park: Park, size: Size, say: Say) -> Measured:
    """Check parity, warm up, then time all rounds of one size."""
    random = np.random.default_rng(size.parameters)
    parameters = random.standard_normal(size.parameters, np.float32)
    gradient = random.standard_normal(size.parameters, np.float32)
    measured = Measured(size.parameters)
    for pid in park.pids().values():
        processes.forget_peak(pid)
    with ExitStack() as stack:
        fast, durable = _contenders(park, parameters, gradient)
        for contender in (*fast, *(one for group in durable for one in group)):
            stack.callback(contender.close)
        say("parity: adamd bit for bit, the naive service within 1e-6")
        parity.check(parameters, gradient, fast, durable)
        _warm_up(fast, durable)
        for number in range(size.rounds):
            say(f"round {number + 1} of {size.rounds}")
            for contender in (*fast, *(one for group in durable for one in group)):
                measured.times.setdefault(contender.name, []).append([])
            _round(number, size, fast, durable, measured)
        for name, pid in park.pids().items():
            measured.memory[name] = processes.memory(pid)
    return measured


def _contenders(
    park: Park, parameters: Floats, gradient: Floats
) -> tuple[list[Contender], list[tuple[BulkWriter, Naive, Session]]]:
    fast: list[Contender] = [
        SocketFloor(park.floor, gradient),
        KernelAlone(parameters, gradient),
        Session("memory", park.memory, "memory", parameters, gradient),
        BySdk("memory, SDK", park.sdk, "memory", parameters, gradient),
    ]
    durable = [
        (
            BulkWriter(f"bulk writer, {policy}", park.stores[policy].url, gradient),
            Naive(f"naive, {policy}", park.naive[policy], parameters, gradient),
            Session(f"committed, {policy}", park.committed[policy], "committed", parameters, gradient),
        )
        for policy in POLICIES
    ]
    return fast, durable


def _warm_up(fast: Sequence[Contender], durable: Sequence[tuple[BulkWriter, Naive, Session]]) -> None:
    for contender in (*fast, *(one for group in durable for one in group)):
        steps = SNAPSHOT_PHASE - parity.STEPS if contender.name.startswith("committed") else 2
        for _ in range(steps):
            contender.step()
            contender.settle()


def _round(
    number: int,
    size: Size,
    fast: Sequence[Contender],
    durable: Sequence[tuple[BulkWriter, Naive, Session]],
    measured: Measured,
) -> None:
    for _ in range(size.interleaved):
        for contender in fast:
            _timed(contender, measured)
    for bulk, naive, session in durable:
        blocks: list[tuple[Contender, int]] = [(bulk, size.bulk), (naive, size.naive), (session, size.committed)]
        turn = number % len(blocks)  # each comes after each: who follows the naive service finds a busy disk
        for contender, steps in blocks[turn:] + blocks[:turn]:
            before = session.snapshot_step() if contender is session else 0
            for _ in range(steps):
                _timed(contender, measured)
            contender.settle()
            if contender is session:
                measured.snapshots += _snapshots(session, before, size)


def _timed(contender: Contender, measured: Measured) -> None:
    started = time.perf_counter()
    contender.step()
    measured.times[contender.name][-1].append(time.perf_counter() - started)


def _snapshots(session: Session, before: int, size: Size) -> int:
    """Return 1 where a snapshot fell into the block; wait for it first: no other contender shall pay for it."""
    deadline = time.monotonic() + 20
    while size.snapshots and session.number - session.snapshot_step() >= SNAPSHOT_PERIOD:
        if time.monotonic() > deadline:
            raise SystemExit(f"{session.name}: no snapshot came")
        time.sleep(0.05)
    return int(session.snapshot_step() > before)
