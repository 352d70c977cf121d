"""Bulk in files: each body or array lies in one recycled extent, written directly while it still arrives.

Contributions go through the page cache: they are read again within moments, when their round closes. Their extents are
synced always, since no flush of the device's own takes what is still in the cache.

An extent is used again only when its owner has let go of it, and no write to it is under way. What a commit may have
named stays as it is until the outcome is known: see `Use.DOUBT`.
"""

from __future__ import annotations

import errno
import mmap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from adamd.errors import Busy, Damaged, StoreFull, StoreUnavailable
from adamd.wire.buffers import Bytes
from adamd_service.records import BulkRef
from adamd_service.store.bulk.disk import FULL, Disk, OpenFile
from adamd_service.store.bulk.extents import KEPT, MANY, PAGE, WIPED, Extents, Owner, Use, size_of
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.bulk.reading import (
    BOUNCE_BYTES,
    Bounce,
    ExtentReader,
    Reading,
    address,
    damaged,
    is_cached,
    pages,
)
from adamd_service.store.bulk.writing import Writing
from adamd_service.store.outcomes import ChunkMissing

PIECE_BYTES: Final = 1024 * 1024  # of an upload, handed over at once
WRITE_BYTES: Final = 4 * 1024 * 1024  # written by one call; also the piece of a snapshot
UNUSED_SECONDS: Final = 60.0  # a free extent that nobody needed for so long is removed
MOST_UPLOADS: Final = 256  # at once
YIELD: Final = 4.0  # a snapshot has a fifth of the disk at least
RETIRED: Final = ".retired"  # behind the name of an extent whose disk failed
STAGED, DOUBT, NAMED, HELD, FREE = Use.STAGED, Use.DOUBT, Use.NAMED, Use.HELD, Use.FREE
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Listed:
    """What the store was thought to name at one moment, with its owners, and what was held."""

    named: Mapping[str, Owner]
    held: frozenset[str]


