"""What nothing names any more, unlinked once no reader can still follow it."""

from __future__ import annotations

import json
from typing import Any, cast

from adamd.errors import InternalError
from adamd_service.store import chunks, codec
from adamd_service.store.connect import Client
from adamd_service.store.keys import SessionKeys
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
                unlinked += _unlink(client, _snapshot_keys(keys, found["snapshot"]))
            else:
                unlinked += _records(client, keys, int(found["first"]), int(found["last"]))
            client.lrem(keys.garbage, 1, entry.decode())
    return unlinked


def _snapshot_keys(keys: SessionKeys, snapshot: dict[str, Any]) -> list[str]:
    return [
        keys.snapshot(snapshot["id"], array["name"], index)
        for array in snapshot["arrays"] or ()
        for index in range(len(array["chunks"]))
    ]


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
        unlinked += _unlink(client, [keys.chunk(attempt.decode(), i) for i in range(count)])
        unlinked += _unlink(client, [keys.record(step)])
    return unlinked


def _unlink(client: Client, names: list[str]) -> int:
    for start in range(0, len(names), chunks.BATCH):
        client.unlink(*names[start : start + chunks.BATCH])
    return len(names)
