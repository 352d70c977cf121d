"""The documents about sessions and servers that every transport tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adamd.wire.layout import Layout, some
from adamd_service.codecs.bodies import check_labels
from adamd_service.codecs.checks import MAX_LABELS, parse_json
from adamd_service.codecs.faults import validated
from adamd_service.engine import Advice, advice_of
from adamd_service.optim import lr_at, parse_settings
from adamd_service.records import Broken, Head

SORTED = "sorted_by_name"  # a creation's warning: its flat vector has another order than its body had


class PatchDocument(BaseModel):
    """What a PATCH changes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    optimizer: dict[str, Any] | None = None
    labels: dict[str, str] | None = Field(None, max_length=MAX_LABELS, description="take the place of those there are")


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
    """Return one line of the list; of a damaged session nothing is known but its id, and what is wrong."""
    if isinstance(head, Broken):
        nothing = dict.fromkeys(("name", "step", "optimizer", "parameters", "dtype", "durability"))
        known = {"labels": {}, "created_at": head.created_at, "damaged": head.detail}
        return {"id": head.id, **nothing, **known}
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


def document(head: Head, *, diverged: bool) -> dict[str, Any]:
    """Return a session as JSON."""
    spec, advice = head.spec, advice_of(head)
    return {
        "id": spec.id,
        "name": spec.name,
        "step": head.step,
        "chain": head.chain,
        "incarnation": head.incarnation,
        "optimizer": head.settings,
        "lr": lr_at(parse_settings(head.settings), head.step + 1),
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
    }


def order_notice(given: Sequence[str], layout: Layout) -> list[dict[str, Any]]:
    """Return a warning where the tensors' order is not that in which they were given, else none."""
    if not given or tuple(given) == layout.names:
        return []
    detail = (
        f"the tensors are sorted by name: {some(layout.names)}; they were given as {some(tuple(given))}. The flat "
        "vector (octet-stream, gRPC) has the order of layout. To keep yours, give a layout beside the parameters"
    )
    return [{"code": SORTED, "detail": detail, "eps": None}]


def warnings(advice: Advice) -> list[dict[str, Any]]:
    """Return what a session is warned of, as JSON."""
    return [{"code": one.code, "detail": one.detail, "eps": one.eps} for one in advice.warnings]
