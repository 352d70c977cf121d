"""The protocol between the bench and a peer: JSON lines in and out; the peer times itself.

``open`` (two ``.npy`` files: parameters, gradient) begins a size, ``step`` makes steps of one row and answers with
their seconds, ``answer`` writes the parameters that the row's last step brought, ``close`` ends the size, ``load`` is
the peer's own part of the load; the end of the input ends the peer. Whatever a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float32]"
LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8


class Row(Protocol):
    """One row of the table, at one size."""

    def prepare(self) -> None:
        """Do what a program does anyway before it has a gradient; not timed."""

    def step(self) -> None:
        """Send the gradient, apply it, have the parameters."""

    def answer(self) -> Floats:
        """Return the parameters that the last step brought."""

    def close(self) -> None:
        """Let go of what this size took."""


Rows = Mapping[str, Row]
Load = Callable[[dict[str, int]], dict[str, Any]]


def take(rows: Callable[[Floats, Floats], Rows], pids: dict[str, int], load: Load | None = None) -> None:
    """Say which processes there are, then do what is asked until nothing is asked any more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    turns = Turns(rows, load)

    def say(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=out, flush=True)

    say({"pids": pids})
    for line in sys.stdin:
        asked = json.loads(line)
        say(getattr(turns, asked.pop("do"))(**asked))


class Turns:
    """What may be asked."""

    def __init__(self, rows: Callable[[Floats, Floats], Rows], load: Load | None) -> None:
        self._make = rows
        self._load = load
        self._rows: Rows = {}

    def open(self, parameters: str, gradient: str) -> dict[str, Any]:
        self._rows = self._make(np.load(parameters), np.load(gradient))
        return {"rows": list(self._rows)}

    def step(self, row: str, count: int) -> dict[str, Any]:
        one, seconds = self._rows[row], []
        for _ in range(count):
            one.prepare()
            started = time.perf_counter()
            one.step()
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def answer(self, row: str, path: str) -> dict[str, Any]:
        np.save(path, self._rows[row].answer())
        return {}

    def close(self) -> dict[str, Any]:
        for one in self._rows.values():
            one.close()
        self._rows = {}
        return {}

    def load(self, **shape: int) -> dict[str, Any]:
        assert self._load is not None
        return self._load(shape)
