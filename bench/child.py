"""A peer from the bench's side: its process, and its rows as contenders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench import environments
from bench.clock import Floats
from bench.environments import Absent, Peer

ROOT = Path(__file__).parents[1]


class Child:
    """The conversation with one peer; see ``bench/peers/turns.py``."""

    def __init__(self, peer: Peer, process: subprocess.Popen[str], log: Path, directory: Path) -> None:
        self.peer = peer
        self._process = process
        self._log = log
        self._directory = directory
        self.pids: dict[str, int] = self._answer()["pids"]

    def ask(self, do: str, **what: Any) -> Any:
        """Ask for one thing; returns the answer.

        Raises:
            Absent: the peer has ended.

        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer tells
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def rows(self, parameters: Floats, gradient: Floats) -> list[PeerRow]:
        """Begin a size."""
        paths = {name: str(self._directory / f"{self.peer.name}-{name}.npy") for name in ("parameters", "gradient")}
        np.save(paths["parameters"], parameters)
        np.save(paths["gradient"], gradient)
        return [PeerRow(name, self, self._directory) for name in self.ask("open", **paths)["rows"]]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = self._log.read_text(errors="replace").strip().splitlines()
        raise Absent(f"{self.peer.module} ended: {said[-1][:200] if said else 'nothing said'}")


class PeerRow:
    """One row of a peer, at one size. Its seconds are the peer's own: the pipe is not in them."""

    tolerance = 1e-6

    def __init__(self, name: str, child: Child, directory: Path) -> None:
        self.name = name
        self._child = child
        self._path = directory / f"{child.peer.name}-answer.npy"

    @property
    def answer(self) -> Floats:
        self._child.ask("answer", row=self.name, path=str(self._path))
        found: Floats = np.load(self._path)
        return found

    def step(self) -> float:
        seconds: float = self._child.ask("step", row=self.name, count=1)["seconds"][0]
        return seconds

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._child.ask("close")  # all its rows at once; a second time does nothing


@contextmanager
def child(peer: Peer, directory: Path, logs: Path) -> Iterator[Child]:
    """Run a peer in its own environment, which is made first if need be.

    Raises:
        Absent: it cannot be had, or does not start.

    """
    interpreter = environments.python(peer)
    log = logs / f"{peer.name}.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [interpreter, "-m", peer.module],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "", "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
    try:
        yield Child(peer, process, log, directory)
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):  # whatever it left: all are of its own group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
