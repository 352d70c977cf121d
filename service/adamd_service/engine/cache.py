"""Cache of sessions in memory, bounded in bytes; each may be dropped and rebuilt from the store."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adamd.errors import Busy, TooLarge
from adamd_service.optim import Settings, State
from adamd_service.records import RING, Entry, Head, Record


@dataclass(slots=True, eq=False)
class LoadedSession:
    """A session as the store has it: where it stands, its state, and what follows from both.

    Attributes:
        state: None where the parameters are missing.
        metrics: of the last step; None where it was not taken here.
        snapshot_step: the newest snapshot's step.
        log_bytes: bodies in the log after the newest snapshot.
        replaced: the newest snapshot's id, where it is damaged: a new one is due, and takes its place.

    """

    head: Head
    settings: Settings
    state: State | None
    ring: dict[int, Entry] = field(default_factory=dict)
    diverged: bool = False
    metrics: Mapping[str, Any] | None = None
    snapshot_step: int = 0
    log_bytes: int = 0
    replaced: str = ""

    def __post_init__(self) -> None:
        self.note_snapshots(self.head)

    def note_snapshots(self, head: Head) -> None:
        """Take the newest snapshot's step, and the log's length since, from a head of the store."""
        self.snapshot_step = head.snapshots[-1].step if head.snapshots else head.step
        self.log_bytes = head.log_bytes

    def advance(self, entry: Entry, settings: Settings, head: Head, record: Record) -> None:
        """Move on by one committed step."""
        self.metrics = record.metrics  # before the head, which says that they are there
        self.ring[entry.step] = entry
        self.ring.pop(entry.step - RING, None)
        self.settings = settings
        self.head = replace(head, step=entry.step, chain=entry.chain, prev_chain=head.chain)
        self.log_bytes += record.nbytes


@dataclass(slots=True, eq=False)
class Hot:
    """One session in memory.

    Attributes:
        lock: guards all of it.
        pins: how many calls use it now.
        loaded: None where the cache was dropped, or never filled: the next user rebuilds it from the store.
        keys: Idempotency-Key to digest and step; memory sessions only.
        charged: bytes, of the cache's limit.

    """

    id: str
    durable: bool
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pins: int = 0
    loaded: LoadedSession | None = None
    keys: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    charged: int = 0
    snapshotting: bool = False

    def drop(self) -> None:
        """Forget everything that the store can tell better."""
        self.loaded = None


class HotSessions:
    """Sessions in memory, least recently used first. Used on the event loop only."""

    def __init__(self, limit: int, memory_limit: int) -> None:
        self.limit = limit
        self.memory_limit = memory_limit
        self.used = 0
        self.memory_used = 0
        self._sessions: OrderedDict[str, Hot] = OrderedDict()

    @contextmanager
    def use(self, session_id: str) -> Iterator[Hot]:
        """Pin a durable session for the duration: a pinned session is not evicted."""
        hot = self._sessions.get(session_id)
        if hot is None:
            hot = self._sessions[session_id] = Hot(session_id, durable=True)
        self._sessions.move_to_end(session_id)
        hot.pins += 1
        try:
            yield hot
        finally:
            hot.pins -= 1
            if hot.durable and not hot.pins and (hot.loaded is None or self.used > self.limit):
                self._evict(hot)

    def find(self, session_id: str) -> Hot | None:
        """Return the session if it is here."""
        return self._sessions.get(session_id)

    def memory_sessions(self) -> list[Hot]:
        """Return the memory sessions, oldest first."""
        return [hot for hot in self._sessions.values() if not hot.durable]

    def add_memory(self, hot: Hot, nbytes: int) -> None:
        """Keep a `memory` session; it is never evicted, so it is refused where it does not fit.

        Raises:
            Busy: the others take the room.
            TooLarge: it would not fit alone.

        """
        if nbytes > self.memory_limit:
            raise TooLarge(f"a state of {nbytes} bytes; memory sessions have {self.memory_limit} together")
        if self.memory_used + nbytes > self.memory_limit:
            raise Busy(
                f"memory sessions hold {self.memory_used} of {self.memory_limit} bytes; delete one, or use "
                'durability "committed"',
                retry_after=5.0,
            )
        hot.charged = nbytes
        self.memory_used += nbytes
        self._sessions[hot.id] = hot

    def charge(self, hot: Hot, nbytes: int) -> None:
        """Make room for a state of ``nbytes``, evicting sessions that no call uses.

        Raises:
            TooLarge: it would not fit alone.
            Busy: sessions in use take the room.

        """
        if self._sessions.get(hot.id) is not hot:
            return  # deleted meanwhile: the store will say so
        if nbytes > self.limit:
            raise TooLarge(f"a state of {nbytes} bytes; this server keeps at most {self.limit} in memory")
        for other in list(self._sessions.values()):
            if self.used - hot.charged + nbytes <= self.limit:
                break
            if other.durable and not other.pins:
                self._evict(other)
        if self.used - hot.charged + nbytes > self.limit:
            raise Busy(f"sessions in use hold {self.used} of {self.limit} bytes; try again", retry_after=0.5)
        self.used += nbytes - hot.charged
        hot.charged = nbytes

    def forget(self, hot: Hot) -> None:
        """Let a deleted session go; its deleter has dropped what it held, under its lock."""
        self._unlist(hot)

    def _evict(self, hot: Hot) -> None:
        if self._unlist(hot):
            hot.drop()

    def _unlist(self, hot: Hot) -> bool:
        if self._sessions.get(hot.id) is not hot:
            return False
        del self._sessions[hot.id]
        if hot.durable:
            self.used -= hot.charged
        else:
            self.memory_used -= hot.charged
        hot.charged = 0
        return True


def is_finite(state: State) -> bool:
    """Say whether every parameter and second moment is finite, slice by slice; else the session is `diverged`."""
    watched = [state.params, *(state.slots[name] for name in state.optimizer.nonnegative if name in state.slots)]
    return all(
        bool(np.isfinite(array[start : start + 65_536]).all())
        for array in watched
        for start in range(0, len(array), 65_536)
    )
