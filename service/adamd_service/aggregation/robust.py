"""Reductions that look at whole contributions: Krum, Multi-Krum and the geometric median.

    Krum              score_i = sum of the n - f - 2 smallest ||y_i - y_j||^2, j ≠ i;  the lowest score is chosen
                      (Blanchard et al. 2017, arXiv:1703.02757, section 4; Multi-Krum, section 5: the `keep` lowest)
    geometric median  v = sum_i b_i y_i / sum_i b_i,  b_i = w_i / max(smoothing, ||v - y_i||), so many times
                      (smoothed Weiszfeld: Pillutla et al. 2022, arXiv:1912.13445, algorithm 2), from the weighted mean

y_i = a_i x_i are the scaled contributions. Of equal scores the first name's is chosen.
"""

import math
from collections.abc import Sequence

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation import distances
from adamd_service.aggregation.kernels.protocol import Doubles, Kernels
from adamd_service.aggregation.lanes import Lanes
from adamd_service.aggregation.sections import Scaled
from adamd_service.aggregation.settings import AggregationSettings, GeometricMedian, Krum, MultiKrum


def distance_bytes(settings: AggregationSettings, count: int) -> int:
    """The bytes that an aggregate of so many contributions holds beside a few vectors: distances between each two."""
    return distances.held_bytes(count) if isinstance(settings.aggregate, Krum | MultiKrum) else 0


def krum_scores(squared: Doubles, byzantine: int) -> list[float]:
    """Each contribution's score, from the squared distances between all; at least one neighbour counts."""
    count = len(squared)
    nearest = max(1, count - byzantine - 2)
    others = (np.sort(np.delete(squared[place], place)) for place in range(count))
    with np.errstate(over="ignore"):  # of float64 vectors; such a score is infinite
        return [float(np.cumsum(row[:nearest])[-1]) for row in others]


def lowest(scores: Sequence[float], keep: int) -> list[int]:
    """The places of the `keep` lowest scores, in the contributions' order."""
    return sorted(sorted(range(len(scores)), key=lambda place: (scores[place], place))[:keep])


def krum(parts: Sequence[Scaled], byzantine: int, keep: int, like: Floats, kernels: Kernels, lanes: Lanes) -> list[int]:
    """The places of the contributions that Krum (keep 1) or Multi-Krum chooses; all, where there are no more."""
    if len(parts) <= keep:
        return list(range(len(parts)))
    return lowest(krum_scores(distances.between(parts, like, kernels, lanes), byzantine), keep)


def geometric_shares(
    parts: Sequence[Scaled], settings: GeometricMedian, like: Floats, kernels: Kernels, lanes: Lanes
) -> list[float]:
    """The share of each contribution in the geometric median; together 1. Each iteration reads all of them once."""
    weights = _shares([part.weight for part in parts])
    shares = weights
    for _ in range(settings.iterations):
        factors = [share * part.scale for share, part in zip(shares, parts, strict=True)]
        squared = distances.to_mean(parts, factors, like, kernels, lanes)
        near = [max(settings.smoothing, math.sqrt(square)) for square in squared]
        shares = _shares([weight / distance for weight, distance in zip(weights, near, strict=True)])
    return shares


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    if total == 0:  # all are infinitely far away, which float64 vectors may be: then nothing tells them apart
        return [1 / len(weights)] * len(weights)
    return [weight / total for weight in weights]
