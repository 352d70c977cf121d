"""Unlinks what nothing names any more, once no reader can still follow it.

The list of garbage is read on one connection, and unlinked maybe on another one, to another store: every unlinking is a
script that looks whether the same is still garbage there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import redis
import structlog

from adamd.errors import InternalError
from adamd_service.records import BulkRef
from adamd_service.store import chunks, serialization
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import refused
from adamd_service.store.keys import BULK_SESSIONS, KEPT_ROUNDS, IndexKeys, SessionKeys
from adamd_service.store.scripts import script

LEASE_SECONDS = 120  # that a reader's lease lasts
MAX_ENTRIES = 16  # of the garbage list, read by one call
MAX_RECORDS = 10**7  # that one entry may name: more than any log has, so that a damaged number makes no endless loop
EVERYTHING = serialization.dumps({"kind": "everything", "at": 0})
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GarbagePart:
    """Keys that `unlink.lua` unlinks together, if the record that names them (if any) belongs to ``attempt``.

    ``complete``: nothing that they name is left behind. ``extents``: free once the keys are gone.
    """

    keys: Sequence[str]
    record: str = ""
    attempt: str = ""
    complete: bool = True
    extents: tuple[tuple[BulkName, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GarbageEntry:
    """One entry of the garbage list. ``name``: the snapshot's id, the last record's step, or a contribution's name and
    attempt.
    """

    kind: str
    name: str = ""
    first: int = 0
    arrays: tuple[tuple[str, BulkRef], ...] = ()
    bulk: BulkRef = field(default_factory=BulkRef)


def collect(client: Client, keys: SessionKeys, files: FileBulk | None = None) -> int:
    """Unlink what is free; returns the number of keys and extents.

    A process that dies in between leaves the entry to the next one. ``files``: where extents that nothing names any
    more are free again. Without them, what names extents stays for the server that has these.
    """
    unlinked, tried = 0, set[bytes]()  # what the head still names stays in the list, and is not tried again and again
    while entries := _entries(client, keys, tried):
        for raw in entries:
            tried.add(raw)
            unlinked += _collected(client, keys, raw, files)
    return unlinked


def _entries(client: Client, keys: SessionKeys, tried: set[bytes]) -> list[bytes]:
    entries = script("collect")(client, [keys.garbage, keys.readers], LEASE_SECONDS, MAX_ENTRIES)
    return [entry for entry in entries if entry not in tried]


def _collected(client: Client, keys: SessionKeys, raw: bytes, files: FileBulk | None) -> int:
    """Unlink what one entry names, as long as it is garbage; returns the number of keys and extents."""
    try:
        entry = _entry(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        log.warning("damaged garbage: what it named stays until the session is deleted", key=keys.garbage)
        _unlinked(client, keys, raw, GarbageEntry("damaged"), (), EVERYTHING)
        return 0
    count, then = 0, "done"
    if files is None and entry.kind == "everything" and client.sismember(BULK_SESSIONS, keys.id):
        return 0
    for batch in _batches(_parts(client, keys, entry)):
        others = files is None and any(part.extents for part in batch)
        if others or not _unlinked(client, keys, raw, entry, batch, ""):
            return count
        count += sum(len(part.keys) for part in batch)
        if files is not None:
            count += sum(files.free(name, extent) for part in batch for name, extent in part.extents)
        then = then if all(part.complete for part in batch) else EVERYTHING
    if _unlinked(client, keys, raw, entry, (), then) and entry.kind == "everything" and files is not None:
        files.free_session(keys.id)
    return count


def _unlinked(
    client: Client, keys: SessionKeys, raw: bytes, entry: GarbageEntry, parts: Sequence[GarbagePart], then: str
) -> bool:
    """Unlink some of it; False if it is no garbage there. ``then``: what becomes of the entry, as in `unlink.lua`."""
    with_record = [part for part in parts if part.record]
    script_keys = [
        keys.head,
        keys.garbage,
        keys.pending,
        *(part.record for part in with_record),
        *(key for part in parts for key in part.keys),
    ]
    attempts = [part.attempt for part in with_record]
    return script("unlink")(client, script_keys, raw, entry.kind, entry.name, then, *attempts)[0] == b"unlinked"


def _entry(raw: bytes) -> GarbageEntry:
    """Read an entry; raises what the wrong kind of value raises."""
    document = json.loads(raw)
    if document["kind"] == "everything":
        return GarbageEntry("everything")
    if document["kind"] == "snapshot":
        snapshot = document["snapshot"]
        arrays = tuple(
            (serialization.array_name(array["name"]), serialization.bulk_from(array))
            for array in snapshot["arrays"] or ()
        )
        return GarbageEntry("snapshot", serialization.identifier(snapshot["id"]), arrays=arrays)
    if document["kind"] == "contribution":
        contribution = document["contribution"]
        name = f"{document['name']} {serialization.identifier(contribution['attempt'])}"
        return GarbageEntry("contribution", name, bulk=serialization.bulk_from(contribution))
    if document["kind"] == "rounds":
        return GarbageEntry("rounds", str(int(document["last"])))
    first, last = int(document["first"]), int(document["last"])
    if document["kind"] != "records" or not 0 < first <= last + 1 <= first + MAX_RECORDS:
        raise ValueError(document["kind"])
    return GarbageEntry("records", str(last), first=first)


def _parts(client: Client, keys: SessionKeys, entry: GarbageEntry) -> Iterator[GarbagePart]:
    if entry.kind == "snapshot":
        yield from _pieces(keys.snapshot_chunks(entry.name, ((name, len(ref.chunks)) for name, ref in entry.arrays)))
        extents = tuple((BulkName(keys.id, entry.name, name), ref.extent) for name, ref in entry.arrays if ref.extent)
        yield GarbagePart((), extents=extents)
    elif entry.kind == "contribution":
        yield from _contribution(keys, entry)
    elif entry.kind == "rounds":
        last = int(entry.name)
        yield from _pieces([keys.closed_round(number) for number in range(max(0, last - KEPT_ROUNDS), last + 1)])
    elif entry.kind == "records":
        for step in range(entry.first, int(entry.name) + 1):
            yield from _record(client, keys, step)
    else:
        yield from _pieces(_everything(client, keys))


def _record(client: Client, keys: SessionKeys, step: int) -> Iterator[GarbagePart]:
    """Yield a record and its body, the body first: a record that is left names it again."""
    record = keys.record(step)
    try:
        meta, stored_attempt = cast("list[bytes | None]", client.hmget(record, ["meta", "attempt"]))
        if meta is None and stored_attempt is None:
            return
        attempt = (stored_attempt or b"").decode()
        bulk = serialization.record_from(step, meta or b"", b"", stored_attempt).bulk
    except (redis.ResponseError, InternalError, UnicodeDecodeError) as error:
        if not _damage(error):
            raise
        yield GarbagePart([record], complete=False)  # nobody knows any more where its body is
        return
    for part in _pieces(keys.body(attempt, len(bulk.chunks))):
        yield GarbagePart(part.keys, record, attempt)
    extents = ((BulkName(keys.id, attempt), bulk.extent),) if bulk.extent else ()
    yield GarbagePart([record], record, attempt, extents=extents)


def _contribution(keys: SessionKeys, entry: GarbageEntry) -> Iterator[GarbagePart]:
    """Yield a contribution's bytes: small ones have a key of their own."""
    attempt = entry.name.rpartition(" ")[2]
    yield from _pieces([keys.contribution(attempt), *keys.body(attempt, len(entry.bulk.chunks))])
    if entry.bulk.extent:
        yield GarbagePart((), extents=((BulkName(keys.id, attempt), entry.bulk.extent),))


