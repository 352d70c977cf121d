"""Combines a round's members: the gradient of the tensors that are stepped, and the values of those that are not.

Averaged tensors (running statistics) become the weighted mean of what clients have, those that carry (counters) the
largest, where w are the weights that the members got:

    averaged   p - sum(w g) / sum(w)      which is the mean of trained, where every client pulled p
    carry      p - min(g)                 which is the largest of trained

with g = pulled - trained, sums in float64 in the order of clients' names, rounded once. They are neither clipped nor
filtered, and do not count in a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamd.wire.buffers import BufferPool
from adamd.wire.dtypes import Floats
from adamd_service.aggregation import Contribution as Given
from adamd_service.aggregation import Outcome, Span, Values, aggregate_round
from adamd_service.engine.rounds.values import Opened, spans_of
from adamd_service.records import Spec
from adamd_service.rounds import KeptContribution, MemberName, RoundsSettings


@dataclass(frozen=True, slots=True)
class Combined:
    """What a round's members make together.

    Attributes:
        body: the gradient of the stepped tensors, joined, then the values of the assigned ones; session dtype.
        stepped: places of the tensors that the gradient has.
        assigned: places of those whose values follow.
        outcome: what became of each member.

    """

    body: Floats
    stepped: tuple[int, ...]
    assigned: tuple[int, ...]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Masked:
    """Values with some spans read as 0: what is not stepped counts in no norm."""

    values: Values
    spans: Sequence[Span]

    def read(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Values`."""
        here = into[: stop - start]
        here[:] = self.values.read(start, stop, here)
        for span in self.spans:
            here[max(span.start - start, 0) : max(span.stop - start, 0)] = 0
        return here


@dataclass(frozen=True, slots=True)
class Sent:
    """One member's values, and the tensors that it has."""

    contribution: KeptContribution
    values: Values
    present: frozenset[int] | None

    def key(self, number: int) -> tuple[str, int]:
        """Return its client and its staleness in round ``number``, which no two members share."""
        return self.contribution.client, number - self.contribution.round

    def has(self, place: int) -> bool:
        """Say whether it has a tensor."""
        return self.present is None or place in self.present


def combine(
    spec: Spec,
    settings: RoundsSettings,
    number: int,
    members: Sequence[KeptContribution],
    opened: Mapping[MemberName, Opened],
    base: Floats | None,
    pool: BufferPool,
    out: Floats,
    written: Callable[[int], None],
    **more: Any,
) -> Combined:
    """Combine the members of round ``number`` that are ``opened``, in ``out`` if every tensor is stepped.

    ``base``: the parameters that the round begins with, where tensors are averaged or carry. ``written``, ``more``: for
    `aggregate_round`. Raises what that raises.
    """
    layout, beside = spec.layout, sorted((*settings.averaged, *settings.carry))
    masked = spans_of(layout, beside) if beside else None
    sent = _sent(members, opened)
    given = [
        Given(
            one.contribution.client,
            one.values if masked is None else Masked(one.values, masked),
            one.contribution.num_examples,
            number - one.contribution.round,
            spans_of(layout, one.contribution.present),
        )
        for one in sent
    ]
    if masked is None:
        more["written"] = written
    outcome = aggregate_round(given, settings.aggregation, out, **more)
    weights = {(one.client, one.staleness): one.weight for one in outcome.members if one.counted}
    used = [(one, weights[one.key(number)]) for one in sent if one.key(number) in weights]
    # A private round tells of no tensor whether it came: noise is stepped where nobody sent anything.
    always = settings.aggregation.privacy is not None
    there = [
        (always and place not in settings.private) or any(one.has(place) for one, _ in used)
        for place in range(len(layout.tensors))
    ]
    stepped = tuple(place for place in range(len(layout.tensors)) if there[place] and place not in beside)
    assigned = tuple(place for place in beside if there[place])
    if len(stepped) == len(layout.tensors):
        return Combined(out, stepped, (), outcome)
    parts = [out[span.start : span.stop] for span in spans_of(layout, stepped) or ()]
    for place in assigned:
        assert base is not None
        span = Span(layout.bounds[place], layout.bounds[place + 1])
        having = [(one.values, weight) for one, weight in used if one.has(place)]
        merge = _largest if place in settings.carry else _mean
        parts.append(merge(having, span, base[span.start : span.stop]))
    size = sum(map(len, parts))
    body: Floats = pool.lease(size * out.itemsize).view(out.dtype)
    np.concatenate(parts or [np.empty(0, out.dtype)], out=body)
    return Combined(body, stepped, assigned, outcome)


def _sent(members: Sequence[KeptContribution], opened: Mapping[MemberName, Opened]) -> list[Sent]:
    return [
        Sent(
            one,
            opened[one.member].values,
            None if one.present is None else frozenset(one.present),
        )
        for one in sorted(members, key=lambda one: (one.client, one.round))
        if one.member in opened
    ]


def _mean(having: Sequence[tuple[Values, float]], span: Span, base: Floats) -> Floats:
    total, weights, into = np.zeros(len(base), np.float64), 0.0, np.empty_like(base)
    for values, weight in having:
        total += weight * values.read(span.start, span.stop, into).astype(np.float64)
        weights += weight
    return (base.astype(np.float64) - total / weights).astype(base.dtype)


def _largest(having: Sequence[tuple[Values, float]], span: Span, base: Floats) -> Floats:
    least, into = np.full(len(base), np.inf, base.dtype), np.empty_like(base)
    for values, _ in having:
        np.minimum(least, values.read(span.start, span.stop, into), out=least)
    moved: Floats = base - least
    return moved
