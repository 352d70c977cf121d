"""Reads the documents of rounds: JSON, or what a message said, to records. Whatever they hold, it is no crash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from adamd.errors import LAST_STEP, clean
from adamd.fed.records import Contribution, Evaluation, Failure, Round
from adamd.sansio.operations import Assignment, Received, RoundsPage, bad_answer


def assignment(document: Mapping[str, Any], chain: str) -> Assignment:
    """Read a task.

    Raises:
        TransportError: it is none.

    """
    kind, number, base = document.get("kind"), document.get("round"), document.get("base_step")
    private = document.get("private")
    good = kind in ("train", "evaluate", "stop") and _is_count(number) and _is_count(base)
    if not good or not isinstance(private, list | None) or not all(isinstance(item, str) for item in private or ()):
        raise bad_answer("a document that is no task")
    assert isinstance(number, int)
    assert isinstance(base, int)
    return Assignment(
        kind=str(kind),
        round=number,
        base_step=base,
        chain=chain,
        selected=document.get("selected") is not False,
        contributed=document.get("contributed") is True,
        private=tuple(private or ()),
        document=document,
    )


def received(document: Mapping[str, Any]) -> Received:
    """Read what a server says of a reply to a round.

    Raises:
        TransportError: it says something else.

    """
    outcome = document.get("outcome")
    if outcome not in ("accepted", "duplicate"):
        raise bad_answer("an answer to a reply that says neither accepted nor duplicate")
    step, came, wanted = (_count(document, name) for name in ("step", "received", "wanted"))
    return Received(outcome == "duplicate", step, came, wanted)


def round_(document: Any) -> Round:
    """Read a round.

    Raises:
        TransportError: it is none.

    """
    try:
        state, closed_by = document["state"], document.get("closed_by")
        if state not in ("open", "overdue", "closed") or closed_by not in ("quorum", "deadline", "hand", None):
            raise ValueError("its state is none")
        if not _is_count(document["round"]) or not _is_count(document["base_step"]):
            raise ValueError("its number is none")
        return Round(
            round=document["round"],
            state=state,
            base_step=document["base_step"],
            opened_at=moment(document.get("opened_at")),
            closed_at=moment(document.get("closed_at")),
            closed_by=closed_by,
            received=_count(document, "received") or 0,
            wanted=_count(document, "wanted") or 0,
            config=config if isinstance(config := document.get("config"), dict) else {},
            metrics=_metrics(document.get("metrics")),
            evaluation=_evaluation(document.get("evaluation")),
            contributions=tuple(_contribution(item) for item in document.get("contributions") or ()),
            epsilon=_number(document.get("epsilon")),
            step=_count(document, "step"),
            failure=_failure(document.get("failure")),
            left_out=_left_out(document.get("left_out")),
            document=document,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise bad_answer(f"a document that is no round ({type(error).__name__}: {error})") from None


def rounds_page(document: Mapping[str, Any]) -> RoundsPage:
    """Read a page of rounds.

    Raises:
        TransportError: it is none.

    """
    items, token = document.get("rounds"), document.get("next_page_token")
    if not isinstance(items, list) or not isinstance(token, str | None):
        raise bad_answer("a page that is no list of rounds")
    return RoundsPage(tuple(map(round_, items)), token or None)


def moment(value: Any) -> datetime | None:
    """Return a time that was told as RFC 3339's text, or in Unix seconds; None where it is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        if type(value) in (int, float):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _contribution(item: Mapping[str, Any]) -> Contribution:
    counted, clipped, reason = item.get("counted"), item.get("clipped"), item.get("reason")
    return Contribution(
        client=clean(str(item["client"])),
        num_examples=float(item["num_examples"]),
        weight=_number(item.get("weight")),
        norm=_number(item.get("norm")),
        clipped=clipped if isinstance(clipped, bool) else None,
        staleness=_count(item, "staleness"),
        counted=counted if isinstance(counted, bool) else None,
        reason=clean(reason) if isinstance(reason, str) and reason else None,
    )


def _evaluation(raw: Any) -> Evaluation | None:
    if not isinstance(raw, Mapping):
        return None
    members = dict(raw)
    examples = _number(members.pop("num_examples", None))
    nested = members.get("metrics")
    return Evaluation(examples or 0.0, _metrics(nested if isinstance(nested, Mapping) else members))


def _failure(raw: Any) -> Failure | None:
    if not isinstance(raw, Mapping):
        return None
    return Failure(clean(str(raw["code"])), clean(str(raw.get("detail", ""))))


def _left_out(raw: Any) -> dict[str, int]:
    return {str(k): v for k, v in raw.items() if _is_count(v) and v} if isinstance(raw, Mapping) else {}


def _metrics(raw: Any) -> dict[str, float]:
    return {str(k): v for k, v in raw.items() if type(v) in (int, float)} if isinstance(raw, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _count(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if _is_count(value) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LAST_STEP
