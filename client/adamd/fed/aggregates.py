"""Aggregates: how a server makes one pseudo-gradient of a round's contributions, as settings of its rounds.

All of them take two bounds, which are applied to each contribution before it is aggregated:

    clip_norm      the largest Euclidean norm, over all tensors; a longer contribution is scaled down to it
    norm_filter    contributions of more than so many times the median norm are left out; above 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Aggregate(Protocol):
    """A way to aggregate."""

    @property
    def clip_norm(self) -> float | None:
        """The largest norm of a contribution; None: any."""

    @property
    def norm_filter(self) -> float | None:
        """The largest multiple of the median norm; None: any."""

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""

    def refusal(self, replies: int) -> str | None:
        """Say why it cannot aggregate so many replies; None: it can."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The weighted mean: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1."""

    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "mean"}

    def refusal(self, replies: int) -> str | None:
        """Return None: any number will do."""
        return None


@dataclass(frozen=True, slots=True)
class Median:
    """The median of each coordinate: Yin et al. 2018, arXiv:1803.01498, definition 1. It has no weights."""

    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "median"}

    def refusal(self, replies: int) -> str | None:
        """Return None: any number will do."""
        return None


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """Each coordinate's mean without its extremes: Yin et al. 2018, arXiv:1803.01498, definition 2. It has no weights.

    Attributes:
        trim: the share that is cut at either end, in [0, 0.5): floor(trim n) of n values.
        clip_norm: see the module.
        norm_filter: see the module.

    """

    trim: float = 0.2
    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "trimmed_mean", "trim": self.trim}

    def refusal(self, replies: int) -> str | None:
        """Say that none would be cut; None: one at least is, or none shall be."""
        if not 0 < self.trim * replies < 1:
            return None
        return (
            f"TrimmedMean({self.trim:g}) of {replies} replies cuts floor({self.trim:g} x {replies}) = 0 at either end, "
            f"so it is a plain mean, which one attacker can move anywhere. A trim of {1 / replies:.4g} cuts one of "
            f"{replies}; {self.trim:g} cuts one of {_least(self.trim)} replies or more"
        )


@dataclass(frozen=True, slots=True)
class Krum:
    """The contribution that is nearest to its neighbours: Blanchard et al. 2017, arXiv:1703.02757. It has no weights.

    Attributes:
        byzantine: how many contributions may be of attackers, f; it takes 2 f + 3 replies.
        clip_norm: see the module.
        norm_filter: see the module.

    """

    byzantine: int
    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "krum", "byzantine": self.byzantine}

    def refusal(self, replies: int) -> str | None:
        """Say that there are too few replies; None: there are enough."""
        return _too_few("Krum", self.byzantine, replies)


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """The weighted mean of the best ``keep`` contributions by Krum's score: the same paper, section 5.

    Attributes:
        byzantine: how many contributions may be of attackers, f; it takes 2 f + 3 replies.
        keep: how many contributions are averaged, m.
        clip_norm: see the module.
        norm_filter: see the module.

    """

    byzantine: int
    keep: int
    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "multi_krum", "byzantine": self.byzantine, "keep": self.keep}

    def refusal(self, replies: int) -> str | None:
        """Say that there are too few replies; None: there are enough."""
        if self.keep > replies:
            return f"MultiKrum(keep={self.keep}) averages {self.keep} replies, and {replies} come; keep fewer"
        return _too_few("MultiKrum", self.byzantine, replies)


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The point of the least weighted sum of distances: RFA, Pillutla et al. 2022, arXiv:1912.13445, algorithm 2.

    Attributes:
        iterations: of Weiszfeld's algorithm, from 1 to 100.
        smoothing: the least distance that is divided by.
        clip_norm: see the module.
        norm_filter: see the module.

    """

    iterations: int = 8
    smoothing: float = 1e-6
    clip_norm: float | None = None
    norm_filter: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``aggregate`` setting."""
        return {"name": "geometric_median", "iterations": self.iterations, "smoothing": self.smoothing}

    def refusal(self, replies: int) -> str | None:
        """Return None: any number will do."""
        return None


UNWEIGHTED = (Median, TrimmedMean, Krum)  # their equations have no weights


def _least(trim: float) -> int:
    """Return the smallest number of replies of which ``trim`` cuts one: as the server computes it, in float64."""
    replies = int(1 / trim)
    while int(trim * replies) < 1:
        replies += 1
    return replies


def _too_few(name: str, byzantine: int, replies: int) -> str | None:
    if replies >= 2 * byzantine + 3:  # Blanchard et al. 2017, proposition 1: 2 f + 2 < n
        return None
    return f"{name}(byzantine={byzantine}) takes 2 x {byzantine} + 3 = {2 * byzantine + 3} replies; {replies} come"
