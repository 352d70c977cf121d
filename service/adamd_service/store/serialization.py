"""Writes records as the store keeps them, and reads them back. What comes back is checked, never trusted.

What decides about a session's state carries a sum: JSON objects as their last member, a line of the ring behind its
attempt, settings and progress in a field of their own. What the version before wrote has none, and is read as it was;
and that version reads what is written here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal, TypeVar, cast

import xxhash

from adamd.errors import AdamdError, Damaged
from adamd.wire import layout
from adamd.wire.dtypes import ITEMSIZE, SESSION_DTYPES
from adamd.wire.encodings import ENCODINGS, RAW
from adamd_service.records import (
    ArrayRef,
    BulkRef,
    CommitOutcome,
    Committed,
    Entry,
    Head,
    Lost,
    Record,
    SnapshotRef,
    Spec,
)
from adamd_service.store.outcomes import HeadVersion

T = TypeVar("T")
FORMAT = "2"  # of a head and what it names; 1, which had no sums, did not say it
ATTEMPT = re.compile(r"[A-Za-z0-9_-]{1,32}")  # shorter than one that has run into its sum
SUM = "sum"  # the member that a text carries its sum in
COUNT = re.compile(r"0|[1-9][0-9]{0,18}")
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
EXTENT = re.compile(r"[cx][0-9]{6,15}-[0-9]{1,12}")  # the name of a file in the bulk directory: its bytes, its number
ARRAY = re.compile(r"[a-z][a-z0-9_]{0,31}")  # which of them a session has, its optimizer says
STANDING = ("incarnation", "step", "chain", "settings_revision", "parameters_missing")


_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # json.dumps makes one each time


def dumps(value: Any) -> str:
    """Return compact JSON without NaN."""
    return _COMPACT.encode(value)


def sum_of(text: str) -> str:
    """Return the XXH3-64 (hex) of a text: it tells damage, not forgery."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def summed(value: Mapping[str, Any]) -> str:
    """Return an object as JSON, with a sum over its text as its last member."""
    text = dumps(value)
    return f'{text[:-1]}{"," if value else ""}"{SUM}":"{sum_of(text)}"}}'


def unsummed(raw: Any) -> dict[str, Any]:
    """Return an object without its sum, which has to be its own; one of the version before has none."""
    value = dict(_object(raw))
    stored_sum = value.pop(SUM, None)
    if stored_sum is not None and stored_sum != sum_of(dumps(value)):
        raise ValueError("its sum does not match")
    return value


def seal(incarnation: str, revision: int, settings: str) -> str:
    """Return the sum of a session's settings, with the revision that it belongs to.

    The version before changes settings without it: then the revision is another one.
    """
    return f"{revision} {sum_of(f'{incarnation} {revision} {settings}')}"


def spec_text(spec: Spec) -> str:
    """Return a spec as text."""
    optional = {} if spec.rounds is None else {"rounds": spec.rounds}
    return summed(
        {
            "id": spec.id,
            "name": spec.name,
            "tenant": spec.tenant,
            "layout": [[t.name, list(t.shape)] for t in spec.layout.tensors],
            "vector": spec.layout.vector,
            "dtype": spec.dtype,
            "durability": spec.durability,
            "labels": spec.labels,
            "created_at": spec.created_at,
            **optional,
        }
    )


def snapshot_text(ref: SnapshotRef) -> str:
    """Return a snapshot's reference as text."""
    members = asdict(ref) | {"arrays": [_array(array) for array in ref.arrays]}
    omitted = {"damage"} if ref.carried else {"damage", "carried"}
    return summed({name: members[name] for name in members if name not in omitted})


def _array(array: ArrayRef) -> dict[str, Any]:
    return {"name": array.name, **bulk_members(array.bulk), "digest": array.digest}


def bulk_members(ref: BulkRef) -> dict[str, Any]:
    """Return where bytes lie. The version before knows chunks alone, and refuses what lies elsewhere."""
    return {"chunks": list(ref.chunks)} | ({"extent": [ref.extent, ref.length]} if ref.extent else {})


def bulk_from(raw: Mapping[str, Any]) -> BulkRef:
    """Read where bytes lie; raises what the wrong kind of value raises."""
    chunks = tuple(_count(length) for length in raw["chunks"])
    if raw.get("extent") is None:
        return BulkRef(chunks)
    extent, length = raw["extent"]
    if chunks or EXTENT.fullmatch(_text(extent)) is None:
        raise ValueError(f"{extent!r} is no extent")
    return BulkRef((), extent, _count(length))


