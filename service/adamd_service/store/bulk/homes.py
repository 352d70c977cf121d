"""Chooses where bulk lies, and knows what a commit may have named: the store's side of the files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final, cast

from adamd.errors import StoreUnavailable
from adamd_service.records import BulkRef, SnapshotRef
from adamd_service.store import keys, serialization
from adamd_service.store.bulk.directory import Identity
from adamd_service.store.bulk.extents import Owner
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.bulk.naming import named_extents
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys
from adamd_service.store.outcomes import StoreRefused

SMALL_BULK_BYTES: Final = 512 * 1024  # up to this it lies in the store, wherever the rest does
DOUBT_SECONDS: Final = 60.0  # a step without an outcome is asked for after so long
SNAPSHOT_DOUBT_SECONDS: Final = 900.0  # and a snapshot, whose script has no fence: as long as its chunks would live


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that was sent and whose outcome is not known: it may name extents.

    Attributes:
        session_id: whose it is.
        owner: the attempt, or the snapshot's id.
        step: that the attempt would be; None for a snapshot.
        since: by the monotonic clock.
        looks: how often the store was seen not to name the snapshot.

    """

    session_id: str
    owner: str
    step: int | None
    since: float
    looks: int = 0


class Homes:
    """Where bulk lies: in the store, or in the files of one directory. Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.files: FileBulk | None = None
        self._above: int | None = None  # bytes; bulk of more goes into files
        self._expected = set[str]()  # sessions for which the store remembers that they may have extents
        self._doubts: dict[tuple[str, str], Doubt] = {}
        self._lock = threading.Lock()
        self._owed: Identity | None = None  # to be remembered, once the store has room for it
        self.is_full: Callable[[], bool] = _never  # whether the store would end if it wrote anything

    def keep_in(self, files: FileBulk, *, written: bool = True, above: int = SMALL_BULK_BYTES) -> None:
        """Read what lies in these files, and write new bulk of more than ``above`` bytes there.

        What lies in chunks is read from the store.
        """
        self.files = files
        self._above = above if written else None

    def files_for(self, nbytes: int) -> FileBulk | None:
        """Return the files that new bulk of so many bytes goes to; None where it goes into chunks."""
        return self.files if self._above is not None and nbytes > self._above else None

    def files_of(self, ref: BulkRef) -> FileBulk:
        """Return the files that have this.

        Raises:
            StoreUnavailable: another server has them.

        """
        if self.files is None:
            raise StoreUnavailable(
                f"the extent {ref.extent} lies in the bulk directory of another server; ask that one", retry_after=5
            )
        return self.files

    # -- what the store remembers of the directory

    def identity(self) -> Identity | None:
        """Return the identity of the bulk directory that this store used last."""
        with translated():
            text = cast("bytes | None", self._client.get(keys.BULK))
        try:
            return None if text is None else Identity(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise StoreRefused(f"the store's note of its bulk directory ({keys.BULK}) is damaged: {error}") from None

    def remember(self, identity: Identity) -> None:
        """Remember the bulk directory: at once, or where the store has no room for that before the next extent."""
        self._owed = identity
        self._pay()

    def _pay(self) -> None:
        """Remember what is owed. Without room the private store would end, and no server would start on a full disk."""
        identity = self._owed
        if identity is not None and not self.is_full():
            with translated():
                self._client.set(keys.BULK, serialization.dumps(asdict(identity)))
            self._owed = None

    def sessions(self) -> list[str]:
        """Return the sessions that may have extents."""
        with translated():
            members = cast("set[bytes]", self._client.smembers(keys.BULK_SESSIONS))
            return sorted(member.decode() for member in members)

    def expect(self, session_id: str) -> None:
        """Remember that a session may have extents, before it has one."""
        self._pay()
        if session_id not in self._expected:
            with translated():
                self._client.sadd(keys.BULK_SESSIONS, session_id)
            self._expected.add(session_id)

    def named(self) -> dict[str, Owner]:
        """Return every extent that the store names, and its owner; forget the sessions that have none any more."""
        sessions = self.sessions()
        with translated():
            named = dict(named_extents(self._client, sessions))
            if self.is_full():
                return named
            for session_id in set(sessions) - {owner.session_id for owner in named.values()}:
                names = SessionKeys(session_id)
                if not self._client.exists(names.head) and not self._client.exists(names.garbage):
                    self._client.srem(keys.BULK_SESSIONS, session_id)
            return named

    # -- what is about to be named

    def doubt(self, session_id: str, owner: str, refs: Iterable[BulkRef], step: int | None = None) -> bool:
        """Hold extents that are about to be named, until `settle`. False: one of them is not there any more."""
        extents = [ref.extent for ref in refs if ref.extent]
        if not extents:
            return True
        if self.files is None or not self.files.doubt(session_id, owner, extents):
            return False
        with self._lock:
            self._doubts[session_id, owner] = Doubt(session_id, owner, step, time.monotonic())
        return True

    def settle(self, session_id: str, owner: str, *, named: bool) -> None:
        """Note the outcome: the extents are named now, or nothing that was sent will name them."""
        with self._lock:
            known = self._doubts.pop((session_id, owner), None)
        if known is not None and self.files is not None:
            self.files.settle(session_id, owner, named=named)

    def release(self, session_id: str, owner: str) -> None:
        """Free what an attempt or a snapshot has staged. What is named, or may be, stays."""
        if self.files is not None:
            self.files.release(session_id, owner)

    def tidy(self, *, full: bool) -> int:
        """Remove free extents that nobody needs; all of them where the disk is ``full``. Returns how many."""
        if self.files is None:
            return 0
        return self.files.give_back(0) if full else self.files.tidy(time.monotonic())

    def sweep(
        self, outcome: Callable[[str, str, int], str], snapshots: Callable[[str], Collection[str]], now: float
    ) -> int:
        """Find out what became of old doubts, so that a lost answer costs no disk for ever; returns how many ended.

        Args:
            outcome: says of a session, an attempt and its step: committed, fenced or unknown, as `resolve` does.
            snapshots: returns the ids of the snapshots that a session's head names; none where it is gone.
            now: by the monotonic clock.

        A snapshot's script has no fence. It is given up when the store did not name it at two looks, one sweep apart:
        the store had read everything that was sent before the first of them.

        """
        with self._lock:
            doubts = list(self._doubts.values())
        ended = 0
        for doubt in doubts:
            if doubt.step is not None and now - doubt.since > DOUBT_SECONDS:
                known = outcome(doubt.session_id, doubt.owner, doubt.step)  # unknown: long ago, and freed since
                ended += self._ended(doubt, named=known == "committed")
            elif doubt.step is None and now - doubt.since > SNAPSHOT_DOUBT_SECONDS:
                ended += self._snapshot_swept(doubt, named=doubt.owner in snapshots(doubt.session_id))
        return ended

    def _snapshot_swept(self, doubt: Doubt, *, named: bool) -> bool:
        if not named and not doubt.looks:
            with self._lock:
                self._doubts[doubt.session_id, doubt.owner] = replace(doubt, looks=1)
            return False
        return self._ended(doubt, named=named)

    def _ended(self, doubt: Doubt, *, named: bool) -> bool:
        self.settle(doubt.session_id, doubt.owner, named=named)
        self.release(doubt.session_id, doubt.owner)
        return True


def bulk_of(snapshots: Iterable[SnapshotRef]) -> Iterator[BulkRef]:
    """Yield where the arrays of snapshots lie."""
    return (array.bulk for ref in snapshots for array in ref.arrays)


def _never() -> bool:
    """Say that a store of somebody else's is not full, as far as this process knows."""
    return False
