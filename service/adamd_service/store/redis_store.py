"""The store over the Redis protocol, its only implementation. Called from worker threads, except `commit_soon`."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, Self, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from adamd.errors import AdamdError, Damaged, InternalError, SessionDeleted, StoreFull, StoreUnavailable, UnknownSession
from adamd.wire.buffers import Bytes
from adamd_service.records import (
    ArrayRef,
    Broken,
    BulkRef,
    Carried,
    Commit,
    CommitOutcome,
    Entry,
    Head,
    IdempotencyKey,
    Lost,
    Record,
)
from adamd_service.store import chunks, garbage, index, keys, serialization
from adamd_service.store.bulk.homes import Homes
from adamd_service.store.bulk.protocol import BulkName, Staging
from adamd_service.store.commit_call import COMMIT_OVERHEAD_BYTES, Arguments, commit_call, failure
from adamd_service.store.connection.connect import StoreLink, close, connect, node_settings
from adamd_service.store.connection.durability import Terms
from adamd_service.store.connection.failures import away, no_permission, translated
from adamd_service.store.connection.silence import Silences, Silent
from adamd_service.store.embedded.disk_room import DiskRoom
from adamd_service.store.embedded.server import EmbeddedStore
from adamd_service.store.keys import SessionKeys, snapshot_keys, snapshot_lengths
from adamd_service.store.loop_connections import Lines
from adamd_service.store.outcomes import Created, HeadVersion, Repeated, StoreRefused, Taken, Unfit, UnknownOutcome
from adamd_service.store.read_ahead import Reader, read_ahead
from adamd_service.store.rounds import RoundStore
from adamd_service.store.scripts import script
from adamd_service.store.snapshots import StoredSnapshots, bulk_of

Verdict = Literal["committed", "fenced", "unknown"]


class RedisStore:
    """Sessions in Redis ≥ 6.2 or Valkey: single, Sentinel or Cluster. Thread-safe.

    Every method raises StoreUnavailable where the store does not answer, StoreFull where it has no room, and
    InternalError where what it holds is damaged.
    """

    def __init__(self, link: StoreLink, timeout: float) -> None:
        self._client = link.client
        self._trust = link.trust
        self.silences = Silences()
        self.silences.watch(link.client)
        self.lines = Lines(link.client, timeout)
        self._uploads = threading.Semaphore(chunks.MAX_UPLOADS)
        self._room: DiskRoom | None = None
        self.bulk = Homes(link.client, lambda: link.trust.changes)
        self.snapshots = StoredSnapshots(link.client, self.bulk, self._grow, self._tidy)
        self.rounds = RoundStore(link.client, self.bulk, link.trust, self._grow)
        self.most_sessions = index.MAX_SESSIONS

    @classmethod
    def connect(cls, url: str, *, timeout: float, max_connections: int = 64) -> Self:
        """Return a store at a URL (see `connect.connect`). ``timeout``: seconds that any answer may take.

        ``max_connections``: for calls, one for each thread at most; uploads have `chunks.MAX_UPLOADS` of their own, so
        that slow clients which send a body never keep the others from committing theirs.
        """
        return cls(connect(url, timeout, max_connections + chunks.MAX_UPLOADS), timeout)

    @property
    def promise(self) -> str:
        """What the store's settings promise now, as far as it was looked at; see `Trust.promise`."""
        return self._trust.promise

    def check(self, *, allow_lossy: bool = False, trusted: bool = False) -> None:
        """Look at the store's version, persistence and eviction; from now on `look` and every new connection do.

        Raises:
            StoreRefused: it may lose what adamd promises to keep, or is no store to be used so.
            StoreLoading: it cannot tell yet.

        """
        cluster = isinstance(self._client, RedisCluster)
        with translated():
            nodes = node_settings(self._client)
        self._trust.agree(Terms(allow_lossy=allow_lossy, trusted=trusted, cluster=cluster), nodes)

    def look(self) -> None:
        """Look again at what was checked: the store may be another process, or set otherwise.

        Raises:
            StoreUnavailable: it does not keep what adamd promises, or does not answer.

        """
        if self._trust.terms is None:
            return
        try:
            with translated():
                nodes = node_settings(self._client, all_of_them=False)
        except StoreRefused as error:
            raise StoreUnavailable(str(error), retry_after=5.0) from None
        self._trust.see(nodes)

    def require_kept(self) -> None:
        """Raise StoreUnavailable where the store was seen not to keep what adamd promises."""
        self._trust.require()

    def close(self) -> None:
        """Close the connections."""
        self.silences.close()
        self.lines.close()
        close(self._client)

    def ping(self) -> None:
        """Raise where the store does not answer, or takes no more."""
        with translated():
            self._client.ping()
        if self._room is not None:
            self._room.require_any()

    def belongs_to(self, private: EmbeddedStore) -> None:
        """Ask the process that was started for this store whether its disk has room, and why it does not answer."""
        self._room, self.silences.why = private.room, private.trouble
        self.bulk.notes.is_full, self.bulk.is_private = private.room.is_full, True

    def _grow(self, nbytes: int) -> None:
        """Raise StoreFull where the disk has no room for something that stays."""
        if self._room is not None:
            self._room.require(nbytes)

    def _tidy(self) -> None:
        """Raise StoreFull if the disk has no room even for something small, or something that frees some."""
        if self._room is not None:
            self._room.require_spare()

    def ready(self, replica: str, ttl: float) -> None:
        """Check the store, and write this process's sign of life: a server is ready if it can write.

        Raises:
            StoreUnavailable, StoreFull: a step could not be committed now.

        """
        try:
            self.look()
        except StoreUnavailable:
            if self._trust.refusal is not None:  # the store answers, and the other replicas want to know that we live
                with suppress(AdamdError):
                    self.announce(replica, ttl)
            raise
        self.announce(replica, ttl)
        self.bulk.look()
        if self._room is not None:
            self._room.require_any()

    def try_writing(self, replica: str, ttl: float) -> None:
        """Write the first sign of life, and run a script on a key that nobody uses: a user may be allowed one alone.

        Raises:
            StoreRefused: the store's user is not allowed that.
            StoreUnavailable, StoreFull: not now.

        """
        try:
            self.announce(replica, ttl)
            with self.lease(f"start-{replica}"):
                return
        except AdamdError as error:
            if isinstance(error.__cause__, redis.RedisError) and (reason := no_permission(error.__cause__)):
                raise StoreRefused(reason) from None
            raise

    # -- replicas

    def announce(self, replica: str, ttl: float) -> None:
        """Say that a server process lives for ``ttl`` seconds more."""
        self._tidy()
        with translated():
            self._client.set(keys.replica(replica), "alive", px=int(ttl * 1000))

    def replica_alive(self, replica: str) -> bool:
        """Say whether a server process has announced itself lately."""
        with translated():
            return bool(self._client.exists(keys.replica(replica)))

    # -- sessions

    def create(
        self,
        head: Head,
        arrays: Mapping[str, Any],
        counts: tuple[int, ...],
        key: IdempotencyKey | None,
        carried: Carried | None = None,
    ) -> Created | Repeated | Taken:
        """Write a first snapshot of ``arrays`` (flat, by name; none where the parameters come later), then the head."""
        self._trust.require()
        spec, names = head.spec, SessionKeys(head.spec.id)
        self.bulk.adopt(spec)
        self._grow(COMMIT_OVERHEAD_BYTES)
        with translated():
            try:
                if arrays:
                    head = replace(head, snapshots=(self.snapshots.write_first(head, arrays, counts, carried),))
                outcome = index.claim(self._client, spec, key, self.most_sessions)
            except BaseException:
                self._give_up(head)
                raise
            if outcome is not None:
                self._give_up(head)
                return outcome
            chunk_keys = snapshot_keys(names, head.snapshots)
            owner = head.snapshots[0].id if head.snapshots else ""
            self.bulk.doubts.add(spec.id, owner, bulk_of(head.snapshots))
            fields = [text for pair in serialization.head_fields(head).items() for text in pair]
            token = self.bulk.token(bulk_of(head.snapshots))
            args: Arguments = [head.incarnation, token, len(fields), *fields, *snapshot_lengths(head.snapshots)]
            verdict = script("create").repeatably(
                self._client, [names.head, names.gone, names.bulk, *chunk_keys], *args
            )
            self.bulk.doubts.settle(spec.id, owner, named=verdict[0] == b"created")
            if verdict[0] != b"created":
                self.snapshots.discard_all(spec.id, head.snapshots)
                with suppress(AdamdError), translated():
                    index.give_up(self._client, spec, key)
                raise StoreUnavailable("the creation took too long and was given up; try again", retry_after=1.0)
            return Created()

    def load_head(self, session_id: str) -> Head:
        """Return where a session stands.

        Raises:
            UnknownSession, SessionDeleted: it is not there.

        """
        with translated(session_id):
            fields = cast("dict[bytes, bytes]", self._client.hgetall(SessionKeys(session_id).head))
            return serialization.head_from(session_id, fields) if fields else self._raise_absent(session_id)

    def standing(self, session_id: str) -> HeadVersion:
        """Return the few fields that tell whether a cache is still right; raises as `load_head`."""
        with translated(session_id):
            values = self._client.hmget(SessionKeys(session_id).head, list(serialization.STANDING))
            standing = serialization.standing_from(session_id, cast("list[bytes | None]", values))
            return self._raise_absent(session_id) if standing is None else standing

    def find(self, tenant: str, name: str) -> str:
        """Return the id of the session with this name; raises as `index.find`."""
        with translated():
            return index.find(self._client, tenant, name)

    def list_sessions(self, tenant: str, page_size: int, after: str | None) -> tuple[list[Head | Broken], str | None]:
        """Return a page of heads, oldest first, and the token of the next page; a damaged one is told as such.

        Raises:
            InvalidRequest: the token is none of ours.

        """
        with translated():
            rows = index.page(self._client, tenant, page_size, index.place(after))
            heads = list[Head | Broken]()
            for session_id, created_at in rows[:page_size]:
                try:
                    heads.append(self.load_head(session_id))
                except InternalError as error:
                    heads.append(Broken(session_id, created_at, error.detail))
                except (UnknownSession, SessionDeleted):
                    index.tidy(self._client, tenant, session_id)
            more = len(rows) > page_size
            return heads, index.token(rows[page_size - 1]) if more else None

    def patch(self, session_id: str, head: Head, after: Head, chain: str | None = None) -> int | None:
        """Change settings and labels; None where someone else changed the settings first, or it is not at ``chain``.

        Returns the step after which they count: another replica may have moved the session on meanwhile.
        """
        self._trust.require()
        self._grow(COMMIT_OVERHEAD_BYTES)
        with translated():
            settings = serialization.dumps(after.settings)
            verdict = script("patch")(
                self._client,
                [SessionKeys(session_id).head],
                *(head.incarnation, head.settings_revision, settings),
                *(after.settings_revision, serialization.spec_text(after.spec), chain or ""),
                serialization.seal(head.incarnation, after.settings_revision, settings),
            )
            return int(verdict[1]) if verdict[0] == b"patched" else None

    def put_parameters(self, head: Head, after: Head, arrays: Mapping[str, Any], counts: tuple[int, ...]) -> bool:
        """Replace the first snapshot of a session at step 0; False where someone else changed the session first."""
        self._trust.require()
        names = SessionKeys(head.spec.id)
        with translated():
            ref = self.snapshots.write_first(after, arrays, counts)
            text = serialization.snapshot_text(ref)
            args: Arguments = [head.incarnation, head.chain, after.chain, f"[{text}]", text]
            args += [self.bulk.token(bulk_of((ref,))), *snapshot_lengths((ref,))]
            chunk_keys = snapshot_keys(names, (ref,))
            garbage.expect(self._client, head.spec.tenant, head.spec.id)
            self.bulk.doubts.add(head.spec.id, ref.id, bulk_of((ref,)))
            verdict = script("parameters").repeatably(self._client, [*names.setting, *chunk_keys], *args)
            self.bulk.doubts.settle(head.spec.id, ref.id, named=verdict[0] == b"set")
            if verdict[0] != b"set":
                self.snapshots.discard_all(head.spec.id, (ref,))
            return verdict[0] == b"set"

    def delete(self, session_id: str, chain: str | None = None, *, tenant: str = "default") -> bool:
        """End a session: its name is free, it answers 410 for a day. `collect` unlinks what it held.

        ``tenant``: whose it is, where its head is damaged and does not say it. False where it is not at ``chain``.
        """
        names = SessionKeys(session_id)
        self._tidy()
        with translated():
            try:
                spec, damage = self.load_head(session_id).spec, ""
                tenant, name = spec.tenant, spec.name or ""
            except Damaged:
                name, damage = index.name_of(self._client, tenant, session_id), "damaged"
            garbage.remember(self._client, tenant, session_id)
            verdict = script("delete").repeatably(
                self._client, names.ending, index.DAY_SECONDS, index.DELETED, "any", chain or "", damage
            )
            if verdict[0] == b"moved":
                return False
            index.release(self._client, tenant, session_id, name, remember=index.DAY_SECONDS)
            self.bulk.forget(session_id)
            return True

    # -- steps

    def stage(self, session_id: str, attempt: str, nbytes: int, *, wiped: bool = False) -> Staging:
        """Return a way to write a body of ``nbytes`` piece by piece, while it arrives; ``wiped``: a contribution's.

        Raises:
            Busy: as many as possible are under way there.
            StoreUnavailable: what is committed now would not be kept as promised.

        """
        self._trust.require()
        name = BulkName(session_id, attempt, wiped=wiped)
        if files := self.bulk.files_for(session_id, nbytes):
            return files.stage(name, nbytes)
        return chunks.ChunkStaging(self._client, name.key, nbytes, self._uploads, self._grow)

    def discard(self, session_id: str, attempt: str, ref: BulkRef) -> None:
        """Let go of what an attempt has staged that can no longer commit. What is named, or may be, stays."""
        self.bulk.release(session_id, attempt)
        chunks.discard(self._client, BulkName(session_id, attempt).keys(ref))

    def commit(self, session_id: str, commit: Commit) -> CommitOutcome:
        """Put one record into the log and move the head, or say why not. Never sent twice.

        Raises:
            UnknownOutcome: no answer came, or one from the script's middle; `resolve` finds out.

        """
        self._trust.require()
        self._grow(COMMIT_OVERHEAD_BYTES + len(commit.record.inline or b""))
        script_keys, args = commit_call(session_id, commit, self.bulk.token((commit.record.bulk,)))
        with self.bulk.doubts.naming(session_id, commit.record) as outcome:
            if outcome is None:
                return Lost("chunks")
            try:
                verdict = script("commit")(self._client, script_keys, *args)
            except ResponseError as error:
                raise failure(error) from error
            except Silent as error:  # nothing was sent
                raise away(error) from error
            except Unfit as error:  # nothing was sent
                raise StoreUnavailable(str(error), retry_after=1.0) from error
            except Exception as error:  # whatever else it was, the script may have run, or run yet
                raise UnknownOutcome(str(error)) from error
            return outcome(serialization.outcome_from(verdict))

    async def commit_soon(self, session_id: str, commit: Commit) -> CommitOutcome | None:
        """`commit` on the event loop, raising as it does; None where that cannot be, and nothing has happened."""
        self._trust.require()
        self._grow(COMMIT_OVERHEAD_BYTES + len(commit.record.inline or b""))
        with self.bulk.doubts.naming(session_id, commit.record) as outcome:
            if outcome is None:
                return Lost("chunks")
            try:
                call = commit_call(session_id, commit, self.bulk.token((commit.record.bulk,)))
                verdict = await self.lines.run(script("commit"), *call)
            except ResponseError as error:
                raise failure(error) from error
            return None if verdict is None else outcome(serialization.outcome_from(verdict))

    def resolve(self, session_id: str, attempt: str, step: int) -> Verdict:
        """Say whether an attempt to commit ``step`` was committed; where it was not, it never will be."""
        names = SessionKeys(session_id)
        self._tidy()
        with translated():
            verdict = script("resolve").repeatably(
                self._client, [names.head, names.record(step), names.fence(attempt)], attempt, step, index.DAY_SECONDS
            )
            known = cast(Verdict, verdict[0].decode())
        if known != "unknown":
            self.bulk.doubts.settle(session_id, attempt, named=known == "committed")
        return known

    def idempotent(self, session_id: str, key: str) -> tuple[str, int] | None:
        """Return the digest and the step of a client's key, if it was used within a day."""
        with translated():
            value = cast("bytes | None", self._client.get(SessionKeys(session_id).idempotency(key)))
        if value is None:
            return None
        digest, _, step = value.decode().partition(" ")
        return digest, int(step)

    # -- reading

    @contextmanager
    def lease(self, session_id: str) -> Iterator[None]:
        """Keep garbage that is unnamed from now on until the reader is done, at most `garbage.LEASE_SECONDS`.

        A store that takes no writes is read without a lease. Who meets a missing chunk then reads the head again.
        """
        if self._room is not None and self._room.is_full():
            yield
            return
        names, lease = SessionKeys(session_id), secrets.token_hex(8)
        with suppress(StoreFull), translated():  # as where another limit than the disk's size stops its file
            script("lease")(self._client, [names.readers], lease, garbage.LEASE_SECONDS)
        try:
            yield
        finally:
            with suppress(AdamdError), translated():  # it expires by itself
                self._client.zrem(names.readers, lease)

    def read_ahead(self, head: Head) -> Reader:
        """Return what a small session is rebuilt from, read with one question; see `is_quick`."""
        return read_ahead(self._client, self, head)

    def ring(self, session_id: str) -> list[Entry]:
        """Return the last steps that are remembered, in no order."""
        with translated():
            values = cast("list[bytes]", self._client.hvals(SessionKeys(session_id).ring))
            return [serialization.entry_from(value) for value in values]

    def records(self, session_id: str, first: int, last: int) -> list[Record]:
        """Return the records from ``first`` to ``last``, as far as they are there without a gap."""
        names, records = SessionKeys(session_id), []
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for step in range(first, last + 1):
                pipeline.hmget(names.record(step), ["meta", "inline", "attempt", "chain"])
            for step, (meta, *rest) in zip(range(first, last + 1), pipeline.execute(), strict=True):
                if meta is None:
                    break
                records.append(serialization.record_from(step, meta, *(value or b"" for value in rest)))
        return records

    def read_body(self, session_id: str, record: Record, into: Bytes) -> None:
        """Fill ``into`` with a record's body; raises ChunkMissing."""
        if record.inline is not None:
            if len(record.inline) != into.nbytes:
                length = len(record.inline)
                raise Damaged(f"the record of step {record.step} has {length} bytes, not {into.nbytes}")
            memoryview(into)[:] = record.inline
            return
        name = BulkName(session_id, record.attempt)
        if record.bulk.extent:
            self.bulk.read(name, record.bulk, into)
        else:
            chunks.read_chunks(self._client, name.keys(record.bulk), record.bulk.chunks, into)

    def read_array(self, session_id: str, snapshot: str, ref: ArrayRef, into: Bytes) -> None:
        """Fill ``into`` with an array of a snapshot.

        Raises:
            ChunkMissing: it is not there any more.
            Damaged: its bytes are not those that were written.

        """
        name = BulkName(session_id, snapshot, ref.name)
        if ref.bulk.extent:
            self.bulk.read(name, ref.bulk, into)
            chunks.check_array(ref, into)
        else:
            chunks.read_array(self._client, name.key, ref, into)

    # -- garbage

    def collect(self, session_id: str) -> int:
        """Unlink what nothing names any more and no reader can follow; returns the number of keys."""
        self._tidy()
        began = time.monotonic()
        with translated():
            count = garbage.collect(self._client, SessionKeys(session_id), self.bulk.own_files())
            self.bulk.confirm(began)
            return count + self.give_back()

    def sweep(self, tenant: str) -> int:
        """Collect for a few sessions that may need it, and ask after commits without an answer; returns the keys."""
        self._tidy()
        with translated():
            began = time.monotonic()
            self.bulk.follow()
            self.bulk.doubts.sweep(self.resolve, self._snapshot_ids, began)
            count = garbage.sweep(self._client, tenant, self.bulk.own_files())
            self.bulk.confirm(began)
            return count + self.give_back()

    def give_back(self) -> int:
        """Remove free extents that nobody needs, and all of them where the store has no room; returns how many."""
        return self.bulk.tidy(full=self._room is not None and self._room.full)

    def _snapshot_ids(self, session_id: str) -> set[str]:
        """Return the snapshots that a session's head names, and contributions that wait; none where it is gone."""
        try:
            return {ref.id for ref in self.load_head(session_id).snapshots} | self.rounds.attempts(session_id)
        except (UnknownSession, SessionDeleted):
            return set()

    # -- inside

    def _give_up(self, head: Head) -> None:
        """Forget what was written for a session whose head was not sent: nothing will ever name it."""
        self.snapshots.discard_all(head.spec.id, head.snapshots)
        self.bulk.give_up(head.spec.id)

    def _raise_absent(self, session_id: str) -> Any:
        tombstone = cast("bytes | None", self._client.get(SessionKeys(session_id).gone))
        if tombstone == index.DELETED.encode():
            raise SessionDeleted(f"session {session_id} is deleted")
        raise UnknownSession(f"there is no session {session_id!r}")
