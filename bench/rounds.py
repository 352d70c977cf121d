"""Rounds: their closing beside Flower's aggregation, whole ones over sockets, a thousand contributors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from adamd_service.aggregation import Contribution, aggregate_round, parse_aggregation
from adamd_service.optim import FusedKernel, State, apply, parse_settings, plan
from adamd_service.optim.kernels.threaded import SlicedKernel
from bench import child, contributors, processes
from bench.child import Child
from bench.clock import Floats
from bench.contributors import Contributed
from bench.environments import PEERS, Absent
from bench.federations import FEDADAM, ClosedByHand, open_session
from bench.plan import Federation, Growth, Reduction, Rounds
from bench.processes import Service, forget_peak, memory
from bench.sessions import Bare

Say = Callable[[str], None]
TOLERANCE = 1e-5  # of a step of FedAdam: each adds in an order of its own


@dataclass(slots=True)
class Grown:
    """MB of 10^6 bytes that a server and its store take for one round beyond what an empty session takes."""

    clients: int
    server: float
    store: float


@dataclass(slots=True)
class Ran:
    """What was measured of rounds: seconds by row, and what a round takes of memory."""

    reduction: Reduction
    times: dict[str, list[float]] = field(default_factory=dict)
    grown: list[Grown] = field(default_factory=list)
    federation: Federation | None = None
    whole: dict[str, list[float]] = field(default_factory=dict)  # seconds of a round over sockets, by server
    sleeps: dict[str, float] = field(default_factory=dict)  # of Flower's way over sockets that is not deprecated
    contributed: Contributed | None = None
    absent: dict[str, str] = field(default_factory=dict)


def measure(directory: Path, logs: Path, wanted: Rounds, peers: Sequence[str], say: Say) -> Ran:
    """Measure all of it."""
    found = Ran(wanted.reduction)
    with ExitStack() as stack:
        flower = _flower(stack, directory, logs, peers, found, say)
        with processes.adamd("adamd rounds", directory / "rounds", "always") as service:
            _reduction(found, service, flower, directory, say)
        for clients in (wanted.growth.few, wanted.growth.many):
            say(f"rounds: memory with {clients} clients of {wanted.growth.parameters:,}")
            with processes.adamd("adamd growth", directory / f"growth-{clients}", "always") as service:
                found.grown.append(_grown(service, clients, wanted.growth))
        with processes.adamd("adamd federation", directory / "federation", "always") as service:
            found.federation = wanted.federation
            _federation(found, service, flower, wanted.federation, say)
            one = wanted.contributors
            say(f"rounds: {one.contributors:,} contributors of {one.parameters:,}, {one.rounds} rounds")
            found.contributed = contributors.measure(service, _store(service), one)
    return found


def _flower(stack: ExitStack, directory: Path, logs: Path, peers: Sequence[str], found: Ran, say: Say) -> Child | None:
    [peer] = (one for one in PEERS if one.name == "flower")
    if peer.name not in peers:
        found.absent |= dict.fromkeys(peer.rows, "not asked for")
        return None
    say("starting Flower (its environment is made first, where it is not there yet)")
    try:
        return stack.enter_context(child.child(peer, directory, logs))
    except Absent as why:
        say(f"flower: {why}")
        found.absent |= dict.fromkeys(peer.rows, str(why))
        return None


class Row(Protocol):
    """What takes its turn."""

    name: str

    def prepare(self) -> None:
        """Do what comes before; not timed."""

    def step(self) -> float:
        """Reduce one round; returns seconds."""


class InMemory:
    """The mean of contributions that are arrays, and FedAdam with it, on as many threads as there are cores."""

    name = "reduce and FedAdam"

    def __init__(self, parameters: Floats, given: Sequence[Floats], threads: ThreadPoolExecutor) -> None:
        self._settings = parse_settings(FEDADAM)
        self._state = State.fresh(parameters.copy(), 1, self._settings)
        self._reduce = Reduce(given, "mean", threads)
        self._lanes = os.cpu_count() or 1
        self._kernel = SlicedKernel(FusedKernel(), threads, self._lanes)

    def prepare(self) -> None:
        pass

    def step(self) -> float:
        began = time.perf_counter()
        gradient, state = self._reduce.made(), self._state
        updates = plan(self._settings, ("vector",), state.counts, (True,), state.params.dtype)
        apply(state, gradient, updates, (0, len(gradient)), None, self._kernel)
        return time.perf_counter() - began


class Reduce:
    """One aggregate of arrays in memory."""

    def __init__(self, given: Sequence[Floats], aggregate: str, threads: ThreadPoolExecutor) -> None:
        self.name = f"adamd {aggregate}"
        self._given = [Contribution(f"ward-{place:03}", vector, float(place + 1)) for place, vector in enumerate(given)]
        self._settings = parse_aggregation({"aggregate": aggregate}, quorum=len(given), buffered=False)
        self._threads = threads
        self._out = np.empty_like(given[0])

    def prepare(self) -> None:
        pass

    def made(self) -> Floats:
        """Return the aggregate."""
        aggregate_round(self._given, self._settings, self._out, threads=self._threads, lanes=os.cpu_count() or 1)
        return self._out

    def step(self) -> float:
        began = time.perf_counter()
        self.made()
        return time.perf_counter() - began


class NumpyMedian:
    """``np.median`` over the stacked arrays."""

    name = "np.median"

    def __init__(self, given: Floats) -> None:
        self._given = given

    def prepare(self) -> None:
        pass

    def made(self) -> Floats:
        """Return the median."""
        found: Floats = np.median(self._given, axis=0)
        return found

    def step(self) -> float:
        began = time.perf_counter()
        self.made()
        return time.perf_counter() - began


class Peer:
    """A row of Flower's."""

    def __init__(self, row: child.PeerRow) -> None:
        self.name = row.name
        self._row = row

    def prepare(self) -> None:
        pass

    def step(self) -> float:
        return self._row.step()

    def answer(self) -> Floats:
        """Return the parameters."""
        return self._row.answer


