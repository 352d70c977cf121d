"""Operations and their results as records, the same over every transport.

A transport takes an operation and returns its result, or raises an `AdamdError`. Every operation is safe to repeat: a
step carries its number and its history, a creation its key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from adamd.errors import InvalidRequest, TransportError, UnknownSession, clean
from adamd.fed.records import Round
from adamd.sansio.arrays import Parameters, TensorPart, pieces
from adamd.wire import headers, safetensors
from adamd.wire.dtypes import ITEMSIZE
from adamd.wire.layout import Layout

_REF = re.compile(headers.REF_PATTERN)
_CLIENT = re.compile(headers.CLIENT_PATTERN)
_CHAIN = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
OTHER_PROTOCOL = "other protocol"  # the phase of an attempt that met HTTP in gRPC's place, or the other way round
ARRAYS = 4  # of a state, about: only the server knows how many its optimizer keeps


# -- results


@dataclass(frozen=True, slots=True)
class Standing:
    """A session as the server describes it. ``document`` is the whole of it."""

    id: str
    name: str | None
    step: int
    chain: str
    layout: Layout
    dtype: str
    settings: dict[str, Any]
    diverged: bool
    document: dict[str, Any]
    stop: str | None = None


class Stall(NamedTuple):
    """Why a session stalls silently, and the eps that would help; None: none does."""

    code: str
    eps: float | None


@dataclass(frozen=True, slots=True)
class Stepped:
    """The step, chain and flags of an answer with parameters, which are in the operation's ``into``."""

    step: int
    chain: str
    replayed: bool
    diverged: bool
    overflowed: int = 0  # finite parameters that the answer's dtype made infinite
    stop: str | None = None  # the rule that says stop
    stalls: tuple[Stall, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of the list of sessions, and where the next one begins."""

    sessions: list[dict[str, Any]]
    token: str | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a server asks a client of a session with rounds to do.

    Attributes:
        kind: "train"; "evaluate": measure the parameters of ``base_step``; "stop": the last round is over.
        chain: of ``base_step``; None: whatever it is.
        private: names or patterns of tensors that stay with the client.
        document: all of it.

    """

    kind: str
    round: int
    base_step: int
    chain: str | None
    selected: bool
    contributed: bool
    private: tuple[str, ...]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Received:
    """A contribution or an evaluation is durable; ``duplicate``: it was before. ``step`` is the session's."""

    duplicate: bool
    step: int | None
    received: int | None = None
    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class RoundsPage:
    """A piece of the list of rounds, oldest first, and where the next one begins."""

    rounds: tuple[Round, ...]
    token: str | None


# -- bodies


@dataclass(frozen=True, slots=True)
class Body:
    """Numbers on their way to a server.

    Attributes:
        pieces: the bytes, uncopied: the flat vector in layout order as ``encoding`` writes it.
        dtype: of the vector's elements; None where it has none.
        encoding: how a gradient's body is written.
        parts: where tensors are left out, or come in several dtypes: those that are there, instead of ``pieces``.
        complete: no tensor is left out.

    """

    pieces: tuple[memoryview, ...] = ()
    dtype: str | None = None
    encoding: str = "raw"
    parts: tuple[TensorPart, ...] = ()
    complete: bool = True


def body_of(parts: tuple[TensorPart, ...], layout: Layout) -> Body:
    """Return the flat vector where all tensors are there in one dtype, else the tensors by name."""
    kinds = {item.dtype for item in parts}
    if len(parts) == len(layout.tensors) and len(kinds) <= 1:
        return Body(pieces(item.array for item in parts), kinds.pop() if kinds else None)
    return Body(parts=parts, complete=len(parts) == len(layout.tensors))


# -- operations


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Create:
    """Make a session. ``document`` is its name, optimizer, durability and labels; ``key`` makes it safe to repeat."""

    parameters: Parameters
    document: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Make a session from an exported state: safetensors, in pieces."""

    pieces: tuple[memoryview, ...]
    key: str


@dataclass(frozen=True, slots=True)
class View:
    """Describe a session, by id or name."""

    ref: str


@dataclass(frozen=True, slots=True)
class ListSessions:
    """List sessions: at most ``size`` of them, after ``token``."""

    size: int
    token: str | None


@dataclass(frozen=True, slots=True)
class Update:
    """Change settings or labels; None leaves them. Safe to repeat: it sets, it does not add."""

    ref: str
    optimizer: Mapping[str, Any] | None
    labels: Mapping[str, str] | None
    rounds: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """End a session, if its chain is ``chain`` (None: whatever it is).

    Where a first answer was lost, the second attempt finds it gone.
    """

    ref: str
    chain: str | None = None


@dataclass(frozen=True, slots=True)
class ReadParameters:
    """Read the parameters into ``into``, memory of exactly their length; see `Step` for the rest.

    ``at`` asks for others than those that gradients are taken at.
    """

    ref: str
    dtype: str
    into: tuple[memoryview, ...]
    rounded: bool = False
    at: str | None = None
    on_sent: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class SetParameters:
    """Set the parameters: all of them."""

    ref: str
    body: Body


@dataclass(frozen=True, slots=True)
class Export:
    """Read the whole state, about ``expected`` bytes of safetensors, into a file or into memory."""

    ref: str
    into: BinaryIO | None
    expected: int

    @property
    def limit(self) -> int:
        """The bytes that it can have at most."""
        return 2 * self.expected + safetensors.MAX_HEADER + 8


class PushBase(NamedTuple):
    """The step and chain that a push's gradient was taken at, and its largest staleness (None: any)."""

    step: int
    chain: str
    max_staleness: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """Take a step.

    Attributes:
        number: the step that it will be, from 1; None: whichever is next.
        chain: the history at ``number - 1`` that it builds on; None: whatever it is.
        body: the gradient.
        dtype: of the answer's parameters.
        rounded: ``dtype`` is not the session's own, and has to be asked for.
        into: memory of exactly the answer's length.
        settings: that count with this step and stay.
        metrics: names to finite numbers; None for a number that is not.
        key: makes it safe to repeat where it has no number.
        base: what it was taken at, where it has no number.
        on_sent: is called when the request has left, before anything comes into ``into``; at each attempt.

    """

    ref: str
    number: int | None
    chain: str | None
    body: Body
    dtype: str
    into: tuple[memoryview, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    rounded: bool = False
    key: str | None = None
    base: PushBase | None = None
    on_sent: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Watch:
    """Look where a session stands; where a server can tell, wait until it is no longer at the chain ``since``."""

    ref: str
    since: str | None


@dataclass(frozen=True, slots=True)
class Info:
    """Describe the server."""


@dataclass(frozen=True, slots=True)
class AskTask:
    """Ask what a client shall do; wait up to ``wait`` seconds for it. None: nothing yet.

    ``client``: "" asks for nobody where the rounds stand, which is told at once.
    """

    ref: str
    client: str
    wait: float


@dataclass(frozen=True, slots=True)
class Contribute:
    """Contribute to a round. The round and the client name it, so that it counts once.

    Attributes:
        chain: of step ``round`` - 1, where ``body`` comes from; None: whatever it is.
        kind: "delta" (trained - pulled), "parameters" (trained) or "gradient".

    """

    ref: str
    round: int
    client: str
    chain: str | None
    body: Body
    kind: str
    num_examples: float
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Tell what a client measured at the parameters of step ``round`` - 1."""

    ref: str
    round: int
    client: str
    num_examples: float
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class ReadRound:
    """Describe a round."""

    ref: str
    round: int


@dataclass(frozen=True, slots=True)
class ListRounds:
    """List rounds from ``start`` on: at most ``size`` of them, after ``token``."""

    ref: str
    start: int
    size: int
    token: str | None = None


@dataclass(frozen=True, slots=True)
class CloseRound:
    """Close a round with the contributions that it has."""

    ref: str
    round: int


@dataclass(frozen=True, slots=True)
class CancelRound:
    """Drop the contributions that a round has; it begins again."""

    ref: str
    round: int


Operation: TypeAlias = (
    Create
    | Restore
    | View
    | ListSessions
    | Update
    | Delete
    | ReadParameters
    | SetParameters
    | Export
    | Step
    | Watch
    | Info
    | AskTask
    | Contribute
    | Evaluate
    | ReadRound
    | ListRounds
    | CloseRound
    | CancelRound
)
WAITING = (Watch, AskTask)  # they are silent by their nature, and no other operation shall wait for them
# Error codes that are worth another attempt, besides what every operation is repeated for.
RETRIED: Mapping[type[Operation], frozenset[str]] = {Update: frozenset({"settings_conflict"})}
# Error codes that say, from the second attempt on, that an earlier one has succeeded.
DONE: Mapping[type[Operation], frozenset[str]] = {Delete: frozenset({"session_deleted"})}


def describe(operation: Operation) -> str:
    """Describe an operation for an error's text."""
    match operation:
        case Step(ref, number):
            return f"{'a gradient' if number is None else f'step {number}'} of session {ref}"
        case Create():
            return "creating a session"
        case Restore():
            return "restoring a session"
        case ListSessions():
            return "listing the sessions"
        case Info():
            return "asking for the server's info"
        case AskTask(ref, ""):
            return f"asking where the rounds of session {ref} stand"
        case AskTask(ref, client) | Contribute(ref, _, client) | Evaluate(ref, _, client):
            return f"{_DOING[type(operation)]} session {ref} for {client}"
        case ReadRound(ref, number) | CloseRound(ref, number) | CancelRound(ref, number):
            return f"{_DOING[type(operation)]} round {number} of session {ref}"
        case _:
            return f"{_DOING[type(operation)]} session {operation.ref}"


_DOING: Mapping[type[Operation], str] = {
    View: "reading",
    Update: "updating",
    Delete: "deleting",
    ReadParameters: "reading the parameters of",
    SetParameters: "setting the parameters of",
    Export: "exporting",
    Watch: "watching",
    AskTask: "asking for a task of",
    Contribute: "contributing to",
    Evaluate: "telling an evaluation to",
    ReadRound: "reading",
    ListRounds: "listing the rounds of",
    CloseRound: "closing",
    CancelRound: "cancelling",
}


def reference(ref: str) -> str:
    """Check a session's id or name.

    Raises:
        UnknownSession: no session can be called that.

    """
    if not isinstance(ref, str) or not ref:
        raise InvalidRequest(f"a session's id or name is a string, as in 'run-7'; got {ref!r}")
    if not is_reference(ref):
        raise UnknownSession(f"{ref[:80]!r} is neither a session's id nor a name ({headers.NAME_WORDS})")
    return ref


def is_reference(ref: Any) -> bool:
    """Say whether a session can be called that."""
    return isinstance(ref, str) and _REF.fullmatch(ref) is not None


def is_chain(chain: Any) -> bool:
    """Say whether this is a chain: 64 hexadecimal digits."""
    return isinstance(chain, str) and _CHAIN.fullmatch(chain) is not None


def idempotency_key(key: Any) -> str:
    """Check the key of a request.

    Raises:
        InvalidRequest: no server takes it.

    """
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise InvalidRequest(f"key is {key!r}; wanted 1 to 255 printable ASCII characters, as in 'worker-3/batch-17'")
    return key


def client_name(name: Any) -> str:
    """Check a client's name within a federation.

    Raises:
        InvalidRequest: no server takes it.

    """
    if not isinstance(name, str) or _CLIENT.fullmatch(name) is None:
        raise InvalidRequest(f"client is {name!r:.80}; wanted 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', as 'ward-7'")
    return name


def export(now: Standing, into: BinaryIO | None) -> Export:
    """Return the export of a session."""
    return Export(now.id, into, ARRAYS * now.layout.size * ITEMSIZE[now.dtype])


def bad_answer(what: str) -> TransportError:
    """Return the error for an answer that no adamd server gives."""
    message = f"the server answered with {clean(what)}. Is this an adamd server, of this version?"
    return TransportError(message, phase="answer", permanent=True)
