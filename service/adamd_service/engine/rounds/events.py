"""Tells what happened between two looks at a session's rounds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from adamd_service.rounds import RoundDocument, RoundEvent


def events_of(closed: Sequence[RoundDocument], before: RoundDocument) -> Iterator[RoundEvent]:
    """Yield the events of rounds that closed since the open round was ``before``: contributions, and that they closed.

    ``closed``: oldest first; it may be a part of them.
    """
    seen = frozenset(_rows(before))
    for document in closed:
        for client, base in _rows(document):
            if (client, base) not in seen:
                yield _contribution(document, client, base)
        yield _round(document)


def events_between(before: RoundDocument | None, now: RoundDocument) -> Iterator[RoundEvent]:
    """Yield the events of the open round after ``before``: contributions, and itself where it changed.

    ``before``: the open round at the last look; None: this is the first.
    """
    seen = frozenset() if before is None else frozenset(_rows(before))
    rows = _rows(now)
    for client, base in rows:
        if before is not None and (client, base) not in seen:
            yield _contribution(now, client, base)
    if before is None or (before.round, before.state, before.opened_at) != (now.round, now.state, now.opened_at):
        yield _round(now)


def _rows(document: RoundDocument) -> list[tuple[str, int]]:
    return [(one.client, document.round - one.staleness) for one in document.contributions]


def _contribution(document: RoundDocument, client: str, base: int) -> RoundEvent:
    data: dict[str, Any] = {
        "round": base,
        "client": client,
        "received": document.received,
        "wanted": document.wanted,
    }
    return RoundEvent("contribution", f"{document.base_step}.{base}.{client}", data)


def _round(document: RoundDocument) -> RoundEvent:
    data: dict[str, Any] = {
        "round": document.round,
        "state": document.state,
        "closed_by": document.closed_by,
        "received": document.received,
        "wanted": document.wanted,
        "metrics": dict(document.metrics),
        "step": document.step,
        "failure": document.failure and asdict(document.failure),
    }
    return RoundEvent("round", f"{document.base_step}.{document.state}", data)
