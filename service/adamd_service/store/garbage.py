"""What nothing names any more, unlinked once no reader can still follow it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import cast

import redis

from adamd.errors import InternalError
from adamd_service.store import chunks, codec
from adamd_service.store.connect import Client
from adamd_service.store.keys import IndexKeys, SessionKeys
from adamd_service.store.scripts import script

LEASE = 120  # seconds that a reader's lease lasts
ENTRIES = 16  # of the garbage list, looked at in one go


def collect(client: Client, keys: SessionKeys) -> int:
    """Unlink what may go; returns the number of keys. Whoever dies in between leaves the entry to the next one."""
    unlinked = 0
    while entries := script("collect")(client, [keys.garbage, keys.readers], LEASE, ENTRIES):
        for entry in entries:
            found = json.loads(entry)
            if found["kind"] == "snapshot":
                snapshot = found["snapshot"]
                arrays = ((array["name"], len(array["chunks"])) for array in snapshot["arrays"] or ())
                unlinked += _unlink(client, keys.snapshot_chunks(snapshot["id"], arrays))
            else:
                unlinked += _records(client, keys, int(found["first"]), int(found["last"]))
            client.lrem(keys.garbage, 1, entry.decode())
    return unlinked


def remember(client: Client, tenant: str, session_id: str) -> None:
    """Note that a session is about to be deleted, so that `sweep` finds what its deleter leaves behind."""
    with suppress(redis.ResponseError):  # a full store: deleting is what helps it, so that goes on
        client.sadd(IndexKeys(tenant).deleted, session_id)


def expect(client: Client, tenant: str, session_id: str) -> None:
    """Note that a session that goes on is about to unname something: whoever does so may die before it has collected,
    a reader may be at work, and the session's next snapshot may be far or never.
    """
    with suppress(redis.ResponseError):  # a full store: the session's next snapshot, or its end, does it
        client.sadd(IndexKeys(tenant).littered, session_id)


def sweep(client: Client, tenant: str) -> int:
    """Collect for a few sessions for which that may be still to be done; returns the number of keys."""
    unlinked, index = 0, IndexKeys(tenant)
    for names in (index.deleted, index.littered):
        for member in cast("list[bytes]", client.srandmember(names, ENTRIES)):
            keys = SessionKeys(member.decode())
            unlinked += collect(client, keys)
            goes_on = names == index.deleted and client.exists(keys.head)  # its deleter is not that far yet
            if not goes_on and not client.exists(keys.garbage):
                client.srem(names, member.decode())
    return unlinked


def _records(client: Client, keys: SessionKeys, first: int, last: int) -> int:
    """Unlink records and their bodies, the bodies first: a record that is left names them again."""
    unlinked = 0
    for step in range(first, last + 1):
        meta, attempt = cast("list[bytes | None]", client.hmget(keys.record(step), ["meta", "attempt"]))
        if meta is None or attempt is None:
            continue
        try:
            count = len(codec.record_from(step, meta, b"").chunks)
        except InternalError:  # damaged: what it had is unlinked all the same, or it would stay for ever
            count = chunks.MOST
        unlinked += _unlink(client, keys.body(attempt.decode(), count))
        unlinked += _unlink(client, [keys.record(step)])
    return unlinked


def _unlink(client: Client, names: list[str]) -> int:
    for start in range(0, len(names), chunks.BATCH):
        client.unlink(*names[start : start + chunks.BATCH])
    return len(names)
