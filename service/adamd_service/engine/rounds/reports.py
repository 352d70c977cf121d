"""Makes the documents of rounds: who contributed, what counted, and metrics weighted by the number of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from adamd_service.aggregation import Outcome
from adamd_service.rounds import (
    Counted,
    Evaluation,
    Frozen,
    KeptContribution,
    LeftOut,
    MemberName,
    RoundDocument,
    RoundsSettings,
    Standing,
)
from adamd_service.rounds.documents import Evaluated
from adamd_service.rounds.rules import deadline, state_of
from adamd_service.store.serialization import dumps

MOST_BYTES: Final = 1024 * 1024  # of a document, as the store keeps it
SUM_BYTES: Final = 64  # that the store adds to it
MOST_NAMES: Final = 64  # of metrics: as many as one client may tell


def weighted(told: Iterable[tuple[float, Mapping[str, Any]]]) -> tuple[dict[str, float], int]:
    """Return the means of metrics, weighted by numbers of examples, summed in the order given; how many are left out.

    A metric's mean is over those that tell it; one that is null is not told. Of too many metrics those stay that most
    tell: clients may all have other names for theirs.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in told:
        for name, value in metrics.items():
            if value is not None:
                pairs.setdefault(name, []).append((weight, float(value)))
    kept = sorted(pairs, key=lambda name: (-len(pairs[name]), name))[:MOST_NAMES]
    return {name: _mean(pairs[name]) for name in sorted(kept)}, len(pairs) - len(kept)


def bounded(document: RoundDocument) -> RoundDocument:
    """Return a document with at most `MOST_BYTES`, which says what it leaves out.

    The longest metrics go first, so that whoever sends long ones loses its own, then the last rows.
    """
    over = len(dumps(document.to_json())) + SUM_BYTES - MOST_BYTES
    if over <= 0:
        return document
    rows = list(document.contributions)
    lengths = [len(dumps(row.metrics)) for row in rows]
    for place in sorted(range(len(rows)), key=lambda place: -lengths[place]):
        if over <= 0 or not rows[place].metrics:
            break
        rows[place] = replace(rows[place], metrics={})
        over -= lengths[place] - len("{}")
    kept = len(rows)
    while over > 0 and kept:
        kept -= 1
        over -= len(dumps(asdict(rows[kept]))) + len(",")
    bare = sum(row.metrics != came.metrics for row, came in zip(rows[:kept], document.contributions, strict=False))
    left_out = replace(document.left_out, contributions=len(rows) - kept, metrics=bare)
    return replace(document, contributions=tuple(rows[:kept]), left_out=left_out)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the mean of (weight, value); finite where the values are."""
    weights = sum(weight for weight, _ in pairs)
    total = sum(weight * value for weight, value in pairs)
    if math.isfinite(total):
        return total / weights
    return sum(weight / weights * value for weight, value in pairs)


def evaluation_of(evaluated: Sequence[Evaluated]) -> tuple[Evaluation | None, int]:
    """Return what clients measured together, None where nobody has; and how many metrics are left out."""
    if not evaluated:
        return None, 0
    metrics, left_out = weighted((num_examples, told) for _, num_examples, told in evaluated)
    return Evaluation(sum(num_examples for _, num_examples, _ in evaluated), metrics, len(evaluated)), left_out


def open_document(
    standing: Standing, settings: RoundsSettings, waiting: Sequence[KeptContribution], evaluated: Sequence[Evaluated]
) -> RoundDocument:
    """Return the document of the open round, with every row."""
    metrics, unsaid = weighted((one.num_examples, one.metrics) for one in waiting)
    evaluation, unmeasured = evaluation_of(evaluated)
    return RoundDocument(
        round=standing.number,
        state=state_of(standing, settings),
        base_step=standing.step,
        opened_at=standing.opened_at,
        closed_at=None,
        closed_by=None,
        received=len(waiting),
        wanted=settings.quorum,
        config=standing.config,
        metrics=metrics,
        evaluation=evaluation,
        contributions=tuple(
            Counted(one.client, one.num_examples, one.metrics, staleness=standing.number - one.round) for one in waiting
        ),
        deadline=deadline(standing, settings),
        left_out=LeftOut(names=unsaid + unmeasured),
        failure=standing.failure,
    )


def closed_document(
    standing: Standing,
    frozen: Frozen,
    settings: RoundsSettings,
    members: Sequence[KeptContribution],
    outcome: Outcome,
    evaluated: Sequence[Evaluated],
    epsilon: float | None,
) -> RoundDocument:
    """Return the document of a round whose step is about to be made, with every row; the same on every replica."""
    made = {(one.client, one.staleness): one for one in outcome.members}
    rows = []
    for one in members:
        staleness = standing.number - one.round
        found = made.get((one.client, staleness))
        if found is None:
            damaged = Counted(one.client, one.num_examples, one.metrics, weight=0.0, staleness=staleness)
            rows.append(replace(damaged, counted=False, reason="damaged"))
        else:
            rows.append(
                Counted(
                    client=one.client,
                    num_examples=one.num_examples,
                    metrics=one.metrics,
                    weight=found.weight,
                    norm=found.norm,
                    clipped=found.clipped,
                    staleness=staleness,
                    counted=found.counted,
                    reason=found.reason,
                )
            )
    metrics, unsaid = weighted((row.num_examples, row.metrics) for row in rows if row.counted)
    evaluation, unmeasured = evaluation_of(evaluated)
    return RoundDocument(
        round=standing.number,
        state="closed",
        base_step=standing.step,
        opened_at=standing.opened_at,
        closed_at=frozen.at,
        closed_by=frozen.closed_by,
        received=len(members),
        wanted=settings.quorum,
        config=standing.config,
        metrics=metrics,
        evaluation=evaluation,
        contributions=tuple(rows),
        epsilon=epsilon,
        step=standing.number,
        deadline=deadline(standing, settings),
        left_out=LeftOut(names=unsaid + unmeasured),
        failure=standing.failure,
    )


def counted_members(members: Sequence[KeptContribution], document: RoundDocument) -> dict[str, str]:
    """Return each member's name to its digest and the step that it counted in, 0 where it was left out."""
    counted = {
        MemberName(document.round - row.staleness, row.client): bool(row.counted) for row in document.contributions
    }
    return {one.member.text: f"{one.digest} {document.round if counted[one.member] else 0}" for one in members}
