"""Restarts, and what the first touch of a session costs: after its creation, and after a restart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from bench.crowd import Crowd
from bench.park import POLICIES, Park
from bench.plan import Beginning, Restart

Say = Callable[[str], None]
READY_WITHIN = 5.0  # seconds that a start may take


@dataclass(slots=True)
class Restarted:
    """What a server did that was killed and started again, with so many sessions. Seconds, or steps per second.

    ``nbytes``: of the sessions' files and of the store's, on the disk. ``empty``: a start without any session.
    """

    sessions: int
    parameters: int
    nbytes: int = 0
    empty: float = 0.0
    starts: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)  # the parameters of a session that nobody asked for yet
    cold: float = 0.0
    warm: float = 0.0


@dataclass(slots=True)
class Begun:
    """Steps per second of many clients, round by round: each session's first step, and its second."""

    name: str
    parameters: int
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)


def restart(directory: Path, wanted: Restart, say: Say) -> Restarted:
    """Kill a server with many sessions twice: read all of them, then step all of them.

    Raises:
        SystemExit: a session is not what it was.

    """
    say(f"restart: {wanted.sessions:,} sessions of {wanted.parameters:,} parameters")
    found, data = Restarted(wanted.sessions, wanted.parameters), directory / f"restart-{wanted.parameters}"
    began = time.perf_counter()
    with processes.adamd("adamd restart", data, "always") as service:
        found.empty = time.perf_counter() - began
        crowd = Crowd(service.host, service.port, "committed", wanted.sessions, wanted.parameters, wanted.clients)
        crowd.step(1)
        os.kill(service.pid, signal.SIGKILL)
    found.nbytes = _size(data)
    with _started(found, data) as service:
        crowd.connect(service.host, service.port)
        found.loads = crowd.read()
        os.kill(service.pid, signal.SIGKILL)
    with _started(found, data) as service:
        crowd.connect(service.host, service.port)
        found.cold, found.warm = (len(seconds) / whole for seconds, whole in (crowd.step(1), crowd.step(1)))
        crowd.check()
        crowd.disconnect()
    return found


@contextmanager
def _started(found: Restarted, data: Path) -> Iterator[processes.Service]:
    began = time.perf_counter()
    with processes.adamd("adamd restart", data, "always") as service:
        found.starts.append(time.perf_counter() - began)
        yield service


def _size(directory: Path) -> int:
    """Return the bytes of all files but the store's reserve, which holds nothing."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "reserve")
    return sum(path.stat().st_size for path in files)


def beginnings(park: Park, wanted: Beginning, say: Say) -> list[Begun]:
    """Step new sessions once and once again, the servers in turns."""
    names = ["memory", *POLICIES]
    found = {name: Begun(name if name == "memory" else f"committed, {name}", wanted.parameters) for name in names}
    for number in range(wanted.rounds):
        say(f"first steps, round {number + 1} of {wanted.rounds}")
        for name in names[:: 1 if number % 2 else -1]:
            service = park.memory if name == "memory" else park.committed[name]
            durability = "memory" if name == "memory" else "committed"
            crowd = Crowd(service.host, service.port, durability, wanted.sessions, wanted.parameters, wanted.clients)
            for speeds in (found[name].first, found[name].second):
                seconds, whole = crowd.step(1)
                speeds.append(len(seconds) / whole)
            crowd.check()
            crowd.close()
    return list(found.values())
