"""Frozen records of a round: what the store keeps of it, and what is told about it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from adamd_service.aggregation import Kind
from adamd_service.records import BulkRef

State = Literal["open", "overdue", "closed"]
ClosedBy = Literal["quorum", "deadline", "hand"]
Evaluated = tuple[str, float, Mapping[str, Any]]  # client, number of examples, metrics
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class KeptContribution:
    """One client's contribution as the store keeps it until its round has made its step.

    Attributes:
        round: the round that it was made for: it was taken at the parameters of step ``round`` - 1.
        client: whose it is.
        attempt: names its bytes in the store.
        digest: tells a repetition from another contribution; it covers body, kind and number of examples.
        body_digest: XXH3-128 (hex) of the body, as `rules.digest_start` begins it.
        kind: what the numbers are: trained - pulled, trained, or a gradient.
        num_examples: the client's weight.
        metrics: what it measured.
        encoding, dtype: of the body, as a step's.
        present: the tensors that the body has, by index; None: all that clients send.
        nbytes: length of the body.
        bulk: where it lies, where it is not small.
        received_at: Unix seconds, by the clock of the server that took it: for people, nothing is decided by it.

    """

    round: int
    client: str
    attempt: str
    digest: str
    body_digest: str
    kind: Kind
    num_examples: float
    encoding: str
    dtype: str
    nbytes: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    present: tuple[int, ...] | None = None
    bulk: BulkRef = field(default_factory=BulkRef)
    received_at: float = 0.0

    @property
    def inline(self) -> bool:
        """Whether it lies in the store's own key."""
        return not self.bulk.chunks and not self.bulk.extent

    @property
    def member(self) -> MemberName:
        """Its name within the session."""
        return MemberName(self.round, self.client)


@dataclass(frozen=True, slots=True, order=True)
class MemberName:
    """Names a contribution within its session."""

    round: int
    client: str

    @property
    def text(self) -> str:
        """As the store writes it."""
        return f"{self.round}:{self.client}"


@dataclass(frozen=True, slots=True)
class Frozen:
    """A round that is being closed: its members are fixed, whichever replica goes on.

    Attributes:
        token: names this freezing; a commit compares it.
        closed_by: why.
        at: Unix seconds, by the store's clock.
        replica: the process that froze it.
        members: its contributions.

    """

    token: str
    closed_by: ClosedBy
    at: float
    replica: str
    members: tuple[MemberName, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a round was begun again: of what had come its step cannot be made, however often that is tried.

    ``code`` and ``detail`` are of `adamd.errors`.
    """

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the open round stands. Times are Unix seconds, by the store's clock.

    Attributes:
        number: the round, which will make the step of that number.
        incarnation, chain, step: the session's, at the same moment.
        opened_at: when it opened.
        first_at: when its first contribution came; None: none has.
        now: the store's clock.
        tries: how often it was cancelled.
        config: the owner's object, as it was when the round opened.
        drawn: who is asked has been drawn.
        cohort: the clients that are asked to train; None: all.
        evaluators: those that are asked to evaluate; None: none.
        received: contributions that wait to be counted.
        frozen: it is being closed.
        clip_norm: the clip of a privacy that adapts; None: as the settings say.
        failure: why it was begun again, where its last try failed.

    """

    number: int
    incarnation: str
    chain: str
    step: int
    opened_at: float
    now: float
    config: Mapping[str, Any]
    first_at: float | None = None
    tries: int = 0
    drawn: bool = False
    cohort: tuple[str, ...] | None = None
    evaluators: tuple[str, ...] | None = None
    received: int = 0
    frozen: Frozen | None = None
    clip_norm: float | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """One contribution in a round's document.

    ``counted`` is None while the round is open; ``reason`` says why it was not counted: one of `aggregation.Reason`, or
    "damaged". ``weight``, ``norm`` and ``clipped`` are `aggregation.Member`'s.
    """

    client: str
    num_examples: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    weight: float | None = None
    norm: float | None = None
    clipped: bool = False
    staleness: int = 0
    counted: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What clients measured at the parameters of a round's base step: metrics, weighted by ``num_examples``."""

    num_examples: float
    metrics: Mapping[str, float]
    clients: int = 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a document does not tell, so that it stays within its bound.

    Attributes:
        contributions: how many have no row.
        metrics: how many rows are without what their client measured.
        names: how many metrics have no mean, of contributions and evaluations together.

    """

    contributions: int = 0
    metrics: int = 0
    names: int = 0


@dataclass(frozen=True, slots=True)
class RoundDocument:
    """What is told about a round. Times are Unix seconds; ``step`` is None until it has made its step.

    ``failure``: of its last try, where one has failed.
    """

    round: int
    state: State
    base_step: int
    opened_at: float
    closed_at: float | None
    closed_by: ClosedBy | None
    received: int
    wanted: int
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    evaluation: Evaluation | None
    contributions: tuple[Counted, ...]
    epsilon: float | None = None
    step: int | None = None
    deadline: float | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    failure: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, times in Unix seconds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("evaluation", "left_out", "failure"):
            values[name] = None if values[name] is None else asdict(values[name])
        return values | {"contributions": [asdict(one) for one in self.contributions]}


@dataclass(frozen=True, slots=True)
class RoundEvent:
    """Something that happened to a session.

    Attributes:
        kind: "step" (the session has moved), "round" (one has opened, closed or become overdue), "contribution".
        id: names it within the session; opaque to readers.
        data: JSON values.

    """

    kind: Literal["step", "round", "contribution"]
    id: str
    data: Mapping[str, Any]
