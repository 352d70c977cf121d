"""What the store remembers of the bulk directory: whose it is, that its server lives, which sessions have extents."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Final, cast

import structlog
from redis.cluster import RedisCluster

from adamd.errors import AdamdError, InternalError, StoreFull, StoreUnavailable
from adamd_service.store import keys, serialization
from adamd_service.store.bulk.directory import Identity
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys
from adamd_service.store.outcomes import StoreRefused
from adamd_service.store.scripts import script

ALIVE_MS: Final = 30_000  # that the owner's sign of life lasts; it is given every ten seconds
TOKEN_SECONDS: Final = 86_400  # that a session which never was keeps its token: as long as a fence stands
log = structlog.get_logger()


class DirectoryNotes:
    """The store's notes of one bulk directory, read and written for the server that has it. Thread-safe.

    Attributes:
        start: of the directory, where other replicas share the store; else None.
        expected: sessions for which the store remembers that they may have extents.
        is_full: says whether the private store would end if it wrote anything.

    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.start: Identity | None = None
        self.expected = set[str]()
        self.is_full: Callable[[], bool] = _never
        self._identity: Identity | None = None  # which this process has had remembered
        self._place = ""  # of the directory, where other replicas share the store
        self._owed: Callable[[], bool] | None = None  # remembers the directory, once the store has room for it

    # -- the directory

    def identity(self) -> Identity | None:
        """Return the identity of the bulk directory that this store used last.

        Raises:
            StoreRefused: the store's note of it is damaged.

        """
        try:
            with translated():
                text = cast("bytes | None", self._client.get(keys.BULK))
            return None if text is None else Identity(**json.loads(text))
        except (ValueError, TypeError, InternalError) as error:
            raise StoreRefused(
                f"the store's note of its bulk directory ({keys.BULK}) is damaged: {error}; put back what it was, or "
                "delete it while the server runs that has the directory, which then writes it again"
            ) from None

    def known(self) -> Identity | None:
        """Return the identity that the store knows; None where it knows none, or its note is damaged."""
        try:
            return self.identity()
        except StoreRefused as error:
            log.error("nobody knows which server has the bulk directory", reason=str(error))
            return None

    def place(self) -> str:
        """Return the place of the directory whose server has given a sign of life lately; "" where none has."""
        with translated():
            return (cast("bytes | None", self._client.get(keys.BULK_ALIVE)) or b"").decode(errors="replace")

    def live(self, place: str) -> None:
        """Say from now on, with every look, that the server lives whose bulk directory is at ``place``."""
        self._place = place
        with translated():
            self._client.set(keys.BULK_ALIVE, place, px=ALIVE_MS)

    def end(self) -> None:
        """Take the sign of life back, so that the directory may move, unless it is another server's by now."""
        if self._place and self.place() == self._place:
            self._client.delete(keys.BULK_ALIVE)

    def remember(self, identity: Identity, known: Identity | None, sessions: int) -> bool:
        """Remember the bulk directory, if what the store knows is still this; False where another was faster.

        A private store whose disk is full would end by this write, and no server would start there. Then it is done
        before the next extent.
        """
        self._identity = identity
        self._owed = partial(self._claim, identity, "" if known is None else _text(known), sessions)
        return self.pay()

    def pay(self) -> bool:
        """Remember what is owed, where there is room; False where another was faster."""
        owed = self._owed
        if owed is None or self.is_full():
            return True
        self._owed = None
        return owed()

    def _claim(self, identity: Identity, known: str, sessions: int) -> bool:
        with translated():
            names = [keys.BULK, keys.BULK_SESSIONS]
            return script("bulk_claim")(self._client, names, known, sessions, _text(identity))[0] == b"claimed"

    # -- the sessions

    def replace_tokens(self, identity: Identity) -> None:
        """Let no commit through any more that names extents for an earlier start: they are about to be free."""
        self._find_lost()
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for session_id in self.sessions():
                pipeline.set(SessionKeys(session_id).bulk, identity.token)
            pipeline.execute()

    def _find_lost(self) -> None:
        """Note again the sessions that one part of a cluster has lost in a failover: their tokens lie in another."""
        if not isinstance(self._client, RedisCluster):  # a store with one history loses the session first
            return
        with translated():
            for key in self._client.scan_iter(match=keys.BULK_OF_SESSIONS, count=10_000):
                if session_id := keys.session_of(cast(bytes, key)):
                    self._client.sadd(keys.BULK_SESSIONS, session_id)

    def sessions(self) -> list[str]:
        """Return the sessions that may have extents."""
        with translated():
            members = cast("set[bytes]", self._client.smembers(keys.BULK_SESSIONS))
            return sorted(member.decode() for member in members)

    def living(self, sessions: Sequence[str]) -> list[str]:
        """Return those of these sessions that are not deleted."""
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for session_id in sessions:
                pipeline.exists(SessionKeys(session_id).head)
            return [session_id for session_id, exists in zip(sessions, pipeline.execute(), strict=True) if exists]

    def expect(self, session_id: str) -> None:
        """Remember that a session may have extents, before it has one.

        Raises:
            StoreUnavailable: another server has taken over the directory.
            StoreFull: the store's disk is full.

        """
        self.pay()
        if session_id in self.expected:
            return
        if self.is_full():
            raise StoreFull("the store's disk is full; delete sessions, or make room there", retry_after=2.0)
        with translated():
            if self.start is None:
                self._client.sadd(keys.BULK_SESSIONS, session_id)
            else:
                self._expect_shared(session_id, self.start)
        self.expected.add(session_id)

    def _expect_shared(self, session_id: str, start: Identity) -> None:
        names = [keys.BULK, keys.BULK_SESSIONS]
        if script("bulk_expect")(self._client, names, _text(start), session_id)[0] != b"noted":
            raise StoreUnavailable("another server has the bulk directory of this store now; ask that one")
        self._client.set(SessionKeys(session_id).bulk, start.token, nx=True)  # a later start's token stays

    def note_again(self) -> None:
        """Note directory and sessions again: the store became another process, which may have lost that."""
        with translated():
            if expected := tuple(self.expected):
                self._client.sadd(keys.BULK_SESSIONS, *expected)
            if self._identity is not None and self._client.get(keys.BULK) is None:
                self._claim(self._identity, "", len(self.sessions()))

    def forget_ended(self, sessions: Collection[str]) -> None:
        """Forget those of these sessions that are deleted and collected."""
        for session_id in sessions:
            names = SessionKeys(session_id)
            if not self._client.exists(names.head) and not self._client.exists(names.garbage):
                self._client.expire(names.bulk, TOKEN_SECONDS)  # an earlier start may be about to write its own
                self._client.srem(keys.BULK_SESSIONS, session_id)

    def deleted(self) -> set[str]:
        """Return the sessions that have a tombstone: another server has deleted them."""
        sessions = tuple(self.expected)
        pipeline = self._client.pipeline(transaction=False)
        for session_id in sessions:
            pipeline.exists(SessionKeys(session_id).gone)
        return {session_id for session_id, there in zip(sessions, pipeline.execute(), strict=True) if there}

    def repeat(self, start: Identity) -> None:
        """Give a sign of life, and repeat what a failover of the store may have lost."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(keys.BULK_ALIVE, self._place, px=ALIVE_MS)
        for session_id in tuple(self.expected):
            pipeline.sadd(keys.BULK_SESSIONS, session_id)
            pipeline.set(SessionKeys(session_id).bulk, start.token, nx=True)
        pipeline.execute()

    def give_up(self, session_id: str) -> None:
        """Forget a session whose creation has failed before its head was sent."""
        if session_id not in self.expected:
            return
        self.expected.discard(session_id)
        if not self.is_full():
            with suppress(AdamdError), translated():  # the next start does it too
                self._client.delete(SessionKeys(session_id).bulk)
                self._client.srem(keys.BULK_SESSIONS, session_id)


def _text(identity: Identity) -> str:
    return serialization.dumps(asdict(identity))


def _never() -> bool:
    """Say that a store of somebody else's is not full, as far as this process knows."""
    return False
