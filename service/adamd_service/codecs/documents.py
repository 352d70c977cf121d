"""Documents that every transport sends: sessions, the server, and problems (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adamd.errors import AdamdError
from adamd.wire import channel
from adamd.wire.dtypes import SESSION_DTYPES
from adamd.wire.encodings import ENCODINGS
from adamd.wire.layout import Layout, some
from adamd_service.codecs.bodies import check_labels
from adamd_service.codecs.checks import MAX_LABELS, parse_json, validated
from adamd_service.engine import Advice, Engine
from adamd_service.optim import FAMILY, NUMERICS_ID, Settings, lr_at, settings_of
from adamd_service.records import Broken, Head
from adamd_service.rounds.settings import shown_to_all

SORTED = "sorted_by_name"  # a creation's warning: its flat vector has another order than its body had


class PatchDocument(BaseModel):
    """What a PATCH changes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    optimizer: dict[str, Any] | None = None
    labels: dict[str, str] | None = Field(None, max_length=MAX_LABELS, description="take the place of those there are")
    rounds: dict[str, Any] | None = Field(None, description='{"config": {…}}: what clients of later rounds are told')


def patch(body: memoryview) -> PatchDocument:
    """Read a PATCH.

    Raises:
        InvalidRequest: with the first fault's place.

    """
    return change(parse_json(body))


def change(raw: Any) -> PatchDocument:
    """Check a PATCH.

    Raises:
        InvalidRequest: with the first fault's place.

    """
    document = validated(PatchDocument, raw)
    check_labels(document.labels)
    return document


def summary(head: Head | Broken) -> dict[str, Any]:
    """Return one session of the list; a damaged one has only its id, its age, and what is wrong."""
    if isinstance(head, Broken):
        nothing = dict.fromkeys(("name", "step", "optimizer", "parameters", "dtype", "durability"))
        rest = {"labels": {}, "created_at": head.created_at, "damaged": head.detail}
        return {"id": head.id, **nothing, **rest}
    return {
        "id": head.spec.id,
        "name": head.spec.name,
        "step": head.step,
        "optimizer": head.settings.get("name"),
        "parameters": head.spec.layout.size,
        "dtype": head.spec.dtype,
        "durability": head.spec.durability,
        "labels": head.spec.labels,
        "created_at": head.spec.created_at,
    }


def document(head: Head, settings: Settings, advice: Advice, *, diverged: bool) -> dict[str, Any]:
    """Return a session as JSON."""
    spec = head.spec
    return {
        "id": spec.id,
        "name": spec.name,
        "step": head.step,
        "chain": head.chain,
        "incarnation": head.incarnation,
        "optimizer": head.settings,
        "lr": lr_at(settings, head.step + 1),
        "settings_revision": head.settings_revision,
        "layout": spec.layout.to_json(),
        "vector": spec.layout.vector,
        "dtype": spec.dtype,
        "durability": spec.durability,
        "labels": spec.labels,
        "created_at": spec.created_at,
        "parameters_missing": head.parameters_missing,
        "diverged": diverged,
        "stop": advice.stop,
        "warnings": warnings(advice),
        "progress": head.progress,
        "snapshot_step": head.snapshots[-1].step if head.snapshots else None,
        "rounds": None if spec.rounds is None else shown_to_all(spec.rounds),
    }


def order_notice(order: Sequence[str], layout: Layout) -> list[dict[str, Any]]:
    """Return a warning where the tensors' order is not that in which they were given, else none."""
    if not order or tuple(order) == layout.names:
        return []
    detail = (
        f"the tensors are sorted by name: {some(layout.names)}; they were given as {some(tuple(order))}. The flat "
        "vector (octet-stream, gRPC) has the order of layout. To keep yours, give a layout beside the parameters"
    )
    return [{"code": SORTED, "detail": detail, "eps": None}]


def warnings(advice: Advice) -> list[dict[str, Any]]:
    """Return a session's warnings as JSON."""
    return [{"code": warning.code, "detail": warning.detail, "eps": warning.eps} for warning in advice.warnings]


MAX_JSON = 32 * 1024 * 1024  # programs send bytes
BESIDE: dict[str, Any] = {"stop": {}, "keep_best": False}  # settings of every session, whatever its optimizer


def server_info(engine: Engine) -> dict[str, Any]:
    """Return the version, the numerics, the bounds, and what the store promises."""
    limits = engine.limits
    return {
        "version": version("adamd"),
        "replica": engine.replica,
        "numerics": NUMERICS_ID,
        "device": engine.device.described,
        "store": engine.store.promise,
        "limits": {
            "body_bytes": limits.body,
            "json_bytes": min(MAX_JSON, limits.body),
            "in_flight_bytes": limits.in_flight,
            "sessions": limits.sessions,
            "waiting": limits.waiting,
            "store_bytes": limits.store,
            "bulk_spare_bytes": limits.bulk_spare,
        },
        "grpc": {
            "message_bytes": channel.MAX_MESSAGE,
            "unary_bytes": channel.UNARY,
            "streams": limits.streams,
            "calls": limits.calls,
            "least_ping_seconds": channel.LEAST_PING,
        },
        "dtypes": list(SESSION_DTYPES),
        "optimizers": list(FAMILY),
        "settings": {name: {**settings_of(optimizer), **BESIDE} for name, optimizer in FAMILY.items()},
        "encodings": list(ENCODINGS),
    }


def problem_document(error: AdamdError, longest: int) -> dict[str, Any]:
    """Return an error's document, its detail cut to ``longest`` characters."""
    document = error.problem()
    if len(error.detail) > longest:
        document["detail"] = f"{error.detail[:longest]}…"
    finite: dict[str, Any] = _finite(document)
    return finite


def _finite(value: Any) -> Any:
    """Never echo NaN into JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
