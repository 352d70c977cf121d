"""What a contender is, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float32]"
S = TypeVar("S")


class Contender(Protocol):
    """One row of the table, at one size: it makes steps from one gradient into reused buffers."""

    name: str

    def step(self) -> float:
        """Do what is timed; returns seconds."""

    def settle(self) -> None:
        """Tidy up after some steps; not timed."""

    def close(self) -> None:
        """Let go of everything, at the other end too."""


class Compared(Contender, Protocol):
    """One whose results are compared with the reference before anything is timed."""

    @property
    def tolerance(self) -> float:
        """The largest absolute difference that is allowed; 0: bit for bit."""

    @property
    def answer(self) -> Floats:
        """The parameters that the last step brought."""


def timed(step: Callable[[S], None]) -> Callable[[S], float]:
    """Return the seconds of what ``step`` does."""

    def measured(one: S) -> float:
        started = time.perf_counter()
        step(one)
        return time.perf_counter() - started

    return measured
