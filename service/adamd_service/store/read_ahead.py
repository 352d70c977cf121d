"""Reads a small session with one question to the store: each further one costs as much as its whole state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from adamd.wire.buffers import Bytes
from adamd_service.records import ArrayRef, Entry, Head, Record
from adamd_service.store import chunks, serialization
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys, snapshot_keys

QUICK_BYTES: Final = 1024 * 1024  # of snapshot and log
QUICK_RECORDS: Final = 64


class Reader(Protocol):
    """What a session is rebuilt from; the store's methods say what each returns and raises."""

    def ring(self, session_id: str) -> list[Entry]:
        """Return the last steps that are remembered."""

    def records(self, session_id: str, first: int, last: int) -> list[Record]:
        """Return the records from ``first`` to ``last``, as far as they are there without a gap."""

    def read_body(self, session_id: str, record: Record, into: Bytes) -> None:
        """Fill ``into`` with a record's body."""

    def read_array(self, session_id: str, snapshot: str, ref: ArrayRef, into: Bytes) -> None:
        """Fill ``into`` with an array of a snapshot."""


def is_quick(head: Head) -> bool:
    """Say whether a session is read so soon that it needs no lease, which costs the store two writes.

    What is unlinked meanwhile is found to be missing, or to have another digest, and the head is read again.
    """
    if not head.snapshots:
        return True
    newest = head.snapshots[-1]
    return head.log_bytes + newest.nbytes <= QUICK_BYTES and head.step - newest.step <= QUICK_RECORDS


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """One answer of the store: the newest snapshot's chunks, the records since, and the ring. The rest is asked for."""

    store: Reader
    chunks: Mapping[str, bytes | None]
    raw_records: Mapping[int, Sequence[bytes | None]]
    raw_ring: Sequence[bytes]

    def ring(self, session_id: str) -> list[Entry]:
        """Return the last steps that are remembered, in no order."""
        with translated():
            return [serialization.entry_from(value) for value in self.raw_ring]

    def records(self, session_id: str, first: int, last: int) -> list[Record]:
        """Return the records from ``first`` to ``last``, as far as they are there without a gap."""
        if not all(step in self.raw_records for step in range(first, last + 1)):
            return self.store.records(session_id, first, last)
        records = []
        with translated():
            for step in range(first, last + 1):
                meta, *rest = self.raw_records[step]
                if meta is None:
                    break
                records.append(serialization.record_from(step, meta, *(value or b"" for value in rest)))
        return records

    def read_body(self, session_id: str, record: Record, into: Bytes) -> None:
        """Fill ``into`` with a record's body; raises ChunkMissing."""
        self.store.read_body(session_id, record, into)

    def read_array(self, session_id: str, snapshot: str, ref: ArrayRef, into: Bytes) -> None:
        """Fill ``into`` with an array of a snapshot; raises ChunkMissing, Damaged."""
        names = BulkName(session_id, snapshot, ref.name).keys(ref.bulk)
        if ref.bulk.extent or not all(name in self.chunks for name in names):
            self.store.read_array(session_id, snapshot, ref, into)
            return
        chunks.join((self.chunks[name] for name in names), ref.bulk.chunks, into)
        chunks.check_array(ref, into)


def read_ahead(client: Client, store: Reader, head: Head) -> Reader:
    """Ask for everything that ``head`` needs at once. Where a part of it is damaged, the store tells which."""
    names = SessionKeys(head.spec.id)
    keys = [] if not head.snapshots or head.snapshots[-1].damage else snapshot_keys(names, head.snapshots[-1:])
    first = head.snapshots[-1].step if head.snapshots else head.step
    steps = range(max(1, first), head.step + 1)
    with translated(head.spec.id):
        pipeline = client.pipeline(transaction=False)
        pipeline.hvals(names.ring)
        for key in keys:
            pipeline.get(key)
        for step in steps:
            pipeline.hmget(names.record(step), ["meta", "inline", "attempt", "chain"])
        answers = pipeline.execute(raise_on_error=False)
    if any(isinstance(answer, Exception) for answer in answers):
        return store
    ring, got = cast("list[bytes]", answers[0]), answers[1 : 1 + len(keys)]
    return ReadAhead(
        store, dict(zip(keys, got, strict=True)), dict(zip(steps, answers[1 + len(keys) :], strict=True)), ring
    )
