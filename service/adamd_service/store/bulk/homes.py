"""Chooses where bulk lies, and knows what a commit may have named: the store's side of the files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final, cast

import structlog
from redis.cluster import RedisCluster

from adamd.errors import AdamdError, InternalError, StoreFull, StoreUnavailable, WrongReplica
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import ITEMSIZE
from adamd_service.records import BulkRef, CommitOutcome, Committed, Record, SnapshotRef, Spec
from adamd_service.store import keys, serialization
from adamd_service.store.bulk.directory import Identity
from adamd_service.store.bulk.extents import MANY, Owner
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.bulk.naming import named_extents
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.bulk.reading import ExtentReader
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys
from adamd_service.store.outcomes import ChunkMissing, StoreRefused
from adamd_service.store.scripts import script

SMALL_BULK_BYTES: Final = 512 * 1024  # up to this it lies in the store, wherever the rest does
DOUBT_SECONDS: Final = 60.0  # a step without an outcome is asked for after so long
SNAPSHOT_DOUBT_SECONDS: Final = 900.0  # and a snapshot, whose script has no fence: as long as its chunks would live
ALIVE_MS: Final = 30_000  # that the owner's sign of life lasts; it is given every ten seconds
TOKEN_SECONDS: Final = 86_400  # that a session which never was keeps its token: as long as a fence stands
log = structlog.get_logger()


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

    def __init__(self, client: Client, changes: Callable[[], int]) -> None:
        """``changes``: how often the store became another process, which may have lost its last seconds."""
        self._client = client
        self._changes = changes
        self._listed_at = changes()  # how often it had, when it was read what it names
        self.files: FileBulk | None = None
        self._above: int | None = None  # bytes; bulk of more goes into files
        self._start: Identity | None = None  # of the directory, where other replicas share the store
        self._place = ""  # of the directory, where other replicas share the store
        self._own = set[str]()  # then: the sessions whose bulk goes into its files
        self._expected = set[str]()  # sessions for which the store remembers that they may have extents
        self._doubts: dict[tuple[str, str], Doubt] = {}
        self.is_private = False  # no other process uses the store
        self.is_full: Callable[[], bool] = _never  # whether the private store would end if it wrote anything
        self._owed: Callable[[], bool] | None = None  # remembers the directory, once the store has room for it
        self._lock = threading.Lock()

    def keep_in(
        self, files: FileBulk, *, written: bool = True, above: int = SMALL_BULK_BYTES, shared: Identity | None = None
    ) -> None:
        """Read what lies in these files, and write new bulk of more than ``above`` bytes there.

        What lies in chunks is read from the store. ``shared``: this start of the directory, where other replicas use
        the store too. Then the bulk of the sessions that were created here goes into files, and no other.
        """
        self._start = shared
        if shared is not None:
            self._own.update(self.sessions())
            self._expected.update(self._own)
        self.files = files
        self._above = above if written else None

    def adopt(self, spec: Spec) -> None:
        """Note a session that is created here."""
        nbytes = spec.layout.size * ITEMSIZE[spec.dtype]  # of one of its arrays
        if self._start is not None and self._above is not None and nbytes > self._above:
            self._own.add(spec.id)

    def files_for(self, session_id: str, nbytes: int) -> FileBulk | None:
        """Return the files that new bulk of so many bytes goes to; None where it goes into chunks."""
        above = self._above  # `look` may take both away at any time
        if above is None or nbytes <= above:
            return None
        return self.files if self._start is None or session_id in self._own else None

    def files_of(self, session_id: str) -> FileBulk:
        """Return the files that have a session's extents.

        Raises:
            WrongReplica: another server has them.

        """
        files = self.files
        if files is None:
            identity = self._known()
            where = f" ({identity.server})" if identity is not None and identity.server else ""
            raise WrongReplica(
                f"session {session_id} lies in the bulk directory of another server{where}; ask that server, or start "
                "it again with its --bulk-dir"
            )
        return files

    def read(self, name: BulkName, ref: BulkRef, into: Bytes) -> None:
        """Fill ``into`` from an extent.

        Raises:
            ChunkMissing: it is not there any more.
            WrongReplica: another server has the directory, perhaps since a moment ago.

        """
        try:
            self.files_of(name.session_id).read(name, ref, into)
        except ChunkMissing:
            self.own_files()  # what a later start has written is not missing
            self.files_of(name.session_id)
            raise

    def read_part(self, name: BulkName, ref: BulkRef, start: int, into: Bytes) -> None:
        """Fill ``into`` with the bytes of an extent from ``start`` on; raises as `read`."""
        self.files_of(name.session_id).read_part(name, ref, start, into)

    def reader(self, name: BulkName, ref: BulkRef) -> ExtentReader:
        """Open an extent for many reads of its parts; raises as `read`."""
        return self.files_of(name.session_id).reader(name, ref)

    def token(self, refs: Iterable[BulkRef]) -> str:
        """Return what a commit that names these has to find in the store; "" where nothing has to be there."""
        return self._start.token if self._start is not None and any(ref.extent for ref in refs) else ""

    # -- what the store remembers of the directory

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

    def _known(self) -> Identity | None:
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
        """Say that this server has ended, so that its directory may move."""
        if self._place and self.files is not None:
            with suppress(AdamdError, StoreRefused):
                if self.own_files() is not None and self.place() == self._place:
                    self._client.delete(keys.BULK_ALIVE)

    def remember(self, identity: Identity, known: Identity | None, sessions: int) -> bool:
        """Remember the bulk directory, if what the store knows is still this; False where another was faster.

        A private store whose disk is full would end by this write, and no server would start there. Then it is done
        before the next extent.
        """
        self._owed = partial(self._claim, identity, "" if known is None else _text(known), sessions)
        return self._pay()

    def _pay(self) -> bool:
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
        self._pay()
        if session_id in self._expected:
            return
        if self.is_full():
            raise StoreFull("the store's disk is full; delete sessions, or make room there", retry_after=2.0)
        with translated():
            if self._start is None:
                self._client.sadd(keys.BULK_SESSIONS, session_id)
            else:
                self._expect_shared(session_id, self._start)
        self._expected.add(session_id)

    def _expect_shared(self, session_id: str, start: Identity) -> None:
        names = [keys.BULK, keys.BULK_SESSIONS]
        if script("bulk_expect")(self._client, names, _text(start), session_id)[0] != b"noted":
            raise StoreUnavailable("another server has the bulk directory of this store now; ask that one")
        self._client.set(SessionKeys(session_id).bulk, start.token, nx=True)  # a later start's token stays

    def named(self) -> dict[str, Owner]:
        """Return every extent that the store names, and its owner; forget the sessions that have none any more."""
        self._listed_at = self._changes()
        sessions = self.sessions()
        named = self._named(sessions)
        with translated():
            if not self.is_full():
                self._forget_ended(set(sessions) - {owner.session_id for owner in named.values()})
                self._drop_leases(sessions)
            return named

    def _named(self, sessions: Sequence[str]) -> dict[str, Owner]:
        named = dict[str, Owner]()
        with translated():
            for extent, owner in named_extents(self._client, sessions):
                named[extent] = owner if named.get(extent, owner) == owner else MANY
        return named

    def follow(self) -> None:
        """Where the store became another process: say again what it may have lost, and list again what it names."""
        files, changes = self.files, self._changes()
        if files is None or not files.holds or changes == self._listed_at:
            return
        with translated():
            if expected := tuple(self._expected):
                self._client.sadd(keys.BULK_SESSIONS, *expected)
        before = files.listed()
        sessions = {owner.session_id for owner in before.named.values()}
        files.list_again(before, self._named(sorted(sessions.union(self.sessions()))).keys())
        self._listed_at = changes

    def confirm(self, seen: float) -> None:
        """Free what was let go of long enough before ``seen``: the store has answered a question of that time."""
        files = self.files
        if files is not None and self._changes() == self._listed_at:
            files.free_held(seen)

    def _drop_leases(self, sessions: Sequence[str]) -> None:
        """End the leases of readers that died with an earlier process: nobody else reads a private store.

        Without this a server that is killed again and again fills its disk with what nothing needs.
        """
        if not self.is_private:
            return
        pipeline = self._client.pipeline(transaction=False)
        for session_id in sessions:
            pipeline.delete(SessionKeys(session_id).readers)
        pipeline.execute()

    def _forget_ended(self, sessions: Collection[str]) -> None:
        for session_id in sessions:
            names = SessionKeys(session_id)
            if not self._client.exists(names.head) and not self._client.exists(names.garbage):
                self._client.expire(names.bulk, TOKEN_SECONDS)  # an earlier start may be about to write its own
                self._client.srem(keys.BULK_SESSIONS, session_id)

    def look(self) -> None:
        """Look whether this server still has the directory, and repeat what a failover of the store may have lost."""
        self._pay()  # for a start that the full disk did not take: else a copy from before it would be let in
        start = self._start
        if start is None or self.own_files() is None:
            return
        with translated():
            expected = self._not_deleted(tuple(self._expected))
            pipeline = self._client.pipeline(transaction=False)
            pipeline.set(keys.BULK_ALIVE, self._place, px=ALIVE_MS)
            for session_id in expected:
                pipeline.sadd(keys.BULK_SESSIONS, session_id)
                pipeline.set(SessionKeys(session_id).bulk, start.token, nx=True)
            pipeline.execute()

    def own_files(self) -> FileBulk | None:
        """Return the files, once the store was asked whether they are still this server's; None where they are not."""
        start = self._start
        if start is None or self.files is None:
            return self.files
        try:
            known = self.identity()
        except StoreRefused as error:  # the tokens are still compared
            log.error("nobody knows which server has the bulk directory", reason=str(error))
            return self.files
        if known is None and self.remember(start, None, len(self.sessions())):
            known = start
        if known != start:
            log.critical("another server has the bulk directory now; what lies there is answered with 421 from here")
            self.files = self._above = None
        return self.files

    def _not_deleted(self, sessions: Sequence[str]) -> list[str]:
        """Return the sessions that have no tombstone; forget the others, which another server has deleted."""
        pipeline = self._client.pipeline(transaction=False)
        for session_id in sessions:
            pipeline.exists(SessionKeys(session_id).gone)
        gone = {session_id for session_id, there in zip(sessions, pipeline.execute(), strict=True) if there}
        for session_id in gone:
            self.forget(session_id)
        return [session_id for session_id in sessions if session_id not in gone]

    def forget(self, session_id: str) -> None:
        """Note that a session is deleted."""
        self._expected.discard(session_id)
        self._own.discard(session_id)

    def give_up(self, session_id: str) -> None:
        """Forget a session whose creation has failed before its head was sent, here and in the store."""
        expected = session_id in self._expected
        self.forget(session_id)
        if expected and not self.is_full():
            with suppress(AdamdError), translated():  # the next start does it too
                self._client.delete(SessionKeys(session_id).bulk)
                self._client.srem(keys.BULK_SESSIONS, session_id)

    # -- what is about to be named

    def doubt(self, session_id: str, owner: str, refs: Iterable[BulkRef], step: int | None = None) -> bool:
        """Hold extents that are about to be named, until `settle`. False: one of them is not there any more."""
        extents = [ref.extent for ref in refs if ref.extent]
        if not extents:
            return True
        files = self.files
        if files is None or not files.doubt(session_id, owner, extents):
            return False
        with self._lock:
            self._doubts[session_id, owner] = Doubt(session_id, owner, step, time.monotonic())
        return True

    def settle(self, session_id: str, owner: str, *, named: bool) -> None:
        """Note the outcome: the extents are named now, or nothing that was sent will name them."""
        with self._lock:
            known = self._doubts.pop((session_id, owner), None)
        files = self.files
        if known is not None and files is not None:
            files.settle(session_id, owner, named=named)
            if named:
                self.confirm(known.since)

    @contextmanager
    def naming(self, session_id: str, record: Record) -> Iterator[Callable[[CommitOutcome], CommitOutcome] | None]:
        """Hold a record's extent in doubt while its commit is under way, and until its outcome is known.

        None: it is not there any more, as chunks whose time has run out.
        """
        attempt = record.attempt
        if not self.doubt(session_id, attempt, (record.bulk,), record.step):
            yield None
            return

        def known(outcome: CommitOutcome) -> CommitOutcome:
            self.settle(session_id, attempt, named=isinstance(outcome, Committed))
            return outcome

        try:
            yield known
        except StoreUnavailable:  # and StoreFull: the script did not run, and will not
            self.settle(session_id, attempt, named=False)
            raise

    def release(self, session_id: str, owner: str) -> None:
        """Free what an attempt or a snapshot has staged. What is named, or may be, stays."""
        files = self.files
        if files is not None:
            files.release(session_id, owner)

    def tidy(self, *, full: bool) -> int:
        """Remove free extents that nobody needs; all of them where the disk is ``full``. Returns how many."""
        files = self.files
        if files is None:
            return 0
        files.wipe()
        return files.give_back(0) if full else files.tidy(time.monotonic())

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


def _text(identity: Identity) -> str:
    return serialization.dumps(asdict(identity))


def bulk_of(snapshots: Iterable[SnapshotRef]) -> Iterator[BulkRef]:
    """Yield where the arrays of snapshots lie."""
    return (array.bulk for ref in snapshots for array in ref.arrays)


def _never() -> bool:
    """Say that a store of somebody else's is not full, as far as this process knows."""
    return False
