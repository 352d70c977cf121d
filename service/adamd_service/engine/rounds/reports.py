"""Makes the documents of rounds: who contributed, what counted, and metrics weighted by the number of examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adamd_service.aggregation import Outcome
from adamd_service.rounds import (
    Counted,
    Evaluation,
    Frozen,
    KeptContribution,
    MemberName,
    RoundDocument,
    RoundsSettings,
    Standing,
)
from adamd_service.rounds.rules import deadline, state_of

Evaluated = tuple[str, float, Mapping[str, Any]]  # client, number of examples, metrics


def weighted(told: Iterable[tuple[float, Mapping[str, Any]]]) -> dict[str, float]:
    """Return the means of metrics, weighted by numbers of examples, summed in the order given.

    A metric's mean is over those that tell it; one that is null is not told.
    """
    sums: dict[str, tuple[float, float]] = {}
    for weight, metrics in told:
        for name, value in metrics.items():
            if value is not None:
                total, weights = sums.get(name, (0.0, 0.0))
                sums[name] = total + weight * float(value), weights + weight
    return {name: sums[name][0] / sums[name][1] for name in sorted(sums)}


def evaluation_of(evaluated: Sequence[Evaluated]) -> Evaluation | None:
    """Return what clients measured together; None where nobody has."""
    if not evaluated:
        return None
    metrics = weighted((num_examples, told) for _, num_examples, told in evaluated)
    return Evaluation(sum(num_examples for _, num_examples, _ in evaluated), metrics, len(evaluated))


def open_document(
    standing: Standing, settings: RoundsSettings, waiting: Sequence[KeptContribution], evaluated: Sequence[Evaluated]
) -> RoundDocument:
    """Return the document of the open round."""
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
        metrics=weighted((one.num_examples, one.metrics) for one in waiting),
        evaluation=evaluation_of(evaluated),
        contributions=tuple(
            Counted(one.client, one.num_examples, one.metrics, staleness=standing.number - one.round) for one in waiting
        ),
        deadline=deadline(standing, settings),
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
    """Return the document of a round whose step is about to be made; the same on every replica."""
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
        metrics=weighted((row.num_examples, row.metrics) for row in rows if row.counted),
        evaluation=evaluation_of(evaluated),
        contributions=tuple(rows),
        epsilon=epsilon,
        step=standing.number,
        deadline=deadline(standing, settings),
    )


def counted_members(members: Sequence[KeptContribution], document: RoundDocument) -> dict[str, str]:
    """Return each member's name to its digest and the step that it counted in, 0 where it was left out."""
    counted = {
        MemberName(document.round - row.staleness, row.client): bool(row.counted) for row in document.contributions
    }
    return {one.member.text: f"{one.digest} {document.round if counted[one.member] else 0}" for one in members}