def progress_text(progress: Mapping[str, Any]) -> str:
    """Return what a session remembers of its steps as text, behind its sum, as commit.lua takes both.

    The version before knows every member, so the sum has a field of its own. That version writes no space before the
    text: where there is one, the sum is this text's.
    """
    text = f" {dumps(progress)}"
    return sum_of(text) + text


def _progress(text: Mapping[str, str]) -> dict[str, Any]:
    progress = text.get("progress", "{}")  # the first heads had none
    if progress.startswith(" ") and text.get("progressed") != sum_of(progress):
        raise ValueError("the sum of the progress does not match")
    return _object(json.loads(progress))


def head_fields(head: Head) -> dict[str, str]:
    """Return the fields of a new head. ``newest`` repeats the last of ``snapshots``, for snapshot.lua."""
    texts, settings = [snapshot_text(ref) for ref in head.snapshots], dumps(head.settings)
    progressed, space, progress = progress_text(head.progress).partition(" ")
    return {
        "format": FORMAT,
        "spec": spec_text(head.spec),
        "incarnation": head.incarnation,
        "step": str(head.step),
        "chain": head.chain,
        "prev_chain": head.prev_chain,
        "settings": settings,
        "settings_revision": str(head.settings_revision),
        "sealed": seal(head.incarnation, head.settings_revision, settings),
        "snapshots": f"[{','.join(texts)}]",
        "newest": texts[-1] if texts else "",
        "parameters_missing": "1" if head.parameters_missing else "0",
        "log_first": str((head.snapshots[0].step if head.snapshots else head.step) + 1),
        "log_bytes": str(head.log_bytes),
        "progress": space + progress,
        "progressed": progressed,
    }


FIELDS = frozenset(
    (
        *("format", "spec", "incarnation", "step", "chain", "prev_chain", "settings", "settings_revision", "sealed"),
        *("snapshots", "newest", "parameters_missing", "log_first", "log_bytes", "progress", "progressed"),
    )
)


def head_from(session_id: str, fields: Mapping[bytes, bytes]) -> Head:
    """Read a head. A snapshot that is damaged is told in its place: the one before it may be whole.

    Raises:
        Damaged: it is.

    """

    def read() -> Head:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if not text.keys() <= FIELDS:
            raise ValueError(f"no fields of a head: {', '.join(sorted(text.keys() - FIELDS))}")
        if text.get("format", FORMAT) != FORMAT:
            raise ValueError(f"format {text['format']!r}: a newer adamd may have written it")
        if "format" in text and text.keys() != FIELDS:
            raise ValueError(f"no {', '.join(sorted(FIELDS - text.keys()))}")
        spec, step = spec_from(json.loads(text["spec"])), _number(text["step"])
        if spec.id != session_id:
            raise ValueError(f"the spec of {spec.id}")
        revision, settings = _settings(text)
        snapshots = _snapshots(text, step)
        return Head(
            spec=spec,
            incarnation=_hexadecimal(text["incarnation"]),
            step=step,
            chain=_hexadecimal(text["chain"]),
            prev_chain=_hexadecimal(text["prev_chain"]) if text["prev_chain"] else "",
            settings=settings,
            settings_revision=revision,
            snapshots=snapshots,
            parameters_missing=_flag(text["parameters_missing"], missing=not snapshots),
            log_bytes=_harmless(text["log_bytes"]),
            progress=_progress(text),
        )

    return checked(f"the head of session {session_id}", read)


