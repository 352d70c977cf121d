"""Divides the flat vector into parts, in each of which the same contributions have something to say.

A part is at most so long, and it does not depend on threads. Where every contribution is whole, so is every part.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from adamd_service.aggregation.values import Span, Values


@dataclass(frozen=True, slots=True)
class Scaled:
    """A contribution on its way into a reduction, which sees scale × values.

    weight: its own in a weighted reduction. scale: clip and staleness in one, in 0…1. present: the spans that it has,
    ascending and apart; None for all.
    """

    values: Values
    weight: float = 1.0
    scale: float = 1.0
    present: tuple[Span, ...] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Elements start…stop-1, and the places of the contributions that have them."""

    start: int
    stop: int
    members: tuple[int, ...]


def sections(parts: Sequence[Scaled], size: int, longest: int) -> list[Section]:
    """The parts' sections, which cover 0…size-1 in order; none is longer than `longest` elements."""
    borders = {0, size}
    for part in parts:
        for span in part.present or ():
            borders |= {span.start, span.stop}
    found = list[Section]()
    for start, stop in pairwise(sorted(borders)):
        members = tuple(place for place, part in enumerate(parts) if _has(part, start))
        joins = bool(found) and found[-1].members == members
        found.append(Section(found.pop().start if joins else start, stop, members))
    return [
        Section(first, min(first + longest, whole.stop), whole.members)
        for whole in found
        for first in range(whole.start, whole.stop, longest)
    ]


def _has(part: Scaled, element: int) -> bool:
    if part.present is None:
        return True
    place = bisect_right(part.present, element, key=lambda span: span.start) - 1
    return place >= 0 and element < part.present[place].stop
