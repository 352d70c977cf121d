"""One run: all contenders of one size side by side, size after size, and every single time kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from bench import parity
from bench.by_grpc import Blocking, Lockstep, Pipelined, Unary
from bench.clock import Compared, Contender, Floats
from bench.contenders import BulkWriter, KernelAlone, SocketFloor
from bench.local_files import local_files
from bench.park import POLICIES, Park
from bench.plan import SMALL, SNAPSHOT_PERIOD, SNAPSHOT_PHASE, Size
from bench.processes import forget_peak, memory
from bench.sessions import BySdk, Naive, Session

Say = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """What one size gave: seconds by contender, round by round, in the order in which they were measured."""

    parameters: int
    times: dict[str, list[list[float]]] = field(default_factory=dict)
    snapshots: int = 0
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)  # resident and peak, MB


@dataclass(frozen=True, slots=True)
class Durable:
    """What is measured in blocks, in rotating order: a session and who writes to the same disk; steps of each."""

    session: Session
    blocks: list[tuple[Contender, int]]


@dataclass(frozen=True, slots=True)
class Field:
    """Everyone at one size. ``fast`` are measured in turns; ``durable`` in blocks."""

    fast: list[Contender]
    durable: list[Durable]
    compared: list[Compared]

    @property
    def everyone(self) -> Iterable[Contender]:
        """Yield every contender."""
        yield from self.fast
        for group in self.durable:
            yield from (contender for contender, _ in group.blocks)


def measure(park: Park, size: Size, say: Say) -> Measured:
    """Check parity, warm up, then time all rounds of one size."""
    random = np.random.default_rng(size.parameters)
    parameters = random.standard_normal(size.parameters, np.float32)
    gradient = random.standard_normal(size.parameters, np.float32)
    # Nothing near zero: there MXNet's Adam, which adds eps before it corrects the bias, is another one.
    gradient += np.copysign(np.float32(0.01), gradient)
    measured = Measured(size.parameters)
    for pid in park.pids().values():
        forget_peak(pid)
    with ExitStack() as stack:
        given = _field(park, size, parameters, gradient)
        for contender in given.everyone:
            stack.callback(contender.close)
        say("parity: adamd bit for bit, the others as near as their own order of operations allows")
        parity.check(parameters, gradient, given.compared)
        _warm_up(given)
        for number in range(size.rounds):
            say(f"round {number + 1} of {size.rounds}")
            for contender in given.everyone:
                measured.times.setdefault(contender.name, []).append([])
            _in_turns(size, given.fast, measured)
            _in_blocks(number, size, given.durable, measured)
        for name, pid in park.pids().items():
            measured.memory[name] = memory(pid)
    return measured


def _field(park: Park, size: Size, parameters: Floats, gradient: Floats) -> Field:
    http, stream = f"http://{park.sdk.host}:{park.sdk.port}", f"grpc://{park.sdk.grpc}"
    fast: list[Contender] = [SocketFloor(park.floor, gradient), KernelAlone(parameters, gradient)]
    compared: list[Compared] = [
        Session("memory", park.memory, "memory", parameters, gradient),
        BySdk("memory, SDK", http, "memory", parameters, gradient),
        BySdk("memory, gRPC stream", stream, "memory", parameters, gradient),
    ]
    if len(parameters) <= SMALL:
        fast.append(Pipelined("memory, gRPC stream, pipelined", park.memory, parameters, gradient))
        compared.append(Unary("memory, gRPC unary", park.memory, parameters, gradient))
        compared.append(Lockstep("memory, gRPC stream, lockstep", park.memory, parameters, gradient))
        compared.append(Blocking("memory, gRPC stream, lockstep, blocking", park.memory, parameters, gradient))
    compared += [row for child in park.children for row in child.rows(parameters, gradient)]
    fast += compared
    durable = []
    for policy in POLICIES:
        bulk = BulkWriter(f"bulk writer, {policy}", park.stores[policy].url, gradient)
        naive = Naive(f"naive, {policy}", park.naive[policy], parameters, gradient)
        session = Session(f"committed, {policy}", park.committed[policy], "committed", parameters, gradient)
        compared += [naive, session]
        durable.append(Durable(session, [(bulk, size.bulk), (naive, size.naive), (session, size.committed)]))
    durable[0].blocks.extend((one, size.bulk) for one in local_files(park.data / "files", gradient))
    return Field(fast, durable, compared)


def _warm_up(given: Field) -> None:
    for contender in given.everyone:
        steps = SNAPSHOT_PHASE - parity.STEPS if contender.name.startswith("committed") else 2
        for _ in range(steps):
            contender.step()
            contender.settle()


def _in_turns(size: Size, fast: Sequence[Contender], measured: Measured) -> None:
    for turn in range(size.interleaved // size.burst):
        for contender in fast if turn % 2 else reversed(fast):  # each comes after each of its neighbours
            for _ in range(size.burst):
                _take(contender, measured)


def _in_blocks(number: int, size: Size, durable: Sequence[Durable], measured: Measured) -> None:
    for group in durable:
        turn = number % len(group.blocks)  # each comes after each: who follows the naive service finds a busy disk
        for contender, steps in group.blocks[turn:] + group.blocks[:turn]:
            before = group.session.snapshot_step() if contender is group.session else 0
            for _ in range(steps):
                _take(contender, measured)
            contender.settle()
            if contender is group.session:
                measured.snapshots += _snapshots(group.session, before, size)


def _take(contender: Contender, measured: Measured) -> None:
    measured.times[contender.name][-1].append(contender.step())


def _snapshots(session: Session, before: int, size: Size) -> int:
    """Return 1 where a snapshot fell into the block; wait for it first: no other contender shall pay for it."""
    deadline = time.monotonic() + 20
    while size.snapshots and session.number - session.snapshot_step() >= SNAPSHOT_PERIOD:
        if time.monotonic() > deadline:
            raise SystemExit(f"{session.name}: no snapshot came")
        time.sleep(0.05)
    return int(session.snapshot_step() > before)
