"""Typed results to responses: headers, media types, problem documents."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response, StreamingResponse

from adamd.errors import AdamdError
from adamd.wire import headers, numbers, safetensors
from adamd_service.engine import Answer, Exported, View
from adamd_service.records import Head

PREFIX = {"params": "param"}
SLICE = 1 << 20


def document(head: Head, *, diverged: bool) -> dict[str, Any]:
    """Return a session as JSON."""
    spec = head.spec
    return {
        "id": spec.id,
        "name": spec.name,
        "step": head.step,
        "chain": head.chain,
        "incarnation": head.incarnation,
        "optimizer": head.settings,
        "settings_revision": head.settings_revision,
        "layout": spec.layout.to_json(),
        "vector": spec.layout.vector,
        "dtype": spec.dtype,
        "durability": spec.durability,
        "labels": spec.labels,
        "created_at": spec.created_at,
        "parameters_missing": head.parameters_missing,
        "diverged": diverged,
        "snapshot_step": head.snapshots[-1].step if head.snapshots else None,
    }


def session(view: View, status: int = 200) -> Response:
    """Answer with a session's document."""
    head = view.head
    extra = _standing(head.step, head.chain, head.spec.durability)
    if status == 201:
        extra["Location"] = f"/v1/sessions/{head.spec.id}"
    if view.repeated:
        extra[headers.REPLAYED] = "true"
    return JSONResponse(document(head, diverged=view.diverged), status, extra)


def parameters(answer: Answer, kind: str) -> Response:
    """Answer with parameters in ``kind``, or with nothing where none were asked for.

    JSON has no NaN and no infinity: there a diverged session's parameters are null. Octet-stream carries them.
    """
    extra = _standing(answer.step, answer.chain, answer.spec.durability)
    if answer.replayed:
        extra[headers.REPLAYED] = "true"
    if answer.diverged:
        extra["Adamd-Diverged"] = "true"
    if answer.applied_step is not None:
        extra["Adamd-Applied-Step"] = str(answer.applied_step)
    flat = answer.parameters
    if flat is None:
        return Response(status_code=204, headers=extra | {"Preference-Applied": "return=minimal"})
    extra[headers.DTYPE] = answer.spec.dtype
    raw = memoryview(flat.view(np.uint8)).cast("B") if flat.size else memoryview(b"")
    if kind == headers.OCTETS:
        return Response(raw, 200, extra, kind)
    if kind == headers.SAFETENSORS:
        tensors = ((t.name, answer.spec.dtype, t.shape) for t in answer.spec.layout.tensors)
        head = safetensors.write_header(tensors, {"adamd": json.dumps({"step": answer.step})})
        return _pieces([memoryview(head), raw], extra)
    return _as_json(answer, flat, extra)


def _as_json(answer: Answer, flat: Any, extra: dict[str, str]) -> Response:
    content: dict[str, Any] = {"step": answer.step}
    if answer.diverged and not np.isfinite(flat).all():
        content |= {"parameters": None, "diverged": True}
    else:
        content["parameters"] = numbers.parameters_to_json(flat, answer.spec.layout)
    return JSONResponse(content, 200, extra)


def state(exported: Exported) -> Response:
    """Answer with a whole state as safetensors, streamed from the copies."""
    head = exported.head
    tensors, pieces = [], []
    for array, flat in exported.arrays.items():
        prefix = PREFIX.get(array, array)
        tensors += [(f"{prefix}:{t.name}", head.spec.dtype, t.shape) for t in head.spec.layout.tensors]
        pieces.append(memoryview(flat.view(np.uint8)).cast("B") if flat.size else memoryview(b""))
    counts = dict(zip(head.spec.layout.names, exported.counts, strict=True))
    told = document(head, diverged=False) | {"state": {"step": head.step, "counts": counts}}
    header = safetensors.write_header(tensors, {"adamd": json.dumps(told)})
    extra = _standing(head.step, head.chain, head.spec.durability)
    extra["Content-Disposition"] = f'attachment; filename="{head.spec.name or head.spec.id}-{head.step}.safetensors"'
    return _pieces([memoryview(header), *pieces], extra)


def _pieces(pieces: list[memoryview], extra: dict[str, str]) -> Response:
    async def stream() -> AsyncIterator[memoryview]:
        for piece in pieces:
            for start in range(0, piece.nbytes, SLICE):
                yield piece[start : start + SLICE]

    length = sum(piece.nbytes for piece in pieces)
    return StreamingResponse(stream(), 200, extra | {"Content-Length": str(length)}, headers.SAFETENSORS)


def problem(error: AdamdError) -> Response:
    """Answer with an RFC 9457 problem document."""
    extra: dict[str, str] = {}
    if error.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.step is not None:
        extra[headers.STEP] = str(error.step)
    if error.status == 413:
        extra["Connection"] = "close"  # so that nobody sends the rest
    content = json.dumps(_finite(error.problem()), allow_nan=False)
    return Response(content, error.status, extra, headers.PROBLEM)


def _finite(value: Any) -> Any:
    """Never echo NaN into JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _standing(step: int, chain: str, durability: str) -> dict[str, str]:
    return {headers.STEP: str(step), "ETag": f'"{chain}"', headers.DURABILITY: durability}
