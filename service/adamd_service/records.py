"""Frozen records of what the store keeps of a session. No I/O, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adamd.wire.layout import Layout

Carried = Mapping[str, tuple[float, ...]]  # what an optimizer carries along, by its names, per tensor
Durability = Literal["committed", "memory"]
RING = 256  # the head's ring: the last (step, digest, attempt)


@dataclass(frozen=True, slots=True)
class Spec:
    """What is fixed when a session is created; labels and ``rounds["config"]`` may change.

    ``created_at`` is in Unix seconds. ``rounds``: the settings of the session's rounds (`rounds.settings`) as JSON
    values; None: it takes plain steps.
    """

    id: str
    name: str | None
    tenant: str
    layout: Layout
    dtype: Literal["float32", "float64"]
    durability: Durability
    labels: dict[str, str]
    created_at: float
    rounds: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BulkRef:
    """Where bulk bytes lie.

    Attributes:
        chunks: lengths in bytes of chunks in the store.
        extent: the file that has them instead; "": none.
        length: bytes in that extent.

    """

    chunks: tuple[int, ...] = ()
    extent: str = ""
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.length if self.extent else sum(self.chunks)


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """One array of a snapshot: where it lies, and the XXH3-128 (hex) of all of its bytes."""

    name: str  # params, or one of the optimizer's state arrays: exp_avg, exp_avg_sq, …
    bulk: BulkRef
    digest: str


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """Where a whole state at one step lies. An array that is not listed is as a new session's."""

    id: str
    step: int
    chain: str
    counts: tuple[int, ...]  # updates per tensor, in layout order
    arrays: tuple[ArrayRef, ...]
    carried: Carried = field(default_factory=dict)
    damage: str = ""  # why it cannot be used; then nothing but its id is known

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.bulk.nbytes for array in self.arrays)


@dataclass(frozen=True, slots=True)
class Base:
    """Where a gradient was taken that is applied as whichever step is next (POST).

    Attributes:
        step: the step at whose parameters it was taken.
        chain: the chain after that step; None: any.
        most: how many steps of others may have been applied since; None: any number.

    """

    step: int
    chain: str | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One place of the head's ring."""

    step: int
    digest: str
    attempt: str
    chain: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a session stands. The store keeps exactly this, and the commit script compares against it."""

    spec: Spec
    incarnation: str
    step: int
    chain: str
    prev_chain: str  # the chain at step-1, so that an If-Match on a replay can be answered
    settings: dict[str, Any]
    settings_revision: int
    snapshots: tuple[SnapshotRef, ...] = ()  # oldest first; at most two
    parameters_missing: bool = False
    log_bytes: int = 0  # bodies in the log after the newest snapshot
    progress: dict[str, Any] = field(default_factory=dict)  # optim.progress: losses and norms so far


@dataclass(frozen=True, slots=True)
class Broken:
    """A session of the list whose head is damaged: ``detail`` says how. It can be deleted."""

    id: str
    created_at: float
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """One applied update in the log: the gradient's bytes, every scalar used, the client's metrics.

    The body is as it came: in ``encoding`` (`adamd.wire.encodings`), of values in ``dtype``. Where that is "raw", it is
    the flat concatenation, in layout order, of the gradients of the tensors that ``updates`` covers, little-endian.
    Small bodies lie ``inline``; others are bulk, under the attempt's name.
    """

    step: int
    attempt: str
    digest: str
    prev_chain: str
    chain: str
    dtype: str
    updates: list[Any]  # optim.scalars.updates_to_json
    bulk: BulkRef = BulkRef()
    inline: bytes | None = None
    settings: dict[str, Any] | None = None  # the change that this step carried, as the client sent it
    metrics: dict[str, Any] = field(default_factory=dict)
    numerics: str = "adamd-1"
    encoding: str = "raw"
    best: bool = False  # its loss made the parameters before this step the best ones
    assigned: tuple[int, ...] = ()  # tensors whose parameters the body sets, joined behind its gradient; of rounds

    @property
    def nbytes(self) -> int:
        """Length of the body."""
        return len(self.inline) if self.inline is not None else self.bulk.nbytes


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key for a request: the same key with another digest is refused for 24 hours."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class RoundClosing:
    """What a commit does beside its step, where it closes a round: the contributions become garbage.

    Attributes:
        token: of the freezing that this step was made from; the round must still have it.
        document: of the closed round, as JSON values.
        counted: ``round:client`` of each member to ``digest step``, as the store keeps it.
        oldest: the first round of which it stays known who has contributed.
        config: what the next round begins with.
        clip_norm: of a privacy that adapts, for the next round.

    """

    token: str
    document: Mapping[str, Any]
    counted: Mapping[str, str]
    oldest: int
    config: Mapping[str, Any]
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What the commit script compares, and what it writes if all of it holds.

    Compared: incarnation, ``record.prev_chain``, ``record.step - 1`` and ``expect_revision``.
    """

    incarnation: str
    expect_revision: int
    record: Record
    settings: dict[str, Any]
    settings_revision: int
    idempotency: IdempotencyKey | None = None
    progress: dict[str, Any] | None = None  # None: as it was
    closing: RoundClosing | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The record is in the log: just now, or (``again``) by this attempt earlier."""

    again: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing was written: another writer was first, or the attempt was fenced, or a chunk was missing.

    ``reason``: "moved" (reload the head and decide again), "fenced", "chunks", "idempotency" (the key is used), or
    "thawed" (the round that it closes was cancelled, or is to be frozen again).
    """

    reason: Literal["moved", "fenced", "chunks", "idempotency", "thawed"]


CommitOutcome = Committed | Lost