def _reduction(found: Ran, service: Service, flower: Child | None, directory: Path, say: Say) -> None:
    wanted = found.reduction
    random = np.random.default_rng(wanted.parameters)
    parameters = random.standard_normal(wanted.parameters, np.float32)
    stacked = np.empty((wanted.clients, wanted.parameters), np.float32)
    for vector in stacked:
        np.add(parameters, np.float32(0.01) * random.standard_normal(wanted.parameters, np.float32), out=vector)
    trained: list[Floats] = list(stacked)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        closed = [
            ClosedByHand("closed, deltas", service, "delta", parameters, trained),
            ClosedByHand("closed, parameters", service, "parameters", parameters, trained),
        ]
        for one in closed:
            stack.callback(one.close)
        theirs = [] if flower is None else [Peer(row) for row in flower.rows(parameters, stacked)]
        medians = Reduce(trained, "median", threads), NumpyMedian(stacked)
        everyone: list[Row] = [*theirs, *closed, InMemory(parameters, trained, threads), *medians]
        for turn in range(wanted.turns + 1):
            say(f"rounds: {wanted.clients} clients of {wanted.parameters:,}, turn {turn} of {wanted.turns}")
            for row in everyone if turn % 2 else everyone[::-1]:
                row.prepare()
                seconds = row.step()
                if turn:  # the first warms up
                    found.times.setdefault(row.name, []).append(seconds)
            if not turn:
                _check(closed, theirs, medians)


def _check(closed: Sequence[ClosedByHand], theirs: Sequence[Peer], medians: tuple[Reduce, NumpyMedian]) -> None:
    """Compare what one round made of the same contributions."""
    wanted = closed[0].answer()
    others: list[ClosedByHand | Peer] = [*closed[1:], *theirs]
    for one in others:
        apart = float(np.abs(one.answer() - wanted).max())
        if not apart <= TOLERANCE:
            raise SystemExit(f"{one.name} is {apart:g} from adamd after one round")
    ours, numpys = (one.made() for one in medians)
    if not np.array_equal(ours, numpys):
        raise SystemExit("the medians differ")


def _grown(service: Service, clients: int, wanted: Growth) -> Grown:
    """Run one round; the vectors are made one by one, so that the bench has no more of them than the server."""
    parameters = np.zeros(wanted.parameters, np.float32)
    random = np.random.default_rng(clients)
    vector = random.standard_normal(wanted.parameters, np.float32)
    one = ClosedByHand("growth", service, "delta", parameters, [vector] * clients)
    pids = service.pid, _store(service)
    before = [memory(pid)[0] for pid in pids]
    for pid in pids:
        forget_peak(pid)
    one.prepare()
    one.step()
    grown = [memory(pid)[1] - resident for pid, resident in zip(pids, before, strict=True)]
    one.close()
    return Grown(clients, *grown)


def _store(service: Service) -> int:
    [pid] = (pid for pid in processes.children(service.pid) if b"redis" in _command(pid) or b"valkey" in _command(pid))
    return pid


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _federation(found: Ran, service: Service, flower: Child | None, wanted: Federation, say: Say) -> None:
    say(f"rounds: {wanted.clients} clients of {wanted.parameters:,} over sockets, {wanted.rounds} rounds")
    found.whole["adamd"] = _whole(service, wanted)
    if flower is not None:
        told = flower.ask("load", clients=wanted.clients, parameters=wanted.parameters, rounds=wanted.rounds)
        found.whole["Flower, start_server"], found.sleeps = told["seconds"], told["sleeps"]


def _whole(service: Service, wanted: Federation) -> list[float]:
    """Run rounds with clients in another process; returns the seconds of each but the first, from step to step."""
    bare, parameters = Bare(service), np.zeros(wanted.parameters, np.float32)
    path, last = open_session(bare, parameters, {"quorum": wanted.clients}), wanted.rounds + 1
    asked = {"host": service.host, "port": service.port, "path": path, "clients": wanted.clients}
    asked |= {"parameters": wanted.parameters, "rounds": last}
    command = [sys.executable, "-m", "bench.federations", json.dumps(asked)]
    subprocess.run(command, check=True, timeout=600)
    bare.parameters(path, parameters, f"?min_step={last}&wait_s=60")
    opened = [
        datetime.fromisoformat(bare.json("GET", f"{path}/rounds/{number}")["opened_at"]).timestamp()
        for number in range(2, last + 2)
    ]
    bare.json("DELETE", path)
    bare.close()
    return [after - before for before, after in pairwise(opened)]