def _settings(text: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Return the settings and their revision.

    The version before changes them without a new seal: then its revision is an older one, and either they do not match
    it any more, or the spec, which every PATCH writes, has no sum.
    """
    revision, settings, sealed = _number(text["settings_revision"]), text["settings"], text.get("sealed")
    if sealed is not None:
        of = _number(sealed.partition(" ")[0])
        matches = sealed == seal(text["incarnation"], of, settings)
        if of > revision or (of == revision and not matches):
            raise ValueError("the seal of the settings does not match")
        if of < revision and matches and SUM in json.loads(text["spec"]):
            raise ValueError(f"settings_revision is {revision}, and the settings are of {of}")
    return revision, _object(json.loads(settings))


def _snapshots(text: Mapping[str, str], step: int) -> tuple[SnapshotRef, ...]:
    raw = json.loads(text["snapshots"])
    if (
        not isinstance(raw, list)
        or len(raw) > 2
        or f"{text['newest']}]" != text["snapshots"][-len(text["newest"]) - 1 :]
    ):
        raise ValueError("the list of snapshots")
    refs = tuple(_snapshot_or_damage(item) for item in raw)
    intact = [ref for ref in refs if not ref.damage]
    if refs and not intact:
        raise ValueError(refs[-1].damage)
    if any(ref.step > step for ref in intact) or [ref.step for ref in intact] != sorted({ref.step for ref in intact}):
        raise ValueError("the steps of the snapshots")
    first = refs[0].step if refs else step
    if _number(text["log_first"]) != first + 1 and not (refs and refs[0].damage):
        raise ValueError(f"log_first is {text['log_first']}, after a snapshot at {first}")
    return refs


def spec_from(raw: Any) -> Spec:
    """Read a spec; raises what the wrong kind of value raises."""
    raw = _exactly(unsummed(raw), *(field.name for field in fields(Spec)), "vector")
    if raw["dtype"] not in SESSION_DTYPES or raw["durability"] not in ("committed", "memory"):
        raise ValueError("dtype or durability")
    tensors = tuple(layout.Tensor(_text(name), tuple(shape)) for name, shape in raw["layout"])
    return Spec(
        id=_text(raw["id"]),
        name=None if raw["name"] is None else _text(raw["name"]),
        tenant=_text(raw["tenant"]),
        layout=layout.checked(tensors, vector=raw["vector"] is True),
        dtype=raw["dtype"],
        durability=raw["durability"],
        labels={_text(key): _text(value) for key, value in raw["labels"].items()},
        created_at=float(raw["created_at"]),
        rounds=None if raw.get("rounds") is None else _object(raw["rounds"]),
    )


def standing_from(session_id: str, values: list[bytes | None]) -> HeadVersion | None:
    """Read the fields of `STANDING`; None where there is no head.

    Raises:
        Damaged: it is damaged.

    """
    if not any(values):
        return None

    def read() -> HeadVersion:
        texts = [value.decode() if value is not None else "" for value in values]
        return HeadVersion(texts[0], _number(texts[1]), texts[2], _number(texts[3]), _flag(texts[4]))

    return checked(f"the head of session {session_id}", read)


def entry_text(entry: Entry) -> str:
    """Return a place of the ring as text. The sum follows the attempt: the version before wants four words here, and
    compares the attempt with its own alone, so both can be at work on one store.
    """
    return f"{entry.step} {entry.digest} {entry.attempt}.{_sum_of_entry(entry)} {entry.chain}"


def _sum_of_entry(entry: Entry) -> str:
    return sum_of(f"{entry.step} {entry.digest} {entry.attempt} {entry.chain}")


def entry_from(raw: bytes) -> Entry:
    """Read a place of the ring.

    Raises:
        Damaged: it is damaged.

    """

    def read() -> Entry:
        step, digest, attempt, chain = raw.decode().split(" ")
        attempt, has_sum, stored_sum = attempt.partition(".")  # the first entries had no sum
        entry = Entry(_number(step), digest, attempt, chain)
        if not ATTEMPT.fullmatch(attempt):  # as where the dot before the sum is another character
            raise ValueError("its attempt is none")
        if has_sum and stored_sum != _sum_of_entry(entry):
            raise ValueError("its sum does not match")
        return entry

    return checked("a place of the ring", read)


def record_meta(record: Record) -> str:
    """Return a record as text, without its inline body."""
    optional: dict[str, Any] = {"best": True} if record.best else {}
    optional |= {"assigned": list(record.assigned)} if record.assigned else {}
    return summed(
        {
            "step": record.step,
            "attempt": record.attempt,
            "digest": record.digest,
            "prev_chain": record.prev_chain,
            "chain": record.chain,
            "dtype": record.dtype,
            "encoding": record.encoding,
            "updates": record.updates,
            **bulk_members(record.bulk),
            "settings": record.settings,
            "metrics": record.metrics,
            "numerics": record.numerics,
            **optional,
        }
    )


RECORD_MEMBERS = ({field.name for field in fields(Record)} - {"bulk"}) | {"chunks", "extent"}


def record_from(
    step: int, meta: bytes, inline: bytes, attempt: bytes | None = None, chain: bytes | None = None
) -> Record:
    """Read a record. ``attempt``, ``chain``: what its hash has of them, for the scripts.

    Raises:
        Damaged: it is damaged, or another step's.

    """

    def read() -> Record:
        raw = _exactly(unsummed(json.loads(meta)), *RECORD_MEMBERS)
        encoding = raw.get("encoding", RAW)  # the first records did not say it
        if raw["step"] != step or raw["dtype"] not in ITEMSIZE or encoding not in ENCODINGS:
            raise ValueError("step, dtype or encoding")
        for stored, name in ((attempt, "attempt"), (chain, "chain")):
            if stored is not None and stored.decode() != raw[name]:
                raise ValueError(f"another {name}")
        bulk = bulk_from(raw)
        return Record(
            step=step,
            attempt=_text(raw["attempt"]),
            digest=_text(raw["digest"]),
            prev_chain=_text(raw["prev_chain"]),
            chain=_text(raw["chain"]),
            dtype=raw["dtype"],
            updates=list(raw["updates"]),
            bulk=bulk,
            inline=None if bulk.chunks or bulk.extent else inline,
            settings=None if raw["settings"] is None else _object(raw["settings"]),
            metrics=_object(raw["metrics"]),
            numerics=_text(raw["numerics"]),
            encoding=encoding,
            best=raw.get("best") is True,
            assigned=tuple(_count(place) for place in raw.get("assigned", ())),
        )

    return checked(f"the record of step {step}", read)


def _snapshot_or_damage(raw: Any) -> SnapshotRef:
    try:
        return _snapshot(raw)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        snapshot_id = raw.get("id") if isinstance(raw, dict) else None
        why = f"a snapshot's reference is damaged ({type(error).__name__}: {error})"
        return SnapshotRef(snapshot_id if isinstance(snapshot_id, str) else "", 0, "", (), (), damage=why)


def _snapshot(raw: Any) -> SnapshotRef:
    raw = _exactly(unsummed(raw), *(field.name for field in fields(SnapshotRef)))
    arrays = tuple(ArrayRef(array_name(item["name"]), bulk_from(item), _text(item["digest"])) for item in raw["arrays"])
    return SnapshotRef(
        id=identifier(raw["id"]),
        step=_count(raw["step"]),
        chain=_text(raw["chain"]),
        counts=tuple(_count(count) for count in raw["counts"]),
        arrays=arrays,
        carried={_text(name): tuple(map(_finite, values)) for name, values in raw.get("carried", {}).items()},
    )


def checked(what: str, read: Callable[[], T]) -> T:
    """Return what ``read`` returns; raises Damaged, in the words of ``what``, where it meets anything wrong."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, AdamdError) as error:
        why = f"{type(error).__name__}: {error}"
        raise Damaged(f"{what} in the store is damaged ({why}); {Damaged.ADVICE}") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _number(value: str) -> int:
    """Read a count as Python and Lua write it: `int` alone would take blanks, signs and other scripts' digits."""
    if COUNT.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no count")
    return int(value)


def _harmless(value: str) -> int:
    """Read a number that only says when a snapshot is due; the next commit writes it anew."""
    return int(value) if COUNT.fullmatch(value) else 0


def _flag(value: str, *, missing: bool | None = None) -> bool:
    if value not in ("0", "1") or missing not in (None, value == "1"):
        raise ValueError(f"parameters_missing is {value!r}")
    return value == "1"


def _hexadecimal(value: str) -> str:
    if IDENTIFIER.fullmatch(value) is None:
        raise ValueError(f"{value!r} is none of ours")
    return value


def _exactly(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    """Refuse unknown members: otherwise a sum under a damaged name would simply be missed."""
    if not raw.keys() <= set(names):
        raise ValueError(f"unknown members: {', '.join(sorted(raw.keys() - set(names)))}")
    return raw


def identifier(value: Any) -> str:
    """Return an id that is a part of keys; raises ValueError where it is none."""
    return _hexadecimal(_text(value))


def array_name(value: Any) -> str:
    """Return the name of an array; raises ValueError where it is none."""
    if ARRAY.fullmatch(_text(value)) is None:
        raise ValueError(f"{value!r} is no array")
    return _text(value)


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} is no object")
    return value


def outcome_from(verdict: Sequence[bytes]) -> CommitOutcome:
    """Read the verdict of `commit.lua`."""
    word = verdict[0].decode()
    if word in ("committed", "again"):
        return Committed(again=word == "again")
    return Lost(cast(Literal["moved", "fenced", "chunks", "idempotency", "thawed"], word))
