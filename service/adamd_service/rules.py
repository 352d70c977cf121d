"""Decides about a step: (head, request) → Apply, Replay or Refuse. No I/O, clock or randomness.

    request n        same digest        another digest
    n = step + 1     Apply              Apply
    n = step         Replay             step_conflict
    n < step         step_superseded, with applied: true | false | "unknown" from the ring
    n > step + 1     step_gap, or history_lost where If-Match says that the client saw more than there is

An If-Match names the chain at n-1: the history that the client builds on. Another one is history_lost (412).
A POST has no n; where it says what its gradient was taken at (`Base`), that is what must be part of the history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import xxhash

from adamd.errors import (
    AdamdError,
    Diverged,
    HistoryLost,
    ParametersMissing,
    StepConflict,
    StepGap,
    StepSuperseded,
)
from adamd_service.records import Base, Entry, Head


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A step, once its body is in. ``number`` is None for POST: whatever step is next."""

    number: int | None
    digest: str
    if_match: str | None = None
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Apply:
    """Commit this step, then apply it."""

    step: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Answer again: the step is applied already, with this very gradient."""

    step: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this problem; nothing has changed."""

    error: AdamdError


Decision = Apply | Replay | Refuse


def decide(head: Head, ring: Mapping[int, Entry], request: StepRequest, *, diverged: bool = False) -> Decision:
    """Decide about a whole request. ``ring`` is by step: the last steps that are remembered."""
    number = head.step + 1 if request.number is None else request.number
    lost = _history(head, ring, number, request.if_match) or _off_base(head, ring, request.base)
    if lost is not None:
        return Refuse(lost)
    if number > head.step:
        refusal = _refuse_new(head, number, diverged)
        return Apply(number) if refusal is None else Refuse(refusal)
    entry = ring.get(number)
    if entry is not None and entry.digest == request.digest and number == head.step:
        return Replay(number)
    if number == head.step and entry is not None:
        return Refuse(_conflict(head))
    return Refuse(_superseded(head, number, entry, request.digest))


def foresee(head: Head, number: int | None, if_match: str | None, *, diverged: bool = False) -> AdamdError | None:
    """Return the error that a step gets whatever its body is, or None (law 6)."""
    number = head.step + 1 if number is None else number
    if number <= head.step:
        return None
    return _history(head, {}, number, if_match) or _refuse_new(head, number, diverged)


def chain_at(head: Head, ring: Mapping[int, Entry], step: int) -> str | None:
    """Return the chain after ``step`` updates, where it is still known."""
    if step == head.step:
        return head.chain
    if step == head.step - 1:
        return head.prev_chain
    entry = ring.get(step)
    return None if entry is None else entry.chain


def next_chain(previous: str, step: int, digest: str, updates: Sequence[Any], numerics: str) -> str:
    """SHA-256 (hex) over previous chain, step, digest, resolved scalars and numerics id."""
    return _sha256("step", previous, step, digest, updates, numerics)


def first_chain(incarnation: str, document: Mapping[str, Any], parameters: str) -> str:
    """Chain 0: the incarnation, what the session is (layout, dtype, counts), and the digest of its parameters."""
    return _sha256("session", incarnation, document, parameters)


def digest_start(
    encoding: str,
    dtype: str,
    present: Sequence[int] | None,
    settings: Mapping[str, Any] | None,
    assigned: Sequence[int] = (),
) -> xxhash.xxh3_128:
    """Begin a step's digest; the caller feeds the body as it is logged: flat, layout order, little-endian, encoded.

    XXH3-128 over (encoding, dtype, tensors present, settings carried, body). ``present`` lists the indices of
    the tensors that are there, None for all (and for a lazy one, whose body says it). ``assigned`` lists those whose
    parameters the body sets behind its gradient; where there are some, they are a part of the digest too.
    """
    said = [encoding, dtype, present, settings]
    return xxhash.xxh3_128(_canonical([*said, list(assigned)] if assigned else said))


def _history(head: Head, ring: Mapping[int, Entry], number: int, if_match: str | None) -> HistoryLost | None:
    if if_match is None:
        return None
    if number - 1 > head.step:
        return HistoryLost(
            f"you have seen step {number - 1} acknowledged; the store has only {head.step}: it went back. A person "
            f"decides: read the parameters and continue at {head.step + 1} without what is lost, or restore an export.",
            step=head.step,
        )
    expected = chain_at(head, ring, number - 1)
    if expected is None or expected == if_match:
        return None
    return HistoryLost(
        f"step {number} would build on chain {if_match[:12]}…; this session's step {number - 1} has chain "
        f"{expected[:12]}…: another history. A person decides whether to read the parameters and continue at "
        f"{head.step + 1}.",
        step=head.step,
    )


def _off_base(head: Head, ring: Mapping[int, Entry], base: Base | None) -> AdamdError | None:
    """Refuse a gradient whose base is not part of this history, or is too old."""
    if base is None:
        return None
    if base.step > head.step:
        return _history(head, ring, base.step + 1, base.chain or "")
    stale = head.step - base.step
    if base.most is not None and stale > base.most:
        return StepSuperseded(
            f"this gradient was taken at step {base.step}, and the session is at {head.step}: {stale} steps of others "
            f"came since, and at most {base.most} may. It was not applied; read the parameters and take it there",
            step=head.step,
            applied=False,
            staleness=stale,
        )
    return _history(head, ring, base.step + 1, base.chain)


def _refuse_new(head: Head, number: int, diverged: bool) -> AdamdError | None:
    """Refuse a step that was never applied here: one that is not the next, or any where the session takes none."""
    if number > head.step + 1:
        return StepGap(f"step {number} is ahead; the next step is {head.step + 1}", step=head.step)
    if head.parameters_missing:
        return ParametersMissing(
            "this session was created from a layout alone; PUT …/parameters before step 1", step=head.step
        )
    if diverged:
        return Diverged(
            f"at step {head.step} a parameter or a second moment is no longer finite; restore an export, "
            "or create a session with a smaller lr",
            step=head.step,
        )
    return None


def _conflict(head: Head) -> StepConflict:
    return StepConflict(
        f"step {head.step} is already applied with another gradient; "
        f"read the parameters and continue at {head.step + 1}",
        step=head.step,
    )


def _superseded(head: Head, number: int, entry: Entry | None, digest: str) -> StepSuperseded:
    applied: Literal["unknown"] | bool = "unknown" if entry is None else entry.digest == digest
    how = {True: "with this very gradient", False: "with another gradient", "unknown": "too long ago to say how"}
    return StepSuperseded(
        f"step {number} is applied already, {how[applied]}; the session is at {head.step}. "
        f"Read the parameters and continue at {head.step + 1}",
        step=head.step,
        applied=applied,
    )


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)  # json.dumps makes one each time


def _canonical(value: Any) -> bytes:
    return _CANONICAL.encode(value).encode()


def _sha256(*parts: Any) -> str:
    return hashlib.sha256(_canonical(parts)).hexdigest()
