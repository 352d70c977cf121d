"""Moves bulk bytes to and from the store: pipelined over a blocking socket in a worker thread, without the GIL.

Chunks are written with a TTL and under an attempt's id, so what is never committed expires by itself. The script that
names them makes them permanent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, cast

import xxhash
from redis.connection import ConnectionPool

from adamd.errors import AdamdError, Busy, Damaged, StoreFull, StoreUnavailable
from adamd.wire.buffers import Bytes
from adamd_service.records import ArrayRef, BulkRef
from adamd_service.store.connection.connect import Client, borrowed, pool_of, refreshing
from adamd_service.store.connection.failures import translated
from adamd_service.store.outcomes import ChunkMissing, Connection
from adamd_service.store.scripts import script

CHUNK_BYTES = 1024 * 1024  # larger vectors take larger chunks, so that a body has at most MAX_CHUNKS
MAX_CHUNKS = 1000
CHUNK_TTL_SECONDS = 900  # of an uncommitted chunk; one more for each MiB, since large bodies take long to write
READ_AHEAD_CHUNKS = 16  # requested before the first is read
UNLINK_KEYS = 64  # unlinked by one script, so that it blocks the store only briefly
MAX_UPLOADS = 256  # at once, each on a connection of its own


def _anything(nbytes: int) -> None:
    """Accept any number of bytes: the disk of a store that adamd did not start is not checked."""


def chunk_size(nbytes: int) -> int:
    """Return the length of a chunk of a body or array of ``nbytes``: 1 MiB, or what keeps it below 1,000 chunks."""
    return max(CHUNK_BYTES, -(-nbytes // MAX_CHUNKS // CHUNK_BYTES) * CHUNK_BYTES)


def lifetime(nbytes: int) -> int:
    """Return the seconds that the chunks of a body or array of ``nbytes`` live uncommitted."""
    return CHUNK_TTL_SECONDS + nbytes // 2**20


class ChunkStaging:
    """One attempt's chunks on their way into the store, on a connection of its own. Used by one thread at a time.

    ``piece`` is the length of a chunk in bytes: hand over multiples of it, except at the end. ``slots`` bounds how
    many there are at once; `finish`, `abort` and any error give the slot back. ``grow`` is told what is about to be
    written, and may refuse it. Making one does no I/O.

    Raises:
        Busy: no slot is free.

    """

    def __init__(
        self,
        client: Client,
        key_of: Callable[[int], str],
        nbytes: int,
        slots: threading.Semaphore | None = None,
        grow: Callable[[int], None] = _anything,
    ) -> None:
        if slots is not None and not slots.acquire(blocking=False):
            raise Busy("as many uploads as possible are on their way into the store; try again", retry_after=0.5)
        self.piece = chunk_size(nbytes)
        self._client = client
        self._key_of = key_of
        self._ttl = lifetime(nbytes)
        self._slots = slots
        self._grow = grow
        self._lengths: list[int] = []
        self._answered = 0
        self._pool: ConnectionPool | None = None
        self._connection: Connection | None = None
        self._turn = threading.Lock()
        self._state: Literal["open", "done", "given up"] = "open"

    def write(self, part: memoryview) -> None:
        """Send a part of the body, without waiting for the store to have it; an error ends the attempt."""
        with self._working() as connection:
            self._grow(part.nbytes)
            for start in range(0, part.nbytes, self.piece):
                piece = part[start : start + self.piece]
                key = self._key_of(len(self._lengths))
                self._lengths.append(piece.nbytes)
                connection.send_packed_command(_setting(key, piece, self._ttl))

    def finish(self) -> BulkRef:
        """Wait until the store has everything; returns where it lies, also when it is asked again.

        Raises:
            StoreUnavailable, StoreFull: it has not.

        """
        if self._state != "done":
            with self._working() as connection:
                while self._answered < len(self._lengths):
                    connection.read_response()
                    self._answered += 1
                self._end("done")
        return BulkRef(tuple(self._lengths))

    def abort(self) -> None:
        """Give up, from any thread and without waiting. A thread that is at work ends the attempt when it is done.

        Answers are still on the connection, so it is closed; the chunks expire by their TTL.
        """
        if self._state == "open":
            self._state = "given up"
        if self._turn.acquire(blocking=False):
            try:
                self._end("given up")
            finally:
                self._turn.release()

    @contextmanager
    def _working(self) -> Iterator[Connection]:
        try:
            with self._turn, translated(), refreshing(self._client):
                try:
                    yield self._open_connection()
                except BaseException:
                    self._end("given up")
                    raise
        except StoreFull:  # nothing will name what it took, and it needs the room
            discard(self._client, [self._key_of(i) for i in range(len(self._lengths))])
            raise
        finally:
            if self._state == "given up":
                self.abort()

    def _open_connection(self) -> Connection:
        if self._state != "open":
            raise StoreUnavailable("this upload has ended already", retry_after=0.5)
        if self._connection is None:
            self._pool = pool_of(self._client, self._key_of(0))
            self._connection = self._pool.get_connection()
        return self._connection

    def _end(self, state: Literal["done", "given up"]) -> None:
        """Let connection and slot go, once. Called by whoever has the turn."""
        connection, self._connection = self._connection, None
        slots, self._slots = self._slots, None
        if self._state != "done":
            self._state = state
        if connection is not None and self._pool is not None:
            if state != "done":
                connection.disconnect()
            self._pool.release(connection)
        if slots is not None:
            slots.release()


def write_array(
    client: Client,
    key_of: Callable[[int], str],
    name: str,
    data: Bytes,
    pace: Callable[[int], None] | None,
    grow: Callable[[int], None] = _anything,
) -> ArrayRef:
    """Write one array of a snapshot, chunk by chunk, each acknowledged; ``pace`` is told the length of each.

    What was written before an error is unlinked again: nothing will ever name it, and a full store needs the room.
    """
    size = chunk_size(data.nbytes)
    lengths: list[int] = []
    try:
        for index, start in enumerate(range(0, data.nbytes, size)):
            piece = memoryview(data[start : start + size])
            grow(piece.nbytes)
            with translated(), borrowed(client, key_of(0)) as connection:
                connection.send_packed_command(_setting(key_of(index), piece, lifetime(data.nbytes)))
                connection.read_response()
            lengths.append(piece.nbytes)
            if pace is not None:
                pace(piece.nbytes)
    except BaseException:
        discard(client, [key_of(i) for i in range(len(lengths))])
        raise
    return ArrayRef(name, BulkRef(tuple(lengths)), xxhash.xxh3_128_hexdigest(data))


def _setting(key: str, piece: memoryview, seconds: int) -> list[bytes | memoryview]:
    """SET … EX as RESP, with the piece as it lies: hiredis, which is quick for all else, would copy it twice."""
    name, ttl = key.encode(), str(seconds).encode()
    return [
        b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, piece.nbytes),
        piece,
        b"\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(ttl), ttl),
    ]


def discard(client: Client, keys: Sequence[str]) -> None:
    """Unlink chunks that nothing names, as far as the store answers: their TTL does the same, later.

    Those that a script has named after all have no TTL any more, and stay.
    """
    with suppress(AdamdError), translated():
        for start in range(0, len(keys), UNLINK_KEYS):
            script("discard")(client, list(keys[start : start + UNLINK_KEYS]))


def read_array(client: Client, key_of: Callable[[int], str], ref: ArrayRef, into: Bytes) -> None:
    """Fill ``into`` (uint8, exactly as long) with an array of a snapshot.

    Raises:
        ChunkMissing: it is not there any more.
        Damaged: its bytes are not those that were written.

    """
    read_chunks(client, [key_of(i) for i in range(len(ref.bulk.chunks))], ref.bulk.chunks, into)
    check_array(ref, into)


def check_array(ref: ArrayRef, data: Bytes) -> None:
    """Compare an array with its digest; raises Damaged."""
    if xxhash.xxh3_128_hexdigest(data) != ref.digest:
        raise Damaged(f"the snapshot's array {ref.name} in the store is damaged: its digest does not match")


def read_chunks(client: Client, keys: Sequence[str], lengths: Sequence[int], into: Bytes) -> None:
    """Fill ``into`` with chunks, several asked for at once.

    Raises:
        ChunkMissing: one is not there, or not as long as it should be.

    """
    if sum(lengths) != into.nbytes:
        raise Damaged(f"chunks of {sum(lengths)} bytes for an array of {into.nbytes}")
    if not keys:
        return
    with translated(), borrowed(client, keys[0]) as connection:
        join(_pipelined_gets(connection, keys), lengths, into)


def join(parts: Iterable[bytes | None], lengths: Sequence[int], into: Bytes) -> None:
    """Fill ``into`` with chunks that were read.

    Raises:
        ChunkMissing: one is not there, or not as long as it should be.
        Damaged: together they are not as long as ``into``.

    """
    if sum(lengths) != into.nbytes:
        raise Damaged(f"chunks of {sum(lengths)} bytes for an array of {into.nbytes}")
    start = 0
    for chunk, length in zip(parts, lengths, strict=True):
        if chunk is None or len(chunk) != length:
            raise ChunkMissing("a chunk that the head names is not there, or not as long as it was")
        memoryview(into)[start : start + length] = chunk
        start += length


def _pipelined_gets(connection: Connection, keys: Sequence[str]) -> Iterator[bytes | None]:
    sent = 0
    for done in range(len(keys)):
        while sent < min(len(keys), done + READ_AHEAD_CHUNKS):
            connection.send_command("GET", keys[sent])
            sent += 1
        yield cast("bytes | None", connection.read_response(disable_decoding=True))
