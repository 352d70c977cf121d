"""Reads what clients of rounds say, and writes tasks, rounds and events: JSON, CSV, server-sent events."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, get_args

from adamd.errors import AdamdError, InvalidRequest
from adamd.wire import headers
from adamd.wire.layout import shown
from adamd_service.aggregation import Kind
from adamd_service.codecs import checks
from adamd_service.codecs.documents import problem_document
from adamd_service.engine.rounds import (
    EXAMPLES_WORDS,
    LEAST_EXAMPLES,
    MOST_EXAMPLES,
    Contributed,
    EvaluateCall,
    Task,
)
from adamd_service.rounds import Counted, RoundDocument, RoundEvent

CLIENT_WORDS = "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"
COLUMNS: Final = (
    *("round", "state", "closed_by", "opened_at", "closed_at", "step"),
    *("client", "num_examples", "weight", "norm", "clipped", "staleness", "counted", "reason"),
)
LONGEST_PROBLEM = 2000  # characters of its detail, in an event
METRIC_COLUMN = "metrics."  # before a metric's name
_TOKEN = re.compile(r"[0-9]{1,16}", re.ASCII)
_CLIENT = re.compile(headers.CLIENT_PATTERN)


# -- what clients say


def client(value: str) -> str:
    """Return the name of a client.

    Raises:
        InvalidRequest: it can be none.

    """
    if _CLIENT.fullmatch(value) is None:
        raise InvalidRequest(f"client is {shown(value)}; wanted {CLIENT_WORDS}", path="client")
    return value


def round_number(value: int) -> int:
    """Return a round's number.

    Raises:
        InvalidRequest: not 1 to 2^53.

    """
    if not 1 <= value <= headers.MAX_STEP:
        raise InvalidRequest(f"round {value}: wanted a number from 1 to 2^53; round 1 makes step 1", path="round")
    return value


def kind(value: str | None, where: str) -> Kind:
    """Return what the numbers of a contribution are: trained - pulled (delta) where nothing is said.

    Raises:
        InvalidRequest: none of ours.

    """
    for known in get_args(Kind):
        if value in (None, known):
            found: Kind = known
            return found
    raise InvalidRequest(f"{where} is {shown(value)}; known are {', '.join(headers.KINDS)}", path=where)


def num_examples(value: object, where: str) -> float:
    """Return how many examples something was made from: its weight.

    Raises:
        InvalidRequest: no number from `LEAST_EXAMPLES` to `MOST_EXAMPLES`.

    """
    known = type(value) in (int, float)
    if not known or not LEAST_EXAMPLES <= value <= MOST_EXAMPLES:  # type: ignore[operator]  # a number by now
        raise InvalidRequest(f"{where} is {shown(value)}; {EXAMPLES_WORDS}", path=where)
    return float(value)  # type: ignore[arg-type]  # likewise


def wait(value: float, where: str = "wait_s") -> float:
    """Return for how many seconds an answer may wait.

    Raises:
        InvalidRequest: not 0 to 60.

    """
    if not 0 <= value <= headers.LONGEST_WAIT:
        raise InvalidRequest(f"{where} is {value:g}; wanted seconds from 0 to {headers.LONGEST_WAIT:g}", path=where)
    return value


def first_of_page(first: int | None, token: str | None) -> int:
    """Return the round that a page begins with: the oldest that is kept where nothing is said.

    Raises:
        InvalidRequest: both are given, or the token is none of ours.

    """
    if not token:
        return 1 if first is None else first
    if first is not None:
        raise InvalidRequest("from and page_token: both say where the page begins; send one", path="page_token")
    if _TOKEN.fullmatch(token) is None:
        raise InvalidRequest(
            f"page_token is {shown(token)}; wanted the next_page_token of an earlier answer", path="page_token"
        )
    return round_number(int(token))


def evaluation(body: memoryview, ref: str, number: int, name: str) -> EvaluateCall:
    """Read `{"num_examples": 50, "metrics": {"accuracy": 0.9}}`.

    Raises:
        InvalidRequest, MalformedBody: it is something else.

    """
    raw = checks.parse_json(body)
    if not isinstance(raw, dict) or set(raw) != {"num_examples", "metrics"}:
        raise InvalidRequest('wanted {"num_examples": 50, "metrics": {"accuracy": 0.9}}')
    return EvaluateCall(ref, number, name, num_examples(raw["num_examples"], "num_examples"), metrics(raw["metrics"]))


def metrics(raw: Any) -> Mapping[str, Any]:
    """Return the metrics of an evaluation: at least one.

    Raises:
        InvalidRequest: none, or something else than metrics.

    """
    found = checks.metrics(raw)
    if not found:
        raise InvalidRequest('metrics: wanted at least one number, as in {"accuracy": 0.9}', path="metrics")
    return found


# -- what they are told


def task_document(task: Task) -> dict[str, Any]:
    """Return a task as JSON."""
    return {
        "kind": task.kind,
        "round": task.round,
        "base_step": task.base_step,
        "selected": task.selected,
        "contributed": task.contributed,
        "config": task.config,
        "deadline": moment(task.deadline),
        "received": task.received,
        "wanted": task.wanted,
        "private": list(task.private),
    }


def standing_document(task: Task) -> dict[str, Any]:
    """Return how far a session's open round is."""
    return {"round": task.round, "received": task.received, "wanted": task.wanted}


