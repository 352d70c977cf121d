"""Typed calls and answers of rounds, between the transports and the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from adamd.wire.encodings import RAW
from adamd_service.aggregation import Kind
from adamd_service.engine.calls import Decode, RequestBody

CLIENT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
Outcome = Literal["accepted", "duplicate"]
TaskKind = Literal["train", "evaluate", "stop"]
MOST_EXAMPLES: Final = 2.0**53  # of a client: so many weights have a finite sum
LEAST_EXAMPLES: Final = 1 / MOST_EXAMPLES  # of a client: a denormal weight would round its contribution to nothing
EXAMPLES_WORDS: Final = "wanted a number above 0 (2^-53 at least), at most 2^53"
LONGEST_WAIT: Final = 60.0  # seconds that a call may wait for something to happen


@dataclass(frozen=True, slots=True)
class ContributeCall:
    """A contribution as it was sent; its body is read as a step's (`StepCall`).

    Attributes:
        ref: the session's id or name.
        round: the round that it was made for.
        client: whose it is, matching `CLIENT`.
        body, dtype, decode, encoding, tensors: as in `StepCall`.
        kind: what the numbers are: trained - pulled, trained, or a gradient.
        num_examples: how many examples it was made from; finite and above 0.
        metrics: what the client measured.
        if_match: the chain of step ``round`` - 1 that it builds on.

    """

    ref: str
    round: int
    client: str
    body: RequestBody
    dtype: str | None = None
    decode: Decode | None = None
    encoding: str = RAW
    tensors: tuple[str, ...] = ()
    kind: Kind = "delta"
    num_examples: float = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Contributed:
    """The contribution is durable: just now, or (duplicate) earlier. ``step`` is the session's."""

    outcome: Outcome
    round: int
    received: int
    wanted: int
    step: int


@dataclass(frozen=True, slots=True)
class EvaluateCall:
    """What a client measured at the parameters of step ``round`` - 1."""

    ref: str
    round: int
    client: str
    num_examples: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """What a client is asked to do now.

    Attributes:
        kind: "train"; "evaluate": measure the parameters of ``base_step``; "stop": the last round is over.
        round: the open round.
        base_step: the step at whose parameters the work is done.
        chain: of that step.
        selected: whether the client is asked; None where no client asked.
        contributed: whether its contribution to this round is there.
        config: the owner's object, fixed when the round opened.
        deadline: Unix seconds; None: none, or no contribution has come yet.
        received, wanted: contributions that are there, and those that make the step.
        private: the tensors that stay with the client, by name.

    """

    kind: TaskKind
    round: int
    base_step: int
    chain: str
    selected: bool | None
    contributed: bool
    config: Mapping[str, Any]
    deadline: float | None
    received: int
    wanted: int
    private: tuple[str, ...] = ()
