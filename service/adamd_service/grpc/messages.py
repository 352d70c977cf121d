"""Converts results to messages, and fields of messages to the engine's terms."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from adamd.errors import InvalidRequest, InvalidSettings, WrongLayout
from adamd.wire.layout import MAX_TENSORS
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks
from adamd_service.engine import Advice, Answer, advice_of, to_its_end
from adamd_service.optim import lr_at, parse_settings
from adamd_service.records import Broken, Head, Spec

QUICK = 32 * 1024  # bytes of settings up to which a hop to a thread costs more than unfolding them
_DTYPES = {1: "float16", 2: "bfloat16", 3: "float32", 4: "float64"}
_TO_DTYPE = {
    "float16": pb.DTYPE_FLOAT16,
    "bfloat16": pb.DTYPE_BFLOAT16,
    "float32": pb.DTYPE_FLOAT32,
    "float64": pb.DTYPE_FLOAT64,
}
_DURABILITIES = {0: "committed", 1: "committed", 2: "memory"}
_TO_DURABILITY = {"committed": pb.DURABILITY_COMMITTED, "memory": pb.DURABILITY_MEMORY}
_ENCODINGS = {0: "raw", 1: "raw", 2: "int8", 3: "sparse", 4: "sparse-lazy"}


def short(head: Head | Broken) -> pb.Session:
    """Return one session of the list."""
    if isinstance(head, Head):
        return session(head, diverged=False, layout=False)
    message = pb.Session(id=head.id, damaged=head.detail)
    message.created_at.FromMicroseconds(round(head.created_at * 1e6))
    return message


def session(head: Head, *, diverged: bool, layout: bool = True) -> pb.Session:
    """Return a session as it stands."""
    spec = head.spec
    message = pb.Session(
        id=spec.id,
        name=spec.name or "",
        step=head.step,
        chain=head.chain,
        incarnation=head.incarnation,
        optimizer=struct(head.settings),
        settings_revision=head.settings_revision,
        dtype=_TO_DTYPE[spec.dtype],
        durability=_TO_DURABILITY[spec.durability],
        labels=spec.labels,
        parameters_missing=head.parameters_missing,
        diverged=diverged,
        elements=spec.layout.size,
    )
    message.created_at.FromMicroseconds(round(spec.created_at * 1e6))
    if head.snapshots:
        message.snapshot_step = head.snapshots[-1].step
    if layout:  # and with it what takes time, which a page of a thousand sessions leaves out
        settings = parse_settings(head.settings)
        message.lr, advice = lr_at(settings, head.step + 1), advice_of(head, settings)
        message.stop = advice.stop or ""
        message.warnings.extend(warnings(advice))
        if head.progress:
            message.progress.update(head.progress)
        message.layout.vector = spec.layout.vector
        message.layout.tensors.extend(pb.Tensor(name=t.name, shape=t.shape) for t in spec.layout.tensors)
    return message


def standing(answer: Answer) -> pb.Standing:
    """Return where a session stands after a step, or with these parameters."""
    return pb.Standing(
        step=answer.step,
        chain=answer.chain,
        durability=_TO_DURABILITY[answer.spec.durability],
        dtype=_TO_DTYPE[answer.dtype],
        nbytes=0 if answer.parameters is None else answer.parameters.nbytes,
        replayed=answer.replayed,
        diverged=answer.diverged,
        applied_step=answer.applied_step,
        overflowed=answer.overflowed,
        stop=answer.advice.stop or "",
        warnings=warnings(answer.advice),
    )


def warnings(advice: Advice) -> list[pb.Stall]:
    """Return what a session is warned of."""
    return [pb.Stall(code=stall.code, detail=stall.detail, eps=stall.eps) for stall in advice.warnings]


def standing_of(spec: Spec, step: int, chain: str, nbytes: int = 0, *, diverged: bool = False) -> pb.Standing:
    """Return where a session stands."""
    return pb.Standing(
        step=step,
        chain=chain,
        durability=_TO_DURABILITY[spec.durability],
        dtype=_TO_DTYPE[spec.dtype],
        nbytes=nbytes,
        diverged=diverged,
    )


def struct(value: Mapping[str, Any]) -> Struct:
    """Return an object as a Struct, whose numbers are all doubles."""
    message = Struct()
    message.update(value)
    return message


async def unfolded(value: Struct, where: str) -> dict[str, Any]:
    """Return settings as JSON's parser would give them: a Struct's every number costs a hundred times what JSON's does.

    Raises:
        InvalidSettings: far too many.

    """
    nbytes = value.ByteSize()
    if nbytes > checks.MAX_SETTINGS:
        raise InvalidSettings(f"{where}: {nbytes} bytes; at most {checks.MAX_SETTINGS}", path=where)
    return plain(value) if nbytes <= QUICK else await to_its_end(asyncio.ensure_future(asyncio.to_thread(plain, value)))


def layout(value: pb.Layout) -> list[dict[str, Any]]:
    """Return a layout as the JSON document has it.

    Raises:
        WrongLayout: more tensors than any layout has: each would become objects before it is checked.

    """
    if len(value.tensors) > MAX_TENSORS:
        raise WrongLayout(f"{len(value.tensors)} tensors; at most {MAX_TENSORS} are possible")
    return [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in value.tensors]


def labels(value: Mapping[str, str]) -> dict[str, str]:
    """Return labels.

    Raises:
        InvalidRequest: more than a session has, as in `layout`.

    """
    if len(value) > checks.MAX_LABELS:
        raise InvalidRequest(f"labels: {len(value)}; at most {checks.MAX_LABELS}", path="labels")
    return dict(value)


def plain(value: Struct) -> dict[str, Any]:
    """Return a Struct as JSON's parser would give it. Protobuf's own parser bounds how deep it goes."""
    return {name: _plain(item) for name, item in value.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def dtype(value: int, where: str) -> str | None:
    """Return a dtype's name; None where it is not specified.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    if value not in _DTYPES and value != 0:
        raise InvalidRequest(f"{where}: {value} is no dtype that this server knows", path=where)
    return _DTYPES.get(value)


def durability(value: int) -> str:
    """Return a durability's name.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    if value not in _DURABILITIES:
        raise InvalidRequest(f"durability: {value} is none that this server knows", path="durability")
    return _DURABILITIES[value]


def encoding(value: int) -> str:
    """Return an encoding's name.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    if value not in _ENCODINGS:
        raise InvalidRequest(f"encoding: {value} is none that this server knows", path="encoding")
    return _ENCODINGS[value]


def key(value: str) -> str | None:
    """Return an idempotency key; None where it is empty."""
    return checks.key(value, "idempotency_key") if value else None
