"""Squared Euclidean distances between contributions, or from each to a weighted mean of them, in one pass.

    ||a_i x_i - a_j x_j||^2,        ||a_i x_i - sum_j f_j x_j||^2

Everything in float64. The order of a sum is part of its bits: the vector has GROUPS groups of blocks, the sum in each
goes as the norm's does (`optim.gradients.norm`), and the groups' sums are added in order. What a contribution leaves
out counts as 0: nothing learnt.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from adamd.wire.dtypes import SLICE, Floats
from adamd_service.aggregation.kernels.protocol import Doubles, Kernels
from adamd_service.aggregation.lanes import Lanes, Work
from adamd_service.aggregation.sections import Scaled
from adamd_service.optim.gradients.norm import BLOCK

GROUPS: Final = 16  # of them a thread takes one at a time
ROOM: Final = 1 << 24  # bytes of a thread's slices of all contributions, where they have to be read

# Adds what the slices of all contributions (a list, or OneByOne) bring to a group's sums; the last is room for a slice.
Add: TypeAlias = Callable[[Any, Doubles, Doubles], None]


def held_bytes(count: int) -> int:
    """The bytes of distances between so many contributions, while they are added."""
    return (GROUPS + 2) * count * count * np.dtype(np.float64).itemsize


def between(parts: Sequence[Scaled], like: Floats, kernels: Kernels, lanes: Lanes) -> Doubles:
    """The squared distances between the scaled contributions: (contributions, contributions), symmetric, 0 inside.

    like: a vector of the contributions' length and dtype.
    """
    count = len(parts)

    def add(slices: Sequence[Floats], sums: Doubles, center: Doubles) -> None:
        for i, values in enumerate(slices):
            center[:] = 0
            kernels.add_scaled(values, parts[i].scale, center)
            for j in range(i + 1, count):
                sums[i, j] = kernels.add_distance(slices[j], parts[j].scale, center, sums[i, j])

    upper = _summed(parts, like, (count, count), add, lanes)
    return upper + upper.T


def to_mean(
    parts: Sequence[Scaled], factors: Sequence[float], like: Floats, kernels: Kernels, lanes: Lanes
) -> Sequence[float]:
    """The squared distance from each scaled contribution to the sum of factor × values, which is never kept."""

    def add(slices: Iterable[Floats], sums: Doubles, center: Doubles) -> None:
        center[:] = 0
        for values, factor in zip(slices, factors, strict=True):
            kernels.add_scaled(values, factor, center)
        for i, values in enumerate(slices):
            sums[i] = kernels.add_distance(values, parts[i].scale, center, sums[i])

    together = like.itemsize * BLOCK * len(parts) <= ROOM
    found: list[float] = _summed(parts, like, (len(parts),), add, lanes, together=together).tolist()
    return found


@dataclass(frozen=True, slots=True)
class OneByOne:
    """The slices of so many contributions that they have no room together: each is read when it comes, every time."""

    parts: Sequence[Scaled]
    into: Floats
    start: int
    stop: int

    def __iter__(self) -> Iterator[Floats]:
        for part in self.parts:
            yield part.values.read(self.start, self.stop, self.into)


def _summed(
    parts: Sequence[Scaled], like: Floats, shape: tuple[int, ...], add: Add, lanes: Lanes, *, together: bool = True
) -> Doubles:
    """The sums of that shape over the whole vector, slice by slice and group by group."""
    blocks = -(-like.size // BLOCK)
    groups = np.zeros((GROUPS, *shape))
    fitting = ROOM // (like.itemsize * max(1, len(parts)))
    longest = min(SLICE, max(BLOCK, fitting - fitting % BLOCK))

    def begin() -> Work:
        room = [np.empty(min(longest, like.size), like.dtype) for _ in (parts if together else range(1))]
        center = np.empty(min(longest, like.size), np.float64)

        def work(group: int) -> None:
            first, last = (BLOCK * (blocks * edge // GROUPS) for edge in (group, group + 1))
            for start in range(first, min(last, like.size), longest):
                stop = min(start + longest, last, like.size)
                slices = (
                    [part.values.read(start, stop, into) for part, into in zip(parts, room, strict=True)]
                    if together
                    else OneByOne(parts, room[0], start, stop)
                )
                add(slices, groups[group], center[: stop - start])

        return work

    lanes.each(GROUPS, begin)
    total = np.zeros(shape)
    for sums in groups:
        total += sums
    return total