def contributed_document(answer: Contributed) -> dict[str, Any]:
    """Return what became of a contribution, or of an evaluation."""
    return {
        "outcome": answer.outcome,
        "round": answer.round,
        "received": answer.received,
        "wanted": answer.wanted,
        "step": answer.step,
    }


def round_document(told: RoundDocument) -> dict[str, Any]:
    """Return a round as JSON. Its metrics are means over the contributions, weighted by num_examples."""
    evaluated = told.evaluation
    return {
        "round": told.round,
        "state": told.state,
        "base_step": told.base_step,
        "opened_at": moment(told.opened_at),
        "deadline": moment(told.deadline),
        "closed_at": moment(told.closed_at),
        "closed_by": told.closed_by,
        "received": told.received,
        "wanted": told.wanted,
        "config": told.config,
        "metrics": told.metrics,
        "evaluation": None
        if evaluated is None
        else {"num_examples": evaluated.num_examples, "clients": evaluated.clients, "metrics": evaluated.metrics},
        "contributions": [_counted(one) for one in told.contributions],
        "epsilon": told.epsilon,
        "step": told.step,
        "left_out": asdict(told.left_out),
        "failure": told.failure and asdict(told.failure),
    }


def _counted(one: Counted) -> dict[str, Any]:
    return {
        "client": one.client,
        "num_examples": one.num_examples,
        "metrics": one.metrics,
        "weight": one.weight,
        "norm": one.norm,
        "clipped": one.clipped,
        "staleness": one.staleness,
        "counted": one.counted,
        "reason": one.reason,
    }


def moment(seconds: float | None) -> str | None:
    """Return Unix seconds as RFC 3339 has them, in UTC: 2026-11-29T11:04:00.125Z."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def csv_of(rounds: Sequence[RoundDocument]) -> str:
    """Return rounds as CSV (RFC 4180): one row for each contribution, and a column for each metric that one has."""
    names = sorted({name for told in rounds for one in told.contributions for name in one.metrics})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *(METRIC_COLUMN + name for name in names)])
    for told in rounds:
        writer.writerows(_rows(told, names))
    return text.getvalue()


def _rows(told: RoundDocument, names: Sequence[str]) -> Iterable[list[Any]]:
    document = round_document(told)
    for one in document["contributions"]:
        values = [(document | one)[column] for column in COLUMNS]
        yield [_cell(value) for value in (*values, *(one["metrics"].get(name) for name in names))]


def _cell(value: Any) -> Any:
    """Return a value as the JSON has it; an empty cell for null."""
    return json.dumps(value) if isinstance(value, bool | float) else value


def event_text(event: RoundEvent) -> str:
    """Return an event as a stream of them has it (HTML Living Standard, section 9.2)."""
    return f"event: {event.kind}\nid: {event.id}\ndata: {json.dumps(event.data, allow_nan=False)}\n\n"


def problem_text(error: AdamdError) -> str:
    """Return a stream's last event: why it ends. A browser connects again after a second."""
    document = json.dumps(problem_document(error, LONGEST_PROBLEM), allow_nan=False)
    return f"retry: 1000\nevent: problem\ndata: {document}\n\n"
