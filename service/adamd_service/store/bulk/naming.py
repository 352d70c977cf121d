"""Finds which extents the store names. A start builds the list of free extents from this: the rest is free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, cast

import structlog

from adamd_service.store import serialization
from adamd_service.store.bulk.extents import Owner
from adamd_service.store.connection.connect import Client
from adamd_service.store.keys import SessionKeys

SESSIONS: Final = 64  # read by one pipeline
RECORDS: Final = 512
MOST_RECORDS: Final = 10**7  # of one session: a damaged number makes no endless loop
NAMES: Final = re.compile(rb"[cx][0-9]{6,15}-[0-9]{1,12}")
NOT_READABLE: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
log = structlog.get_logger()


def named_extents(client: Client, sessions: Sequence[str]) -> Iterator[tuple[str, Owner]]:
    """Yield each extent that heads, records, contributions and garbage of these sessions name, and its owner."""
    for start in range(0, len(sessions), SESSIONS):
        group = sessions[start : start + SESSIONS]
        pipeline = client.pipeline(transaction=False)
        for session_id in group:
            names = SessionKeys(session_id)
            pipeline.hmget(names.head, ["snapshots", "log_first", "step"])
            pipeline.lrange(names.garbage, 0, -1)
            pipeline.hvals(names.pending)
        answers = pipeline.execute()
        for session_id, head, garbage, waiting in zip(group, answers[::3], answers[1::3], answers[2::3], strict=True):
            try:
                yield from [*_of_session(client, session_id, head, garbage), *_of_contributions(session_id, waiting)]
            except NOT_READABLE:
                log.warning("a damaged session keeps every extent that it may name", session=session_id)
                yield from _anything_like_a_name(client, session_id)


def _of_session(
    client: Client, session_id: str, head: Sequence[bytes | None], garbage: Sequence[bytes]
) -> Iterator[tuple[str, Owner]]:
    snapshots, spans = list[Mapping[str, Any]](), list[range]()
    if any(value is not None for value in head):
        snapshots_text, first, step = (value or b"" for value in head)
        snapshots += json.loads(snapshots_text)
        spans.append(range(int(first), int(step) + 1))
    for raw in garbage:
        entry = json.loads(raw)
        if entry["kind"] == "snapshot":
            snapshots.append(entry["snapshot"])
        elif entry["kind"] == "records":
            spans.append(range(int(entry["first"]), int(entry["last"]) + 1))
        elif entry["kind"] == "contribution":
            yield from _of_contribution(session_id, entry["contribution"])
        elif entry["kind"] == "rounds":
            continue
        else:
            raise ValueError(entry["kind"])
    for snapshot in snapshots:
        for array in snapshot["arrays"] or ():
            extent = serialization.bulk_from(array).extent
            if extent:
                yield extent, Owner(session_id, snapshot["id"], array["name"])
    if sum(map(len, spans)) > MOST_RECORDS:
        raise ValueError("more records than any log has")
    yield from _of_records(client, session_id, spans)


def _of_contributions(session_id: str, waiting: Sequence[bytes]) -> Iterator[tuple[str, Owner]]:
    for raw in waiting:
        yield from _of_contribution(session_id, json.loads(raw))


def _of_contribution(session_id: str, contribution: Mapping[str, Any]) -> Iterator[tuple[str, Owner]]:
    extent = serialization.bulk_from(contribution).extent
    if extent:
        yield extent, Owner(session_id, contribution["attempt"])


def _of_records(client: Client, session_id: str, spans: Sequence[range]) -> Iterator[tuple[str, Owner]]:
    names = SessionKeys(session_id)
    every = list(chain.from_iterable(spans))
    for start in range(0, len(every), RECORDS):
        steps = every[start : start + RECORDS]
        pipeline = client.pipeline(transaction=False)
        for step in steps:
            pipeline.hmget(names.record(step), ["meta", "attempt"])
        for meta, attempt in pipeline.execute():
            if meta is not None and b'"extent"' in meta:
                yield serialization.bulk_from(json.loads(meta)).extent, Owner(session_id, (attempt or b"").decode())


def _anything_like_a_name(client: Client, session_id: str) -> Iterator[tuple[str, Owner]]:
    """Yield what looks like an extent's name in a session's hashes: what it may need is not overwritten."""
    names = SessionKeys(session_id)
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", names.prefix) + "*"
    for key in client.scan_iter(match=pattern, count=1000):
        if client.type(key) == b"hash":
            values = cast("list[bytes]", client.hvals(key))
        elif key == names.garbage.encode():
            values = cast("list[bytes]", client.lrange(key, 0, -1))
        else:
            continue
        for name in NAMES.findall(b" ".join(values)):
            yield name.decode(), Owner(session_id, "")