class FileBulk:
    """Bulk in the extents of one directory, which this process owns. Thread-safe.

    Args:
        disk: the directory.
        extents: what is in it, and who has it.
        writers: runs the writes of uploads, several at once.
        expect: is told a session's id before it first has an extent: at the next start its names are looked for.
        synced: True: every extent is synced before a commit may name it. False: only one that was made just now, or
            was written through the page cache. A direct write over old blocks waits in the device's cache alone, and
            the store's next sync of its own file, which must lie on the same device, flushes that.
        margin: bytes of the disk that stay free.
        spare: bytes of free extents, at most, that are kept for later.
        hold: seconds that an extent which nothing names any more keeps its bytes. A store may lose as much of its
            history when its power or its machine goes, and then its heads and records name the extent again.

    """

    def __init__(
        self,
        disk: Disk,
        extents: Extents,
        expect: Callable[[str], None],
        writers: Executor,
        *,
        synced: bool,
        margin: int,
        spare: int = 2**62,
        hold: float = 0.0,
    ) -> None:
        self._disk = disk
        self._extents = extents
        self._expect = expect
        self._synced = synced or not disk.direct
        self._margin = margin
        self._spare = spare
        self._hold = hold
        self._held = deque[tuple[float, str, Owner]]()  # since when, by the monotonic clock
        self._reuse_from = time.monotonic() + hold  # what is free at the start may have been named a moment ago
        self._looked_at = time.monotonic()
        self._full = False  # as far as it was tried
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it
        self._fresh = set[str]()  # made just now: their metadata are not on the disk before they are synced
        self._uploads = threading.Semaphore(MOST_UPLOADS)
        self._writers = writers
        self._writing = Writing()
        self._bounce = Bounce()
        self._reading = Reading(self._bounce)

    def close(self) -> None:
        """Wait for the writes under way, and write no more."""
        self._writers.shutdown(wait=True)

    # -- the protocol

    def stage(self, name: BulkName, nbytes: int) -> ExtentStaging:
        """Return a way to write ``nbytes``. It does no I/O.

        Raises:
            Busy: `MOST_UPLOADS` are under way.

        """
        if not self._uploads.acquire(blocking=False):
            raise Busy("as many uploads as possible are on their way to the disk; try again", retry_after=0.5)
        return ExtentStaging(self, owner_of(name), nbytes, WIPED if name.wiped else KEPT)

    def write(self, name: BulkName, data: Bytes, pace: Callable[[int], None] | None) -> BulkRef:
        """Write bytes that are there already, piece by piece; what was written before an error is free again."""
        owner = owner_of(name)
        extent = self.take(data.nbytes, owner, WIPED if name.wiped else KEPT)
        try:
            with self._failing(extent, owner):
                file = self.open(extent)
                try:
                    self._write(file, memoryview(data), pace)
                    self.sync(file, extent)
                finally:
                    file.close()
        except BaseException:
            self.move(extent, owner, frozenset({STAGED}), FREE)
            raise
        return BulkRef((), extent, data.nbytes)

    def _write(self, file: OpenFile, data: memoryview, pace: Callable[[int], None] | None) -> None:
        """Write piece by piece. With a ``pace``, which is told that the store got nothing, let bodies go first.

        A piece waits while some are written, but at most `YIELD` times as long as the piece before took: so it has its
        share of a disk that is never idle.
        """
        took = 0.0
        for start in range(0, data.nbytes, WRITE_BYTES):
            if pace is not None:
                self._writing.wait_for_none(YIELD * took)
            began = time.monotonic()
            self.put(file, data[start : start + WRITE_BYTES], start)
            took = time.monotonic() - began
            if pace is not None:
                pace(0)

    def read(self, name: BulkName, ref: BulkRef, into: Bytes) -> None:
        """Fill ``into``. The caller compares the digest: an extent does not say whose bytes it has.

        Raises:
            ChunkMissing: the extent is another's by now; or its file is not there, or shorter.

        """
        if ref.length != into.nbytes:
            raise Damaged(f"an extent with {ref.length} bytes for an array of {into.nbytes}")
        with closing(self._open_own(name, ref)) as file, damaged(name, ref):
            self._reading.whole(file, ref, memoryview(into))

    def read_part(self, name: BulkName, ref: BulkRef, start: int, into: Bytes) -> None:
        """Fill ``into`` with the bytes from ``start`` on; otherwise as `read`."""
        with closing(self.reader(name, ref)) as reader:
            reader.read(start, into)

    def reader(self, name: BulkName, ref: BulkRef) -> ExtentReader:
        """Open an extent for many reads of its parts; raises as `read`."""
        return ExtentReader(self._reading, name, ref, self._open_own(name, ref))

    def _open_own(self, name: BulkName, ref: BulkRef) -> OpenFile:
        with self._lock:
            own = self._extents.has(ref.extent, owner_of(name))
        if not own:
            raise ChunkMissing(f"the extent {ref.extent} is not {name.owner}'s any more")
        try:
            return self.open(ref.extent)
        except OSError as error:
            raise ChunkMissing(f"the extent {ref.extent} of {name.owner} cannot be opened: {error.strerror}") from None

    # -- what becomes of an extent

    def move(self, extent: str, owner: Owner, before: frozenset[Use], after: Use) -> bool:
        """Change what an extent is used for, if its owner has it for that; see `Extents.move`."""
        with self._lock:
            return self._extents.move(extent, owner, before, after)

    def doubt(self, session_id: str, owner: str, extents: Collection[str]) -> bool:
        """Note that a commit is about to be sent that names these extents of an attempt or a snapshot.

        False where it does not have one of them (any more): then it must not be sent.
        """
        with self._lock:
            own = {extent for extent, its, _ in self._extents.of_session(session_id) if its.owner == owner}
            self._move_all(session_id, owner, STAGED, DOUBT)
            return own.issuperset(extents)

    def settle(self, session_id: str, owner: str, *, named: bool) -> None:
        """Note that it is named now, or that nothing which was sent will name it."""
        self._move_all(session_id, owner, DOUBT, NAMED if named else STAGED)

    def release(self, session_id: str, owner: str) -> None:
        """Free what an attempt or a snapshot has staged. What is named, or may be, stays."""
        self._move_all(session_id, owner, STAGED, FREE)

    def _move_all(self, session_id: str, owner: str, before: Use, after: Use) -> None:
        with self._lock:
            for extent, its, use in self._extents.of_session(session_id):
                if its.owner == owner and use is before:
                    self._extents.move(extent, its, frozenset({before}), after)

    def free(self, name: BulkName, extent: str) -> bool:
        """Free an extent that nothing names any more, and no reader follows; False where it is another's."""
        with self._lock:
            return self._let_go(extent, owner_of(name), frozenset({NAMED, DOUBT}))

    def _let_go(self, extent: str, owner: Owner, before: frozenset[Use]) -> bool:
        """Free an extent that the store has named, once `hold` seconds are over."""
        moved = self._extents.move(extent, owner, before, HELD if self._hold else FREE)
        if moved and self._hold:
            self._held.append((time.monotonic(), extent, owner))
        return moved

    def free_held(self, seen: float) -> None:
        """Free the extents that were let go of `hold` seconds before ``seen``, by the monotonic clock.

        The store has answered since then, and was the same process all the time.
        """
        with self._lock:
            while self._held and self._held[0][0] + self._hold <= seen:
                _, extent, owner = self._held.popleft()
                self._extents.move(extent, owner, frozenset({HELD}), FREE)

    def listed(self) -> Listed:
        """Return what the store is thought to name now, and what is held."""
        with self._lock:
            return Listed(self._extents.named(), frozenset(extent for _, extent, _ in self._held))

    def list_again(self, before: Listed, named: Collection[str]) -> None:
        """Follow a store that may have lost its last seconds: keep what it names again, let go of what it does not.

        Args:
            before: what `listed` returned before the store was read.
            named: what the store names now.

        """
        with self._lock:
            for extent, owner in before.named.items():
                if extent not in named:
                    self._let_go(extent, owner, frozenset({NAMED}))
            held, self._held = self._held, deque()
            for _, extent, owner in held:
                if extent in before.held and extent in named:
                    self._extents.move(extent, owner, frozenset({HELD}), NAMED)
                else:
                    self._held.append((time.monotonic(), extent, owner))

    def free_session(self, session_id: str) -> None:
        """Free what a session has that has ended damaged, so that nobody knows what it named."""
        with self._lock:
            for extent, owner, use in self._extents.of_session(session_id):
                if use not in (STAGED, HELD):
                    self._let_go(extent, owner, frozenset({use}))

    # -- for the stagings

    def take(self, nbytes: int, owner: Owner, kind: str = KEPT) -> str:
        """Return an extent for ``nbytes``: a free one, else a new one. ``kind``: see `name_of`.

        Raises:
            StoreFull: there is no room for it.

        """
        self._expect(owner.session_id)
        now = time.monotonic()
        with self._lock:
            extent = self._extents.take(nbytes, owner, kind) if now >= self._reuse_from else None
        return extent or self._make(nbytes, owner, kind)

    def _make(self, nbytes: int, owner: Owner, kind: str) -> str:
        with self._lock:
            extent = self._extents.new_name(nbytes, kind)
        size = int(extent[1:].partition("-")[0])
        try:
            self._require_room(size)
            self._disk.make(extent, size)
        except OSError as error:
            if error.errno in FULL:
                raise self._no_room(size, error) from None
            raise StoreUnavailable(f"the bulk directory takes no new file: {error.strerror}", retry_after=1.0) from None
        with self._lock:
            self._extents.add(extent, STAGED, owner)
            self._fresh.add(extent)
            was_full, self._full = self._full, False
        if was_full:
            log.info("the bulk directory has room again")
        return extent

    def _no_room(self, size: int, error: OSError) -> StoreFull:
        """Return the error for a full disk, which is logged once. What is free already is still written."""
        reason = (
            f"the disk of the bulk directory has no room for {size} bytes more ({error.strerror}); "
            "delete sessions, or make room there"
        )
        with self._lock:
            was_full, self._full = self._full, True
        if not was_full:
            log.error("the bulk directory takes no more", reason=reason)
        return StoreFull(reason, retry_after=2.0)

    def _require_room(self, size: int) -> None:
        """Remove free extents of other sizes where the disk is nearly full. Raises OSError (ENOSPC)."""
        if self._disk.free() - size >= self._margin:
            return
        self.give_back(0)
        if self._disk.free() - size < self._margin:
            raise OSError(errno.ENOSPC, "the disk is nearly full")

    def give_back(self, most: int) -> int:
        """Remove free extents until at most ``most`` bytes are free; returns how many were removed."""
        with self._lock:
            return self._remove(self._extents.excess(most))

    def wipe(self) -> None:
        """Overwrite what held a contribution and is named no more: nobody's update stays because its file is kept."""
        if time.monotonic() < self._reuse_from:
            return  # a store that lost its last seconds may name it again
        zeros = memoryview(mmap.mmap(-1, WRITE_BYTES))
        while True:
            with self._lock:
                extent = self._extents.take_dirty()
            if extent is None:
                return
            try:
                self._overwrite(extent, zeros)
            except OSError as error:
                self.failed(extent, MANY, error)
                continue
            with self._lock:
                self._extents.wiped(extent)

    def _overwrite(self, extent: str, zeros: memoryview) -> None:
        size, file = size_of(extent), self._disk.open(extent)
        try:
            for start in range(0, size, WRITE_BYTES):
                file.write(zeros[: min(WRITE_BYTES, size - start)], start)
            file.sync()
        finally:
            file.close()

    def tidy(self, now: float) -> int:
        """Remove free extents: what is more than `spare`, and what nobody needed for `UNUSED_SECONDS`.

        ``now``: by the monotonic clock. Returns how many were removed.
        """
        with self._lock:
            count = self._remove(self._extents.excess(self._spare))
            if now - self._looked_at >= UNUSED_SECONDS:
                self._looked_at = now
                count += self._remove(self._extents.unused())
            return count

    def _remove(self, names: Collection[str]) -> int:
        """Remove the files of free extents. An error leaves a file, which the next start finds and frees."""
        for name in names:
            self._extents.forget(name)
            self._fresh.discard(name)
            with suppress(OSError):
                self._disk.remove(name)
        return len(names)

    @property
    def holds(self) -> bool:
        """Whether the store may lose a part of its history."""
        return self._hold > 0

    @property
    def total_bytes(self) -> int:
        """All extents' bytes."""
        return self._extents.bytes

    @property
    def free_bytes(self) -> int:
        """The free extents' bytes."""
        return self._extents.free_bytes

    def open(self, extent: str) -> OpenFile:
        """Open an extent that was taken."""
        return self._disk.open(extent, cached=is_cached(extent))

    def submit(self, work: Callable[..., None], *args: object) -> Future[None]:
        """Run work in a writer's thread: a part of a body is written."""
        self._writing.add()
        future = self._writers.submit(work, *args)
        future.add_done_callback(self._writing.done)
        return future

    def put(self, file: OpenFile, part: memoryview, offset: int) -> None:
        """Write a part that begins on a page of the file: directly where it lies so, else through aligned memory."""
        whole = part.nbytes if not self._disk.direct else part.nbytes // PAGE * PAGE
        if self._disk.direct and address(part) % PAGE:
            whole = 0
        if whole:
            file.write(part[:whole], offset)
        bounce = self._bounce.memory()
        for start in range(whole, part.nbytes, BOUNCE_BYTES):
            piece = part[start : start + BOUNCE_BYTES]
            end = pages(piece.nbytes)
            bounce[: piece.nbytes] = piece
            bounce[piece.nbytes : end] = bytes(end - piece.nbytes)
            file.write(bounce[:end], offset + start)

    def sync(self, file: OpenFile, extent: str) -> None:
        """Sync a file where its bytes would not be safe otherwise."""
        with self._lock:
            fresh = extent in self._fresh
        if self._synced or fresh or is_cached(extent):
            file.sync()
            with self._lock:
                self._fresh.discard(extent)

    @contextmanager
    def _failing(self, extent: str, owner: Owner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.failed(extent, owner, error) from None

    def failed(self, extent: str, owner: Owner, error: OSError) -> StoreUnavailable:
        """Retire an extent that could not be written, and return the error for it.

        Linux may call pages clean whose write has failed, so no later sync of the same file can be believed.
        """
        log.error(
            "a write to the bulk directory failed; its extent is not used again",
            extent=extent,
            session=owner.session_id,
            reason=error.strerror or str(error),
        )
        with self._lock, suppress(KeyError):
            self._extents.forget(extent)
        if extent.startswith(WIPED):  # nobody's update stays because its file is kept
            with suppress(OSError):
                self._disk.remove(extent)
        with suppress(OSError):
            self._disk.rename(extent, extent + RETIRED)
        return StoreUnavailable(f"the disk did not take the bytes: {error.strerror}; try again", retry_after=1.0)

    def end_upload(self) -> None:
        """Let another upload begin."""
        self._uploads.release()


class ExtentStaging:
    """One body on its way into an extent. Its pieces are written by other threads while the next ones arrive.

    The extent is free again once nobody has this object any more and nothing names the extent: so a step that was
    given up anywhere leaves nothing behind.
    """

    def __init__(self, bulk: FileBulk, owner: Owner, nbytes: int, kind: str = KEPT) -> None:
        self.piece = PIECE_BYTES
        self._kind = kind
        self._bulk = bulk
        self._owner = owner
        self._nbytes = nbytes
        self._offset = 0
        self._extent = ""
        self._file: OpenFile | None = None
        self._closer: Callable[[], object] = _nothing
        self._writes: list[Future[None]] = []
        self._turn = threading.Lock()
        self._state: Literal["open", "done", "given up"] = "open"
        weakref.finalize(self, bulk.end_upload).atexit = False

    def write(self, part: memoryview) -> None:
        """Write the next part, without waiting for it; an error ends the attempt."""
        with self._turn:
            self._opened()
            for start in range(0, part.nbytes, WRITE_BYTES):
                piece = part[start : start + WRITE_BYTES]
                self._writes.append(self._bulk.submit(self._put, piece, self._offset))
                self._offset += piece.nbytes
            if any(write.done() and write.exception() for write in self._writes):
                self._settle()

    def finish(self) -> BulkRef:
        """Wait until all of it is written, and synced where that is needed.

        Raises:
            StoreUnavailable: the disk failed.

        """
        with self._turn:
            if self._state != "done":
                file = self._opened()
                self._settle()
                try:
                    self._bulk.sync(file, self._extent)
                except OSError as error:
                    self._close("given up")
                    raise self._bulk.failed(self._extent, self._owner, error) from None
                self._close("done")
            return BulkRef((), self._extent, self._nbytes)

    def abort(self) -> None:
        """Give up. The extent is free once the writes under way have ended, and nobody has this object."""
        if self._state == "open":
            self._state = "given up"

    def _put(self, part: memoryview, offset: int) -> None:
        """Write a part; until that has ended, this very call keeps the object, and so the extent."""
        if self._file is not None:
            self._bulk.put(self._file, part, offset)

    def _opened(self) -> OpenFile:
        if self._state != "open":
            raise StoreUnavailable("this upload has ended already", retry_after=0.5)
        if self._file is None:
            self._extent = self._bulk.take(self._nbytes, self._owner, self._kind)
            weakref.finalize(self, self._bulk.move, self._extent, self._owner, frozenset({STAGED}), FREE).atexit = False
            try:
                self._file = self._bulk.open(self._extent)
            except OSError as error:
                self._state = "given up"
                raise self._bulk.failed(self._extent, self._owner, error) from None
            self._closer = weakref.finalize(self, self._file.close)
        return self._file

    def _settle(self) -> None:
        """Wait for all writes; raises what failed."""
        wait(self._writes)
        for write in self._writes:
            error = write.exception()
            if error is not None:
                self._close("given up")
                if isinstance(error, OSError):
                    raise self._bulk.failed(self._extent, self._owner, error) from None
                raise error
        self._writes.clear()

    def _close(self, state: Literal["done", "given up"]) -> None:
        if self._state != "done":
            self._state = state
        self._file = None
        self._closer()


def _nothing() -> None:
    """Close nothing."""


def owner_of(name: BulkName) -> Owner:
    """Return who has the extents of a name."""
    return Owner(name.session_id, name.owner, name.array)
