"""Buffered rounds, and what a stale contribution counts in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Staleness(Protocol):
    """A contribution's weight by its staleness: how many rounds were closed since its parameters were pulled."""

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``staleness`` setting."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A stale contribution counts as a fresh one."""

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``staleness`` setting."""
        return {"name": "constant"}


@dataclass(frozen=True, slots=True)
class Polynomial:
    """(1 + staleness)^-exponent: Xie et al. 2019, arXiv:1903.03934, section 5.2; FedBuff's with 0.5."""

    exponent: float = 0.5

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``staleness`` setting."""
        return {"name": "polynomial", "exponent": self.exponent}


@dataclass(frozen=True, slots=True)
class Hinge:
    """1 up to staleness b, then 1 / (a (staleness - b) + 1): Xie et al. 2019, arXiv:1903.03934, section 5.2."""

    a: float = 10.0
    b: float = 4.0

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``staleness`` setting."""
        return {"name": "hinge", "a": self.a, "b": self.b}


@dataclass(frozen=True, slots=True)
class Buffered:
    """No client waits for another: each ``size`` contributions make a step, also those to earlier rounds.

    FedBuff: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", arXiv:2106.06639.

    Attributes:
        size: contributions that make a step.
        staleness: what an older contribution counts.
        max_staleness: rounds that a contribution may be behind; None: as many as the server remembers.

    """

    size: int
    staleness: Staleness = field(default_factory=Polynomial)
    max_staleness: int | None = None
