"""Bulk bytes to and from the store: pipelined over one blocking socket in a worker thread, which releases the GIL.

Chunks are written with a TTL and under an attempt's id, so what never commits goes away by itself; the script that
names them makes them permanent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import redis
import xxhash
from redis.connection import ConnectionPool

from adamd.errors import InternalError
from adamd.wire.buffers import Bytes
from adamd_service.records import ArrayRef
from adamd_service.store.connect import Client, Connection, borrowed, pool_of
from adamd_service.store.failures import translated
from adamd_service.store.outcomes import ChunkMissing

CHUNK = 512 * 1024  # bytes; larger vectors take larger chunks, so that a record has at most MOST
MOST = 1000
TTL = 900  # seconds that an uncommitted chunk lives
WINDOW = 16  # chunks asked for before the first is read


def chunk_size(nbytes: int) -> int:
    """Return the length of a chunk of a body or array of ``nbytes``: 512 KiB, or what keeps it below 1,000 chunks."""
    return max(CHUNK, -(-nbytes // MOST // CHUNK) * CHUNK)


class Staging:
    """One attempt's chunks on their way into the store, on a connection of its own, taken at the first write.

    ``piece`` is the length of a chunk in bytes: hand over multiples of it, except at the end. Calls exclude each other:
    an upload that is given up may still have a thread at work here.
    """

    def __init__(self, client: Client, key_of: Callable[[int], str], nbytes: int) -> None:
        self.piece = chunk_size(nbytes)
        self._client = client
        self._key_of = key_of
        self._lengths: list[int] = []
        self._answered = 0
        self._lock = threading.Lock()
        self._pool: ConnectionPool | None = None
        self._connection: Connection | None = None
        self._given_up = False

    def write(self, part: memoryview) -> None:
        """Send a part of the body, without waiting for the store to have it.

        Raises:
            StoreUnavailable: it does not take it, or this attempt was given up.

        """
        with self._used() as connection:
            for start in range(0, part.nbytes, self.piece):
                piece = part[start : start + self.piece]
                connection.send_command("SET", self._key_of(len(self._lengths)), piece, "EX", TTL)
                self._lengths.append(piece.nbytes)

    def finish(self) -> tuple[int, ...]:
        """Wait until the store has everything; returns the chunks' lengths. A second call returns them again.

        Raises:
            StoreUnavailable, StoreFull: it has not.

        """
        if self._answered < len(self._lengths):
            with self._used() as connection:
                while self._answered < len(self._lengths):
                    connection.read_response()
                    self._answered += 1
        self._let_go()
        return tuple(self._lengths)

    def abort(self) -> None:
        """Give up: the connection has answers under way, so it is thrown away; the chunks' TTL does the rest."""
        with self._lock:
            self._give_up()

    @contextmanager
    def _used(self) -> Iterator[Connection]:
        with self._lock, translated():
            if self._given_up:
                raise redis.ConnectionError("this upload was given up")
            try:
                if self._pool is None:
                    self._pool = pool_of(self._client, self._key_of(0))
                if self._connection is None:
                    self._connection = self._pool.get_connection()
                yield self._connection
            except BaseException:
                self._give_up()
                raise

    def _give_up(self) -> None:
        self._given_up = True
        if self._connection is not None:
            self._connection.disconnect()
        self._release()

    def _let_go(self) -> None:
        with self._lock:
            self._release()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pool is not None:
            self._pool.release(connection)


def write_array(
    client: Client, key_of: Callable[[int], str], name: str, data: Bytes, pace: Callable[[int], None] | None
) -> ArrayRef:
    """Write one array of a snapshot, chunk by chunk, each acknowledged; ``pace`` is told the length of each."""
    size = chunk_size(data.nbytes)
    lengths = []
    with translated(), borrowed(client, key_of(0)) as connection:
        for index, start in enumerate(range(0, data.nbytes, size)):
            piece = memoryview(data[start : start + size])
            connection.send_command("SET", key_of(index), piece, "EX", TTL)
            connection.read_response()
            lengths.append(piece.nbytes)
            if pace is not None:
                pace(piece.nbytes)
    return ArrayRef(name, tuple(lengths), xxhash.xxh3_128_hexdigest(data))


def read_array(client: Client, key_of: Callable[[int], str], ref: ArrayRef, into: Bytes) -> None:
    """Fill ``into`` (uint8, exactly as long) with an array of a snapshot.

    Raises:
        ChunkMissing: it is not there any more.
        InternalError: its bytes are not those that were written.

    """
    read_chunks(client, [key_of(i) for i in range(len(ref.chunks))], ref.chunks, into)
    if xxhash.xxh3_128_hexdigest(into) != ref.digest:
        raise InternalError(f"the snapshot's array {ref.name} in the store is damaged: its digest does not match")


def read_chunks(client: Client, keys: Sequence[str], lengths: Sequence[int], into: Bytes) -> None:
    """Fill ``into`` with chunks, several asked for at once.

    Raises:
        ChunkMissing: one is not there, or not as long as it should be.

    """
    if sum(lengths) != into.nbytes:
        raise InternalError(f"chunks of {sum(lengths)} bytes for an array of {into.nbytes}")
    if not keys:
        return
    with translated(), borrowed(client, keys[0]) as connection:
        start = 0
        for chunk, length in zip(_asked(connection, keys), lengths, strict=True):
            if chunk is None or len(chunk) != length:
                raise ChunkMissing("a chunk that the session's head names is not in the store")
            memoryview(into)[start : start + length] = chunk
            start += length


def _asked(connection: Connection, keys: Sequence[str]) -> Iterator[bytes | None]:
    sent = 0
    for done in range(len(keys)):
        while sent < min(len(keys), done + WINDOW):
            connection.send_command("GET", keys[sent])
            sent += 1
        yield cast("bytes | None", connection.read_response(disable_decoding=True))
