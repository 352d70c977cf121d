"""Who wants to know when a session moves, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from adamd.errors import SessionDeleted
from adamd_service.engine.cache import HotSessions, Loaded
from adamd_service.engine.workers import Workers
from adamd_service.records import Head
from adamd_service.store import RedisStore

POLL = 1.0  # seconds after which the store is asked: other replicas step the session too
LEAST = 0.05  # seconds between two tellings


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a session stands. ``metrics`` are those of its last step; ``diverged``, as far as its state is here."""

    head: Head
    metrics: Mapping[str, Any]
    diverged: bool


class Watchers:
    """Tells of sessions that move. Used on the event loop only."""

    def __init__(self, store: RedisStore, hot: HotSessions, workers: Workers, draining: Callable[[], None]) -> None:
        self._store = store
        self._hot = hot
        self._workers = workers
        self._draining = draining
        self._events: dict[str, set[asyncio.Event]] = {}

    def moved(self, session_id: str) -> None:
        """Wake those who watch this session."""
        if self._events:
            for event in self._events.get(session_id, ()):
                event.set()

    async def watch(self, session_id: str) -> AsyncGenerator[Seen]:
        """Tell where a session stands: at once, and again when it has moved; see `Engine.watch`."""
        told: Head | None = None
        with self._listening(session_id) as moved:
            while True:
                self._draining()
                moved.clear()
                seen = await self._look(session_id, told)
                if seen is not None:
                    told = seen.head
                    yield seen
                    await asyncio.sleep(LEAST)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await moved.wait()

    @contextmanager
    def _listening(self, session_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        here = self._events.setdefault(session_id, set())
        here.add(event)
        try:
            yield event
        finally:
            here.discard(event)
            if not here and self._events.get(session_id) is here:
                del self._events[session_id]

    async def _look(self, session_id: str, told: Head | None) -> Seen | None:
        """Return where the session stands, None where that was told; a state that is not here is not loaded for it."""
        if session_id.startswith("m_"):
            loaded = self._loaded(session_id)
            if loaded is None:
                raise SessionDeleted(f"the memory session {session_id} is no more")
            return None if loaded.head is told else Seen(loaded.head, loaded.metrics or {}, loaded.diverged)
        standing = await self._workers.ask(self._store.standing, session_id)
        if told is not None and standing.is_of(told):
            return None
        loaded = self._loaded(session_id)
        if loaded is not None and loaded.metrics is not None and standing.is_of(loaded.head):
            return Seen(loaded.head, loaded.metrics, loaded.diverged)
        head = await self._workers.ask(self._store.load_head, session_id)
        return Seen(head, await self.measured(head), diverged=False)

    def _loaded(self, session_id: str) -> Loaded | None:
        hot = self._hot.find(session_id)
        return None if hot is None else hot.loaded

    async def measured(self, head: Head) -> Mapping[str, Any]:
        """Return what the last step of a stored session carried, from its record."""
        records = await self._workers.ask(self._store.records, head.spec.id, head.step, head.step) if head.step else ()
        return records[0].metrics if records else {}
