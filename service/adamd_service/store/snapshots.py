"""Writes snapshots into the store: array by array first, then named by the head."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import xxhash

from adamd.wire.buffers import Bytes
from adamd_service.records import ArrayRef, BulkRef, Carried, Head, SnapshotRef, Spec
from adamd_service.store import chunks, garbage, serialization
from adamd_service.store.bulk.homes import Homes
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.commit_call import Arguments
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys, snapshot_keys, snapshot_lengths
from adamd_service.store.scripts import script


class StoredSnapshots:
    """The snapshots of all sessions, as they are written. They are read by `RedisStore.read_array`. Thread-safe.

    Every method raises as those of `RedisStore` do.
    """

    def __init__(self, client: Client, bulk: Homes, grow: Callable[[int], None], tidy: Callable[[], None]) -> None:
        """Take what the store has; see `RedisStore`.

        Args:
            client: the store.
            bulk: where the arrays go.
            grow: raises StoreFull where the disk has no room for so many bytes more.
            tidy: raises StoreFull where it has no room even for something small.

        """
        self._client = client
        self._bulk = bulk
        self._grow = grow
        self._tidy = tidy

    def write_array(
        self, session_id: str, snapshot: str, name: str, data: Bytes, pace: Callable[[int], None] | None = None
    ) -> ArrayRef:
        """Write one array of a snapshot. `commit` or `discard` has to follow.

        Where neither does, chunks go away by themselves, after a while, and an extent is free at the next start.

        ``pace`` is told the bytes of each piece that the store got (0 for one in files), and may wait or raise.
        """
        whose = BulkName(session_id, snapshot, name)
        if files := self._bulk.files_for(session_id, data.nbytes):
            return ArrayRef(name, files.write(whose, data, pace), xxhash.xxh3_128_hexdigest(data))
        return chunks.write_array(self._client, whose.key, name, data, pace, self._grow)

    def write_first(
        self, head: Head, arrays: Mapping[str, Any], counts: tuple[int, ...], carried: Carried | None = None
    ) -> SnapshotRef:
        """Write the snapshot that a session begins with: ``arrays``, flat, by name. Nothing is left of an error."""
        snapshot, refs = secrets.token_hex(8), list[ArrayRef]()
        try:
            for name, array in arrays.items():
                refs.append(self.write_array(head.spec.id, snapshot, name, array.view("uint8")))
        except BaseException:
            self.discard(head.spec.id, snapshot, refs)
            raise
        return SnapshotRef(snapshot, head.step, head.chain, counts, tuple(refs), carried or {})

    def commit(self, spec: Spec, incarnation: str, ref: SnapshotRef, covered: int, damaged: str = "") -> bool:
        """Make a written snapshot the newest; False where the history went another way.

        ``covered``: bytes of bodies in the log up to its step, since the snapshot before. ``damaged``: the id of the
        newest snapshot, where it is damaged: the new one takes its place, and the one before it stays.
        """
        names = SessionKeys(spec.id)
        script_keys = [names.head, names.record(ref.step), names.garbage, names.bulk, *snapshot_keys(names, (ref,))]
        self._tidy()
        with translated():
            text = serialization.snapshot_text(ref)
            args: Arguments = [incarnation, ref.chain, text, covered, damaged, self._bulk.token(bulk_of((ref,)))]
            args += snapshot_lengths((ref,))
            garbage.expect(self._client, spec.tenant, spec.id)
            if not self._bulk.doubts.add(spec.id, ref.id, bulk_of((ref,))):
                return False
            verdict = script("snapshot").repeatably(self._client, script_keys, *args)
            self._bulk.doubts.settle(spec.id, ref.id, named=verdict[0] == b"kept")
            return verdict[0] == b"kept"

    def discard(self, session_id: str, snapshot: str, arrays: Sequence[ArrayRef]) -> None:
        """Let go of written arrays of a snapshot that will not be committed."""
        self.discard_all(session_id, (SnapshotRef(snapshot, 0, "", (), tuple(arrays)),))

    def discard_all(self, session_id: str, snapshots: Sequence[SnapshotRef]) -> None:
        """Let go of all that was written of these snapshots, which nothing will name. What is named stays."""
        for ref in snapshots:
            self._bulk.release(session_id, ref.id)
            chunks.discard(self._client, snapshot_keys(SessionKeys(session_id), (ref,)))


def bulk_of(snapshots: Iterable[SnapshotRef]) -> Iterator[BulkRef]:
    """Yield where the arrays of snapshots lie."""
    return (array.bulk for ref in snapshots for array in ref.arrays)
