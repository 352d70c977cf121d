"""Resolves ids and names of sessions: durable ones in the store, memory ones in this process."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from contextvars import ContextVar

from adamd.errors import (
    IdempotencyMismatch,
    SessionDeleted,
    SessionExists,
    UnknownSession,
    WrongReplica,
)
from adamd_service.engine.cache import Hot, HotSessions
from adamd_service.engine.calls import SessionView
from adamd_service.engine.workers import Workers
from adamd_service.records import Broken, Head, IdempotencyKey
from adamd_service.store import RedisStore
from adamd_service.store.index import place
from adamd_service.store.index import token as index_token

ASKED: ContextVar[str] = ContextVar("adamd_session_asked_for", default="")  # of the current call, for the log
REMEMBERED = 4096  # keys of memory sessions' creations, and deleted memory sessions


class Directory:
    """Finds sessions, and knows the names and keys of this replica's memory sessions. Used on the event loop only."""

    def __init__(self, store: RedisStore, hot: HotSessions, workers: Workers, replica: str, tenant: str) -> None:
        self._store = store
        self._hot = hot
        self._workers = workers
        self._replica = replica
        self._tenant = tenant
        self._names: dict[str, str] = {}
        self._keys: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()

    async def resolve(self, ref: str) -> str:
        """Turn an id or a name into an id. Ids begin with s_ or m_, names cannot.

        Raises:
            UnknownSession, SessionDeleted: there is none, or no more.
            WrongReplica: it lives in another process's memory.

        """
        ASKED.set(ref)
        if ref in self._names:
            return self._names[ref]
        if ref.startswith("m_"):
            if self._hot.find(ref) is None:
                await self._elsewhere(ref)
            return ref
        if ref.startswith("s_") and ref[2:].isalnum() and ref.isascii() and len(ref) <= 64:
            return ref
        return await self._workers.ask(self._store.find, self._tenant, ref)

    async def _elsewhere(self, ref: str) -> None:
        if ref in self._deleted:
            raise SessionDeleted(f"session {ref} is deleted")
        replica = ref.split("_")[1]
        if replica != self._replica and await self._workers.ask(self._store.replica_alive, replica):
            raise WrongReplica(f"session {ref} lives in the memory of replica {replica}; this is {self._replica}")
        raise UnknownSession(f"there is no session {ref!r}; a memory session ends with its process")

    def require_free(self, name: str | None) -> None:
        """Raise SessionExists where a memory session has this name."""
        owner = self._names.get(name or "")
        if owner is not None:
            hot = self._hot.find(owner)
            step = hot.loaded.head.step if hot is not None and hot.loaded is not None else None
            raise SessionExists(f"the name {name!r} is taken by the memory session {owner}", id=owner, step=step)

    async def claim(self, name: str | None) -> None:
        """Raise SessionExists where any session has this name."""
        self.require_free(name)
        if name is None:
            return
        with suppress(UnknownSession, SessionDeleted):
            owner = await self._workers.ask(self._store.find, self._tenant, name)
            raise SessionExists(f"the name {name!r} is taken by session {owner}", id=owner)
        self.require_free(name)

    def repeated(self, key: IdempotencyKey | None) -> SessionView | None:
        """Return the memory session that this very creation made before.

        Raises:
            IdempotencyMismatch: the key came with another creation.
            SessionDeleted: it is gone.

        """
        earlier = None if key is None else self._keys.get(key.key)
        if key is None or earlier is None:
            return None
        digest, session_id = earlier
        if digest != key.digest:
            raise IdempotencyMismatch("this Idempotency-Key was used to create another session; use a new key")
        hot = self._hot.find(session_id)
        if hot is None or hot.loaded is None:
            raise SessionDeleted(f"the session {session_id} that this Idempotency-Key created is deleted")
        return SessionView(hot.loaded.head, hot.loaded.settings, hot.loaded.diverged, repeated=True)

    def with_memory(
        self, heads: list[Head | Broken], size: int, after: str | None, token: str | None
    ) -> tuple[list[Head | Broken], str | None]:
        """Merge this replica's memory sessions into a page of the store's, whose next page has ``token``."""
        first, last = place(after), place(token)
        for hot in self._hot.memory_sessions():
            if hot.loaded is None:
                continue
            head = hot.loaded.head
            if (first and _place_of(head) <= first) or (last and _place_of(head) > last):
                continue
            heads.append(head)
        heads.sort(key=_place_of)
        if len(heads) > size:
            created_at, session_id = _place_of(heads[size - 1])
            return heads[:size], index_token((session_id, created_at))
        return heads, token

    def add(self, hot: Hot, name: str | None, key: IdempotencyKey | None) -> None:
        """Remember a memory session's name and key."""
        if name is not None:
            self._names[name] = hot.id
        if key is not None:
            self._keys[key.key] = key.digest, hot.id
            if len(self._keys) > REMEMBERED:
                self._keys.popitem(last=False)

    def forget(self, hot: Hot) -> None:
        """Free the name of a memory session that was deleted."""
        if hot.durable:
            return
        self._names = {name: owner for name, owner in self._names.items() if owner != hot.id}
        self._deleted[hot.id] = None
        if len(self._deleted) > REMEMBERED:
            self._deleted.popitem(last=False)


def _place_of(head: Head | Broken) -> tuple[float, str]:
    if isinstance(head, Broken):
        return head.created_at, head.id
    return head.spec.created_at, head.spec.id
