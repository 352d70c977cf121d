"""Writes snapshots in the background, paced, from a copy, when the log has outgrown the state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from adamd.errors import StoreUnavailable
from adamd.wire.buffers import BufferPool
from adamd.wire.dtypes import storage
from adamd_service.engine.cache import Hot, LoadedSession
from adamd_service.engine.calls import Floats
from adamd_service.engine.lifecycle import snapshot_ref
from adamd_service.optim import Device, State
from adamd_service.records import ArrayRef, Head, SnapshotRef
from adamd_service.store import RedisStore

SMALL_LOG_BYTES = 4 * 1024 * 1024  # a log below this is read back in no time, whatever the ratio


@dataclass(frozen=True, slots=True)
class Copy:
    """A state as it stood under the lock."""

    head: Head
    state: State
    ref: SnapshotRef
    covered: int  # bytes of bodies in the log up to its step, since the snapshot before
    replaced: str  # the id of the newest snapshot, where it is damaged


class Snapshots:
    """Decides when a snapshot is due, copies the state, writes it, and collects garbage."""

    def __init__(
        self, store: RedisStore, pool: BufferPool, device: Device, *, ratio: float, records: int, pace: float
    ) -> None:
        self._store = store
        self._pool = pool
        self._device = device
        self._ratio = ratio
        self._records = records
        self._pace = pace  # bytes a second

    def due(self, hot: Hot) -> bool:
        """Say whether the log has outgrown the state by the ratio, or has too many records to replay quickly."""
        return hot.durable and not hot.snapshotting and hot.loaded is not None and self._outgrown(hot.loaded)

    def _outgrown(self, loaded: LoadedSession) -> bool:
        if loaded.state is None:
            return False
        if loaded.replaced:
            return True
        if loaded.head.step - loaded.snapshot_step >= self._records:
            return True
        return loaded.log_bytes >= max(SMALL_LOG_BYTES, self._ratio * loaded.state.nbytes)

    def still_due(self, hot: Hot) -> bool:
        """Ask the store whether another replica took the snapshot already. Runs under the session's lock."""
        head, loaded = self._store.load_head(hot.id), hot.loaded
        if loaded is None:
            return False
        loaded.head = replace(loaded.head, snapshots=head.snapshots)
        loaded.note_snapshots(head)
        if not head.snapshots or head.snapshots[-1].id != loaded.replaced:
            loaded.replaced = ""
        return self._outgrown(loaded)

    def copy(self, hot: Hot) -> Copy:
        """Copy the state into pooled memory. Runs under the session's lock.

        Raises:
            StoreUnavailable: the cache was dropped meanwhile.

        """
        loaded = hot.loaded
        if loaded is None or loaded.state is None:
            raise StoreUnavailable("the session is being reloaded; try again", retry_after=0.5)
        head, state, kind = loaded.head, loaded.state, storage(loaded.head.spec.dtype)

        def clone(array: Floats) -> Floats:
            into = self._pool.lease(array.nbytes).view(kind)
            np.copyto(into, array)
            return into

        self._device.fetch(state)
        return Copy(head, state.copy(clone), snapshot_ref(head, state), loaded.log_bytes, loaded.replaced)

    def write(self, copy: Copy, pointless: Callable[[], str]) -> bool:
        """Write a copy, paced, and make it the newest snapshot; False where the history went another way.

        Raises:
            InterruptedError: ``pointless`` returned a reason, between two chunks.

        """
        spec = copy.head.spec
        started, written = time.monotonic(), 0

        def pace(nbytes: int) -> None:
            nonlocal written
            written += nbytes
            early = written / self._pace - (time.monotonic() - started)
            if why := pointless():
                raise InterruptedError(why)
            if early > 0:
                time.sleep(min(early, 1.0))

        refs: list[ArrayRef] = []
        try:
            for name, array in copy.state.kept.items():
                refs.append(self._store.snapshots.write_array(spec.id, copy.ref.id, name, array.view(np.uint8), pace))
        except BaseException:
            self._store.snapshots.discard(spec.id, copy.ref.id, refs)
            raise
        ref = replace(copy.ref, arrays=tuple(refs))
        done = self._store.snapshots.commit(spec, copy.head.incarnation, ref, copy.covered, copy.replaced)
        if not done:
            self._store.snapshots.discard(spec.id, copy.ref.id, refs)
        self._store.collect(spec.id)
        return done
