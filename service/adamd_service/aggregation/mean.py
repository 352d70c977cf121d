"""The weighted mean, slice by slice: no more memory than a slice, however many contributions there are.

    out = sum_i w_i a_i x_i / sum_i w_i        w the weights, a the scales (clip and staleness)

The products are added in the contributions' order, in float64, and the quotient is rounded once. A stale contribution
is scaled and keeps its weight in the divisor, as in FedBuff (Nguyen et al. 2022, arXiv:2106.06639, algorithm 1), which
divides by K: else a round of equally stale ones would count as a fresh one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from adamd.wire.dtypes import SLICE, Floats
from adamd_service.aggregation.clipping import RunningNorm
from adamd_service.aggregation.kernels.protocol import Doubles, Kernels
from adamd_service.aggregation.lanes import Lanes, Turns, Work
from adamd_service.aggregation.sections import Scaled, Section, sections

Finish: TypeAlias = Callable[[Section, Doubles], None]


@dataclass(frozen=True, slots=True)
class InOnePass:
    """What happens in the pass that makes a mean.

    norms: are found of the contributions. written: is told up to which element `out` is final, in order.
    """

    norms: Sequence[RunningNorm]
    written: Callable[[int], None]


def write_mean(
    parts: Sequence[Scaled], out: Floats, kernels: Kernels, lanes: Lanes, beside: InOnePass | None = None
) -> None:
    """Write the weighted mean of the contributions that have an element into `out`; 0 where none has it.

    beside: what happens in the same pass; then all of them are whole, and each is read in order.
    """

    def divide(section: Section, total: Doubles) -> None:
        if section.members:
            total /= math.fsum(parts[place].weight for place in section.members)  # exact, on every Python

    _write(parts, out, divide, kernels, lanes, beside)


def write_sum(parts: Sequence[Scaled], out: Floats, finish: Finish, kernels: Kernels, lanes: Lanes) -> None:
    """Write what `finish` makes of the weighted sum into `out`. What a contribution leaves out counts as 0.

    finish: changes a slice's sum in place. Its sections are SLICE long, but for the last, whatever is present.
    """
    _write([replace(part, present=None) for part in parts], out, finish, kernels, lanes)


def _write(
    parts: Sequence[Scaled],
    out: Floats,
    finish: Finish,
    kernels: Kernels,
    lanes: Lanes,
    beside: InOnePass | None = None,
) -> None:
    cut, turns = sections(parts, out.size, SLICE), Turns(len(parts) + 1, lanes.most)  # the last thing is `out`

    def begin() -> Work:
        longest = min(SLICE, out.size)
        sums, into = np.empty(longest, np.float64), np.empty(longest, out.dtype)

        def work(index: int) -> None:
            section = cut[index]
            total = sums[: section.stop - section.start]
            total[:] = 0
            with turns.part():
                for place in section.members:
                    part, factor = parts[place], parts[place].weight * parts[place].scale
                    if beside is None:
                        kernels.add_scaled(part.values.read(section.start, section.stop, into), factor, total)
                    else:
                        turns.wait(place, index)
                        values = part.values.read(section.start, section.stop, into)
                        beside.norms[place].add_and_scale(values, factor, total, kernels)
                        turns.done(place, index)
                finish(section, total)
                out[section.start : section.stop] = total
                if beside is not None:
                    turns.wait(len(parts), index)
                    beside.written(section.stop)
                    turns.done(len(parts), index)

        return work

    lanes.each(len(cut), begin)
