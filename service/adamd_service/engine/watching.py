"""Yields events to watchers when a session moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from adamd.errors import SessionDeleted
from adamd_service.engine.cache import HotSessions, LoadedSession
from adamd_service.engine.workers import Workers
from adamd_service.records import Head
from adamd_service.store import RedisStore

POLL_SECONDS = 1.0  # between two looks at the store: other replicas step the session too
MIN_GAP_SECONDS = 0.05  # between two events of one watcher


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Where a session stands. ``metrics`` are those of its last step; ``diverged``, as far as its state is here."""

    head: Head
    metrics: Mapping[str, Any]
    diverged: bool


class Watchers:
    """Yields where sessions stand, to many watchers at once. Used on the event loop only."""

    def __init__(self, store: RedisStore, hot: HotSessions, workers: Workers, draining: Callable[[], None]) -> None:
        self._store = store
        self._hot = hot
        self._workers = workers
        self._draining = draining
        self._events: dict[str, set[asyncio.Event]] = {}

    def moved(self, session_id: str) -> None:
        """Wake the watchers of this session."""
        if self._events:
            for event in self._events.get(session_id, ()):
                event.set()

    async def watch(self, session_id: str, *, every_look: bool = False) -> AsyncGenerator[WatchEvent]:
        """Yield where a session stands, at once and whenever it has moved; see `Engine.watch`.

        ``every_look``: also where it has not, as its rounds may have.
        """
        last: Head | None = None
        latest: WatchEvent | None = None
        with self.listening(session_id) as moved:
            while True:
                self._draining()
                moved.clear()
                event = await self._look(session_id, last)
                if event is None and every_look and latest is not None:
                    event = latest
                if event is not None:
                    last, latest = event.head, event
                    yield event
                    await asyncio.sleep(MIN_GAP_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await moved.wait()

    @contextmanager
    def listening(self, session_id: str) -> Iterator[asyncio.Event]:
        """Hand out an event that `moved` sets."""
        event = asyncio.Event()
        listeners = self._events.setdefault(session_id, set())
        listeners.add(event)
        try:
            yield event
        finally:
            listeners.discard(event)
            if not listeners and self._events.get(session_id) is listeners:
                del self._events[session_id]

    async def _look(self, session_id: str, last: Head | None) -> WatchEvent | None:
        """Return where the session stands; None if ``last`` says so. Its state is not loaded for that."""
        if session_id.startswith("m_"):
            loaded = self._loaded(session_id)
            if loaded is None:
                raise SessionDeleted(f"the memory session {session_id} is no more")
            return None if loaded.head is last else WatchEvent(loaded.head, loaded.metrics or {}, loaded.diverged)
        standing = await self._workers.ask(self._store.standing, session_id)
        if last is not None and standing.is_of(last):
            return None
        loaded = self._loaded(session_id)
        if loaded is not None and loaded.metrics is not None and standing.is_of(loaded.head):
            return WatchEvent(loaded.head, loaded.metrics, loaded.diverged)
        head = await self._workers.ask(self._store.load_head, session_id)
        return WatchEvent(head, await self.measured(head), diverged=False)

    def _loaded(self, session_id: str) -> LoadedSession | None:
        hot = self._hot.find(session_id)
        return None if hot is None else hot.loaded

    async def measured(self, head: Head) -> Mapping[str, Any]:
        """Return what the last step of a stored session carried, from its record."""
        records = await self._workers.ask(self._store.records, head.spec.id, head.step, head.step) if head.step else ()
        return records[0].metrics if records else {}
