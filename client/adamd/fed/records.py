"""Records of rounds: what a server tells of them, and what it answers to a contribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["open", "overdue", "closed"]
ClosedBy: TypeAlias = Literal["quorum", "deadline", "hand"]
Outcome: TypeAlias = Literal["accepted", "duplicate", "too_late", "conflict", "not_selected", "history_lost"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a reply.

    Attributes:
        outcome: "accepted"; "duplicate": this very reply had come before; "too_late": the round was closed already;
            "conflict": the server has another reply of this client to this round; "not_selected": this round does not
            ask this client (any more); "history_lost": the store went back, and the round is not open any more.
        counted: True: it takes part in the round (its aggregate may still leave it out; `Round.contributions` tells).
            False: it does not, and nothing has to be done about that. None: nobody knows any more.
        round: the round that it was for.
        current: the session's round now, as far as the answer tells.
        received: replies that the round has, where it is open.
        wanted: replies that close it.
        detail: the server's words, where it was not accepted.

    """

    outcome: Outcome
    counted: bool | None
    round: int
    current: int | None = None
    received: int | None = None
    wanted: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One client's part in a round. ``weight`` to ``reason`` are known when the round is closed.

    Attributes:
        client: its name.
        num_examples: how many examples it was made from.
        weight: what it counted beside the others: num_examples, or 1, bounded and made less by its staleness.
        norm: its Euclidean norm, before it was clipped.
        clipped: it was longer than the clip norm.
        staleness: how many rounds it was behind.
        counted: it is part of the step.
        reason: why not: "norm_filter": its norm is beyond the filter; "not_chosen": Krum chose others; "too_stale";
            "superseded": in a private round a newer one of the same client counts; "damaged": in the store.

    """

    client: str
    num_examples: float
    weight: float | None = None
    norm: float | None = None
    clipped: bool | None = None
    staleness: int | None = None
    counted: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What clients measured at a round's base step: metrics, their means weighted by ``num_examples``."""

    num_examples: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the server began a round again, at its ``opened_at``: of the replies that it had, no step can be made.

    Attributes:
        code: of an error, as "bad_gradient" or "too_few_contributions".
        detail: the server's words.

    """

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Round:
    """A round, as the server tells of it.

    Attributes:
        round: its number, from 1; it makes the step of that number.
        state: "open", "closed", or "overdue": its deadline is over, and too few have replied.
        base_step: the step whose parameters its clients train from.
        opened_at: when it opened.
        closed_at: when it was closed.
        closed_by: what closed it: its quorum, its deadline, or a hand.
        received: replies that came.
        wanted: replies that close it at once.
        config: the owner's object, as its clients got it.
        metrics: of the replies, their means weighted by num_examples.
        evaluation: of the parameters at ``base_step``; None: nobody was asked.
        contributions: by client.
        epsilon: the privacy spent up to and with it; None: there is none.
        step: the step that it made; None: none yet.
        failure: why its last try failed, and it asks its clients anew; None: none has.
        left_out: how many ``contributions``, ``metrics`` of these, and ``names`` of metrics are not told: a round has
            at most 1 MiB. Empty where all are.
        document: the whole of it, as it came.

    """

    round: int
    state: State
    base_step: int
    opened_at: datetime | None
    closed_at: datetime | None
    closed_by: ClosedBy | None
    received: int
    wanted: int
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    evaluation: Evaluation | None
    contributions: tuple[Contribution, ...]
    epsilon: float | None = None
    step: int | None = None
    failure: Failure | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
