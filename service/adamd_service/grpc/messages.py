"""Converts results to messages, and fields of messages to the engine's terms."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from adamd.errors import InvalidRequest, InvalidSettings, WrongLayout
from adamd.wire.layout import MAX_TENSORS
from adamd.wire.protobuf_tables import (
    DTYPE_NAMES,
    DTYPES,
    DURABILITIES,
    DURABILITY_NAMES,
    ENCODING_NAMES,
    layout_message,
    plain,
    struct,
)
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks
from adamd_service.engine import Advice, Answer, advice_of, to_its_end
from adamd_service.optim import Settings, lr_at
from adamd_service.records import Broken, Head, Spec

QUICK = 32 * 1024  # bytes of settings up to which a hop to a thread costs more than unfolding them


def short(head: Head | Broken) -> pb.Session:
    """Return one session of the list."""
    if isinstance(head, Head):
        return session(head, None, diverged=False)
    message = pb.Session(id=head.id, damaged=head.detail)
    message.created_at.FromMicroseconds(round(head.created_at * 1e6))
    return message


def session(head: Head, settings: Settings | None, *, diverged: bool) -> pb.Session:
    """Return a session as it stands; without its parsed settings, the short form for the list."""
    spec = head.spec
    message = pb.Session(
        id=spec.id,
        name=spec.name or "",
        step=head.step,
        chain=head.chain,
        incarnation=head.incarnation,
        optimizer=struct(head.settings),
        settings_revision=head.settings_revision,
        dtype=DTYPES[spec.dtype],
        durability=DURABILITIES[spec.durability],
        labels=spec.labels,
        parameters_missing=head.parameters_missing,
        diverged=diverged,
        elements=spec.layout.size,
    )
    message.created_at.FromMicroseconds(round(spec.created_at * 1e6))
    if head.snapshots:
        message.snapshot_step = head.snapshots[-1].step
    if settings is not None:  # what takes time, which a page of a thousand sessions leaves out
        message.lr, advice = lr_at(settings, head.step + 1), advice_of(head, settings)
        message.stop = advice.stop or ""
        message.warnings.extend(warnings(advice))
        if head.progress:
            message.progress.update(head.progress)
        message.layout.CopyFrom(layout_message(spec.layout))
        if spec.rounds is not None:
            message.rounds.update(spec.rounds)
    return message


def standing(answer: Answer) -> pb.Standing:
    """Return where a session stands after a step, or with these parameters."""
    return pb.Standing(
        step=answer.step,
        chain=answer.chain,
        durability=DURABILITIES[answer.spec.durability],
        dtype=DTYPES[answer.dtype],
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
        durability=DURABILITIES[spec.durability],
        dtype=DTYPES[spec.dtype],
        nbytes=nbytes,
        diverged=diverged,
    )


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


def dtype(value: int, where: str) -> str | None:
    """Return a dtype's name; None where it is not specified.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    return _name(DTYPE_NAMES, value, where, "no dtype") if value else None


def durability(value: int) -> str:
    """Return a durability's name.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    return _name(DURABILITY_NAMES, value or pb.DURABILITY_COMMITTED, "durability")


def encoding(value: int) -> str:
    """Return an encoding's name.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    return _name(ENCODING_NAMES, value or pb.ENCODING_RAW, "encoding")


def _name(names: Mapping[int, str], number: int, where: str, none: str = "none") -> str:
    if number not in names:
        raise InvalidRequest(f"{where}: {number} is {none} that this server knows", path=where)
    return names[number]


def key(value: str) -> str | None:
    """Return an idempotency key; None where it is empty."""
    return checks.key(value, "idempotency_key") if value else None
