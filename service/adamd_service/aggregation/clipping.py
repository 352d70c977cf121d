"""The norms of contributions, and what is done about large ones.

norm_i  = ||g_i||_2,  in the fixed order of `optim.gradients.norm`
scale_i = min(1, clip_norm / norm_i)        flat clipping: McMahan et al. 2018, arXiv:1710.06963, section 2
norm_i > k median_j(norm_j)                 is refused by the norm filter
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adamd.wire.dtypes import SLICE, Floats
from adamd_service.aggregation.kernels.protocol import Doubles, Kernels
from adamd_service.aggregation.lanes import Lanes, Work
from adamd_service.aggregation.values import Values


@dataclass(slots=True)
class RunningNorm:
    """The norm of a vector that is read in order, in slices of whole blocks of `optim.gradients.norm` but the last."""

    total: float = 0.0

    def add(self, values: Floats, kernels: Kernels) -> None:
        """Add the next slice."""
        self.total = kernels.add_squares(values, self.total)

    def add_and_scale(self, values: Floats, factor: float, total: Doubles, kernels: Kernels) -> None:
        """Add the next slice, and factor × values to `total`."""
        self.total = kernels.add_scaled_and_squares(values, factor, total, self.total)

    @property
    def norm(self) -> float:
        """The Euclidean norm so far."""
        return math.sqrt(self.total)


def read_norms(
    vectors: Sequence[Values], norms: Sequence[RunningNorm], like: Floats, kernels: Kernels, lanes: Lanes
) -> None:
    """Read each vector, of the length and dtype of `like`, for its norm; infinite beyond float64."""

    def begin() -> Work:
        into = np.empty(min(SLICE, like.size), like.dtype)

        def work(place: int) -> None:
            for start in range(0, like.size, SLICE):  # a multiple of the order's blocks
                norms[place].add(vectors[place].read(start, min(start + SLICE, like.size), into), kernels)

        return work

    lanes.each(len(vectors), begin)


def clip_scale(norm: float, most: float | None) -> float:
    """What a vector of this norm is multiplied by, so that it has at most norm `most`; None is no limit."""
    return 1.0 if most is None or norm <= most else most / norm


def beyond_median(found: Sequence[float], times: float | None) -> list[bool]:
    """Which norms are more than so many times their median (of an even count, the mean of the middle two)."""
    if times is None or not found:
        return [False] * len(found)
    limit = times * float(np.median(found))
    return [norm > limit for norm in found]
