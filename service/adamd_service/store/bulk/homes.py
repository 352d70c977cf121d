"""Chooses where bulk lies, and reads it from there: the store's side of the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from adamd.errors import AdamdError, WrongReplica
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import ITEMSIZE
from adamd_service.records import BulkRef, Spec
from adamd_service.store.bulk.directory import Identity
from adamd_service.store.bulk.doubts import Doubts
from adamd_service.store.bulk.extents import MANY, Owner
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.bulk.naming import named_extents
from adamd_service.store.bulk.notes import DirectoryNotes
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.bulk.reading import ExtentReader
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import SessionKeys
from adamd_service.store.outcomes import ChunkMissing, StoreRefused

SMALL_BULK_BYTES: Final = 512 * 1024  # up to this it lies in the store, wherever the rest does
log = structlog.get_logger()


class Homes:
    """Where bulk lies: in the store, or in the files of one directory. Thread-safe.

    Attributes:
        files: what has the directory; None where this process has none, or not any more.
        notes: what the store remembers of the directory.
        doubts: what was sent and may have named extents.
        is_private: no other process uses the store.
        files_from: by the monotonic clock. Before this, new bulk goes into chunks.

    """

    def __init__(self, client: Client, changes: Callable[[], int]) -> None:
        """``changes``: how often the store became another process, which may have lost its last seconds."""
        self._client = client
        self._changes = changes
        self._listed_at = changes()  # how often it had, when it was read what it names
        self.files: FileBulk | None = None
        self.notes = DirectoryNotes(client)
        self.doubts = Doubts(lambda: self.files, self.confirm)
        self.is_private = False
        self.files_from = 0.0
        self._above: int | None = None  # bytes; bulk of more goes into files
        self._own = set[str]()  # where other replicas share the store: the sessions whose bulk goes into these files

    def keep_in(
        self, files: FileBulk, *, written: bool = True, above: int = SMALL_BULK_BYTES, shared: Identity | None = None
    ) -> None:
        """Read what lies in these files, and write new bulk of more than ``above`` bytes there.

        What lies in chunks is read from the store. ``shared``: this start of the directory, where other replicas use
        the store too. Then the bulk of the sessions that were created here goes into files, and no other.
        """
        self.notes.start = shared
        if shared is not None:
            self._own.update(self.notes.sessions())
            self.notes.expected.update(self._own)
        self.files = files
        self._above = above if written else None

    def adopt(self, spec: Spec) -> None:
        """Note a session that is created here."""
        nbytes = spec.layout.size * ITEMSIZE[spec.dtype]  # of one of its arrays
        if self.notes.start is not None and self._above is not None and nbytes > self._above:
            self._own.add(spec.id)

    def files_for(self, session_id: str, nbytes: int) -> FileBulk | None:
        """Return the files that new bulk of so many bytes goes to; None where it goes into chunks."""
        above = self._above  # `look` may take both away at any time
        if above is None or nbytes <= above or time.monotonic() < self.files_from:
            return None
        return self.files if self.notes.start is None or session_id in self._own else None

    def files_of(self, session_id: str) -> FileBulk:
        """Return the files that have a session's extents.

        Raises:
            WrongReplica: another server has them.

        """
        files = self.files
        if files is None:
            identity = self.notes.known()
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
        start = self.notes.start
        return start.token if start is not None and any(ref.extent for ref in refs) else ""

    def own_files(self) -> FileBulk | None:
        """Return the files, once the store was asked whether they are still this server's; None where they are not."""
        start = self.notes.start
        if start is None or self.files is None:
            return self.files
        try:
            known = self.notes.identity()
        except StoreRefused as error:  # the tokens are still compared
            log.error("nobody knows which server has the bulk directory", reason=str(error))
            return self.files
        if known is None and self.notes.remember(start, None, len(self.notes.sessions())):
            known = start
        if known != start:
            log.critical("another server has the bulk directory now; what lies there is answered with 421 from here")
            self.files = self._above = None
        return self.files

    # -- what the store names

    def named(self) -> dict[str, Owner]:
        """Return every extent that the store names, and its owner; forget the sessions that have none any more."""
        self._listed_at = self._changes()
        sessions = self.notes.sessions()
        named = self._named(sessions)
        with translated():
            if not self.notes.is_full():
                self.notes.forget_ended(set(sessions) - {owner.session_id for owner in named.values()})
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
        self.notes.note_again()
        before = files.listed()
        sessions = {owner.session_id for owner in before.named.values()}
        files.list_again(before, self._named(sorted(sessions.union(self.notes.sessions()))).keys())
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

    # -- as long as the server runs

    def look(self) -> None:
        """Look whether this server still has the directory, and repeat what a failover of the store may have lost."""
        self.notes.pay()  # for a start that the full disk did not take: else a copy from before it would be let in
        start = self.notes.start
        if start is None or self.own_files() is None:
            return
        with translated():
            for session_id in self.notes.deleted():
                self.forget(session_id)
            self.notes.repeat(start)

    def end(self) -> None:
        """Say that this server has ended, so that its directory may move."""
        if self.files is not None:
            with suppress(AdamdError, StoreRefused):
                if self.own_files() is not None:
                    self.notes.end()

    def forget(self, session_id: str) -> None:
        """Note that a session is deleted."""
        self.notes.expected.discard(session_id)
        self._own.discard(session_id)

    def give_up(self, session_id: str) -> None:
        """Forget a session whose creation has failed before its head was sent, here and in the store."""
        self._own.discard(session_id)
        self.notes.give_up(session_id)

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
