"""Coordinate-wise order statistics: the median and the trimmed mean, by a sorting network over many columns at once.

    median        mean of the middle one or two of a_i x_i
    trimmed mean  mean of all but the floor(trim n) smallest and as many largest of a_i x_i

Each a_i x_i is rounded to the session's dtype; the mean of what is left is added in ascending order, in float64, and
rounded once. A network (Batcher's merge exchange: Knuth, The Art of Computer Programming 3, 5.2.2 M) compares whole
rows, so that a processor sorts eight columns or more at once; sorting each by itself would wait for a branch each time.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation.kernels.protocol import Kernels, Network
from adamd_service.aggregation.lanes import Lanes, Work
from adamd_service.aggregation.sections import Scaled, sections

ROOM = 1 << 18  # bytes of a thread's rows: they stay in its processor's cache while they are sorted
NARROWEST = 256  # elements of a row at least, however many rows there are


def write_median(parts: Sequence[Scaled], out: Floats, kernels: Kernels, lanes: Lanes) -> None:
    """Write the median of the contributions that have an element into `out`; 0 where none has it."""
    _write(parts, 0.5, out, kernels, lanes)


def write_trimmed_mean(parts: Sequence[Scaled], trim: float, out: Floats, kernels: Kernels, lanes: Lanes) -> None:
    """Write the trimmed mean of the contributions that have an element into `out`; 0 where none has it.

    trim: the share to cut at either end, 0 or more and below 0.5.
    """
    _write(parts, trim, out, kernels, lanes)


def _write(parts: Sequence[Scaled], trim: float, out: Floats, kernels: Kernels, lanes: Lanes) -> None:
    longest = max(NARROWEST, ROOM // (out.itemsize * max(1, len(parts))))
    cut = sections(parts, out.size, longest)

    def begin() -> Work:
        width = min(longest, out.size)
        into, sums = np.empty(width, out.dtype), np.empty(width, np.float64)
        room = np.empty(len(parts) * width, out.dtype)

        def work(index: int) -> None:
            section = cut[index]
            size, count = section.stop - section.start, len(section.members)
            rows, total = room[: count * size].reshape(count, size), sums[:size]
            for row, part in zip(rows, (parts[place] for place in section.members), strict=True):
                kernels.write_scaled(part.values.read(section.start, section.stop, into), part.scale, row)
            first, last = kept(count, trim)
            kernels.sort_columns(rows, network(count, first, last))
            total[:] = 0
            for row in rows[first:last]:
                kernels.add_scaled(row, 1.0, total)
            out[section.start : section.stop] = total / max(1, last - first)

        return work

    lanes.each(len(cut), begin)


def kept(count: int, trim: float) -> tuple[int, int]:
    """The ranks first…last-1 of `count` that a cut of `trim` at either end leaves; 0.5 leaves the median's."""
    cut = int(trim * count) if trim < 0.5 else max(0, count - 1) // 2
    return cut, count - cut


@lru_cache(maxsize=64)  # each as long as count (log count)^2 / 4 pairs, and counts differ from round to round
def network(count: int, first: int, last: int) -> Network:
    """The comparisons that bring ranks first…last-1 of `count` values into their places, in order; read-only."""
    wanted, needed = set(range(first, last)), list[tuple[int, int]]()
    for low, high in reversed(merge_exchange(count)):
        if low in wanted or high in wanted:
            wanted |= {low, high}
            needed.append((low, high))
    made = np.array(needed[::-1], np.int64).reshape(-1, 2)
    made.flags.writeable = False
    return made


def merge_exchange(count: int) -> list[tuple[int, int]]:
    """Knuth's algorithm M: the comparisons that sort `count` values, the smaller to the first place of each pair."""
    pairs = list[tuple[int, int]]()
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p and count > 1:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return pairs
