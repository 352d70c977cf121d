"""What a session remembers of its steps besides its arrays: small, told in its document, committed with each step.

It is made from what a step brings (its loss, its gradient's size) and from what was there before, so that every replica
has the same. A record says whether its step made the parameters before it the best ones; a replay decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

MOST = 2**53
LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Progress:
    """Losses and norms so far; None: not told, or nobody asked.

    loss: of the last step that told one. lowest: of all. lowest_step: whose parameters have it; the loss of step n is
    measured at the parameters of step n-1. reference, stale: the last loss that was progress, and how many were none
    since. norm, first_norm: of the gradient of the last step, and of the first that was measured. stalls: the largest
    magnitude of the last step's gradient, by the name of what is wrong with it (`stalls`).
    """

    loss: float | None = None
    lowest: float | None = None
    lowest_step: int | None = None
    reference: float | None = None
    stale: int = 0
    norm: float | None = None
    first_norm: float | None = None
    stalls: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What is there, as JSON values; {} where nothing is."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        counted = {"stale", "stalls"}  # which begin as nothing; a loss of 0 is one
        return {name: value for name, value in values.items() if value is not None and (value or name not in counted)}

    def told(self, number: int, loss: float, tolerance: float) -> Self:
        """After a loss: that of step `number`. tolerance: what is progress, of the reference's magnitude."""
        improved = self.reference is None or loss < self.reference - tolerance * abs(self.reference)
        lower = self.lowest is None or loss < self.lowest
        return replace(
            self,
            loss=loss,
            lowest=loss if lower else self.lowest,
            lowest_step=number - 1 if lower else self.lowest_step,
            reference=loss if improved else self.reference,
            stale=0 if improved else self.stale + 1,
        )

    def measured(self, norm: float) -> Self:
        """After a gradient of this norm."""
        return replace(self, norm=norm, first_norm=norm if self.first_norm is None else self.first_norm)


def from_json(raw: Any) -> Progress:
    """A progress as `to_json` wrote it. Raises ValueError for anything else: it may come from a store or a client."""
    if not isinstance(raw, dict) or not raw.keys() <= {one.name for one in fields(Progress)}:
        raise ValueError("no progress: wanted an object of loss, lowest, norm, …")
    counts: Any = {name: _count(name, raw[name]) for name in ("lowest_step", "stale") if name in raw}
    stalls = raw.get("stalls", {})
    if not isinstance(stalls, dict) or len(stalls) > 8:
        raise ValueError("stalls: wanted an object")
    numbers: Any = {name: _number(name, value) for name, value in raw.items() if name not in (*counts, "stalls")}
    return Progress(**numbers, **counts, stalls={str(name): _number(name, value) for name, value in stalls.items()})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{name}: wanted a finite number")
    return float(value)


def _count(name: str, value: Any) -> int:
    number = _number(name, value)
    if number % 1 or not 0 <= number <= MOST:
        raise ValueError(f"{name}: wanted a count")
    return int(number)
