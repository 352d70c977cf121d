"""Records to what the store keeps, and back. What comes back is hostile until checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar, cast

from adamd.errors import AdamdError, InternalError
from adamd.wire import layout
from adamd.wire.dtypes import ITEMSIZE, SESSION_DTYPES
from adamd.wire.encodings import ENCODINGS, RAW
from adamd_service.records import ArrayRef, CommitOutcome, Committed, Entry, Head, Lost, Record, SnapshotRef, Spec
from adamd_service.store.outcomes import Standing

T = TypeVar("T")
ARRAY = re.compile(r"[a-z][a-z0-9_]{0,31}")  # which of them a session has, its optimizer says
STANDING = ("incarnation", "step", "chain", "settings_revision", "parameters_missing")


_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # json.dumps makes one each time


def dumps(value: Any) -> str:
    """Return compact JSON without NaN."""
    return _COMPACT.encode(value)


def spec_text(spec: Spec) -> str:
    """Return a spec as text."""
    return dumps(
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
        }
    )


def snapshot_text(ref: SnapshotRef) -> str:
    """Return a snapshot's reference as text."""
    told = asdict(ref)
    return dumps(told if ref.carried else {name: told[name] for name in told if name != "carried"})


def head_fields(head: Head) -> dict[str, str]:
    """Return the fields of a new head. ``newest`` repeats the last of ``snapshots``, for snapshot.lua."""
    texts = [snapshot_text(ref) for ref in head.snapshots]
    return {
        "spec": spec_text(head.spec),
        "incarnation": head.incarnation,
        "step": str(head.step),
        "chain": head.chain,
        "prev_chain": head.prev_chain,
        "settings": dumps(head.settings),
        "settings_revision": str(head.settings_revision),
        "snapshots": f"[{','.join(texts)}]",
        "newest": texts[-1] if texts else "",
        "parameters_missing": "1" if head.parameters_missing else "0",
        "log_first": str(head.step + 1),
        "log_bytes": str(head.log_bytes),
        "progress": dumps(head.progress),
    }


def head_from(session_id: str, fields: Mapping[bytes, bytes]) -> Head:
    """Read a head.

    Raises:
        InternalError: it is damaged.

    """

    def read() -> Head:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        return Head(
            spec=spec_from(json.loads(text["spec"])),
            incarnation=text["incarnation"],
            step=_count(int(text["step"])),
            chain=text["chain"],
            prev_chain=text["prev_chain"],
            settings=_object(json.loads(text["settings"])),
            settings_revision=_count(int(text["settings_revision"])),
            snapshots=tuple(_snapshot(item) for item in json.loads(text["snapshots"])),
            parameters_missing=text["parameters_missing"] == "1",
            log_bytes=_count(int(text["log_bytes"])),
            progress=_object(json.loads(text.get("progress", "{}"))),  # the first heads had none
        )

    head = _checked(f"the head of session {session_id}", read)
    if not head.snapshots and not head.parameters_missing:
        raise InternalError(f"the head of session {session_id} names no snapshot")
    return head


def spec_from(raw: Any) -> Spec:
    """Read a spec; raises what the wrong kind of value raises."""
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
    )


def standing_from(values: list[bytes | None]) -> Standing | None:
    """Read the fields of `STANDING`; None where there is no head.

    Raises:
        InternalError: it is damaged.

    """
    if not any(values):
        return None

    def read() -> Standing:
        texts = [value.decode() if value is not None else "" for value in values]
        return Standing(texts[0], int(texts[1]), texts[2], int(texts[3]), texts[4] == "1")

    return _checked("a head", read)


def entry_text(entry: Entry) -> str:
    """Return a place of the ring as text."""
    return f"{entry.step} {entry.digest} {entry.attempt} {entry.chain}"


def entry_from(raw: bytes) -> Entry:
    """Read a place of the ring.

    Raises:
        InternalError: it is damaged.

    """

    def read() -> Entry:
        step, digest, attempt, chain = raw.decode().split(" ")
        return Entry(int(step), digest, attempt, chain)

    return _checked("a place of the ring", read)


def record_meta(record: Record) -> str:
    """Return a record as text, without its inline body."""
    told = {"best": True} if record.best else {}
    return dumps(
        {
            "step": record.step,
            "attempt": record.attempt,
            "digest": record.digest,
            "prev_chain": record.prev_chain,
            "chain": record.chain,
            "dtype": record.dtype,
            "encoding": record.encoding,
            "updates": record.updates,
            "chunks": list(record.chunks),
            "settings": record.settings,
            "metrics": record.metrics,
            "numerics": record.numerics,
            **told,
        }
    )


def record_from(step: int, meta: bytes, inline: bytes) -> Record:
    """Read a record.

    Raises:
        InternalError: it is damaged, or another step's.

    """

    def read() -> Record:
        raw = json.loads(meta)
        encoding = raw.get("encoding", RAW)  # the first records did not say it
        if raw["step"] != step or raw["dtype"] not in ITEMSIZE or encoding not in ENCODINGS:
            raise ValueError("step, dtype or encoding")
        chunks = tuple(_count(length) for length in raw["chunks"])
        return Record(
            step=step,
            attempt=_text(raw["attempt"]),
            digest=_text(raw["digest"]),
            prev_chain=_text(raw["prev_chain"]),
            chain=_text(raw["chain"]),
            dtype=raw["dtype"],
            updates=list(raw["updates"]),
            chunks=chunks,
            inline=None if chunks else inline,
            settings=None if raw["settings"] is None else _object(raw["settings"]),
            metrics=_object(raw["metrics"]),
            numerics=_text(raw["numerics"]),
            encoding=encoding,
            best=raw.get("best") is True,
        )

    return _checked(f"the record of step {step}", read)


def _snapshot(raw: Any) -> SnapshotRef:
    arrays = tuple(
        ArrayRef(_array(item["name"]), tuple(_count(n) for n in item["chunks"]), _text(item["digest"]))
        for item in raw["arrays"]
    )
    return SnapshotRef(
        id=_text(raw["id"]),
        step=_count(raw["step"]),
        chain=_text(raw["chain"]),
        counts=tuple(_count(count) for count in raw["counts"]),
        arrays=arrays,
        carried={_text(name): tuple(map(_finite, values)) for name, values in raw.get("carried", {}).items()},
    )


def _checked(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, AdamdError) as error:
        raise InternalError(f"{what} in the store is damaged ({type(error).__name__}: {error})") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _array(value: Any) -> str:
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
    """Read what `commit.lua` says."""
    said = verdict[0].decode()
    if said in ("committed", "again"):
        return Committed(again=said == "again")
    return Lost(cast(Literal["moved", "fenced", "chunks", "idempotency"], said))