def _everything(client: Client, keys: SessionKeys) -> list[str]:
    """Return every key of a session that ended damaged, so that nobody knows what it named."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", keys.prefix) + "*"
    spared = {keys.garbage.encode(), keys.gone.encode()}
    names = (cast(bytes, name) for name in client.scan_iter(match=pattern, count=1000))
    return [name.decode(errors="surrogateescape") for name in names if name not in spared]


def _pieces(names: Sequence[str]) -> Iterator[GarbagePart]:
    for start in range(0, len(names), chunks.UNLINK_KEYS):
        yield GarbagePart(names[start : start + chunks.UNLINK_KEYS])


def _batches(parts: Iterator[GarbagePart]) -> Iterator[list[GarbagePart]]:
    """Group parts into batches of at most `chunks.UNLINK_KEYS` keys. Each batch is one call, and blocks the store."""
    batch, count = list[GarbagePart](), 0
    for part in parts:
        if batch and count + len(part.keys) > chunks.UNLINK_KEYS:
            yield batch
            batch, count = [], 0
        batch.append(part)
        count += len(part.keys)
    if batch:
        yield batch


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


def sweep(client: Client, tenant: str, files: FileBulk | None = None) -> int:
    """Collect for a few sessions for which that may be still to be done; returns the number of keys.

    What is damaged harms only its own session: the others' garbage goes all the same.
    """
    unlinked, index = 0, IndexKeys(tenant)
    for names in (index.deleted, index.littered):
        for member in cast("list[bytes]", client.srandmember(names, MAX_ENTRIES)):
            try:
                unlinked += _swept(client, index, names, member.decode(), files)
            except (redis.ResponseError, InternalError, UnicodeDecodeError) as error:
                if not _damage(error):
                    raise
                log.warning("garbage of a damaged session stays", session=repr(member), reason=str(error))
    return unlinked


def _damage(error: Exception) -> bool:
    """Say whether it is one session's fault, and not the store's."""
    return not isinstance(error, redis.ResponseError) or isinstance(refused(error), InternalError)


def _swept(client: Client, index: IndexKeys, names: str, session_id: str, files: FileBulk | None) -> int:
    keys = SessionKeys(session_id)
    unlinked = collect(client, keys, files)
    goes_on = names == index.deleted and client.exists(keys.head)  # its deleter is not that far yet
    if not goes_on and not client.exists(keys.garbage):
        client.srem(names, session_id)
        if client.exists(keys.garbage):  # it came in between, or the store went back
            client.sadd(names, session_id)
    return unlinked
