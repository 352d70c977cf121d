"""Receives bodies into one leased buffer; they are hashed, checked and logged while the rest arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager

import numpy as np
import xxhash

from adamd.errors import ShuttingDown, TooLarge, UploadTimeout, WrongLength
from adamd.wire.buffers import BufferPool, Bytes
from adamd_service.engine.calls import RequestBody
from adamd_service.engine.workers import settled
from adamd_service.optim import Encoded
from adamd_service.store import Staging

PIECE_BYTES = 512 * 1024  # bytes handed to a thread at once; also a chunk in the store
DECODE_INLINE_BYTES = 128 * 1024  # below this a hop to a thread costs more than decoding
HASH_INLINE_BYTES = 512 * 1024  # below this a hop to a thread, 0.1 ms, costs as much as hashing and checking
SLOWEST_RATE = 8 * 1024  # bytes a second, on average: a sender of a byte now and then would hold its memory


class Reception:
    """One gradient's bytes: what arrived, their digest, and their way into the store.

    Args:
        encoding: of the bytes.
        dtype: of their values.
        buffer: where they go; may be filled already.
        gradient: what they mean.
        digest: started by `rules.digest_start`; every piece is fed to it in order.
        staging: where the pieces are logged; None: not yet, or not at all.

    """

    def __init__(
        self,
        encoding: str,
        dtype: str,
        buffer: Bytes,
        gradient: Encoded,
        digest: xxhash.xxh3_128,
        staging: Staging | None,
    ) -> None:
        self.encoding = encoding
        self.dtype = dtype
        self.buffer = buffer
        self.gradient = gradient
        self.staging = staging
        self._digest = digest
        self._done = 0

    @property
    def piece(self) -> int:
        """Bytes to hash at once. For a staged body it is the chunk's length, which grows with very large bodies."""
        return PIECE_BYTES if self.staging is None else self.staging.piece

    def digest(self) -> str:
        """XXH3-128 (hex), once everything was taken."""
        return self._digest.hexdigest()

    def take(self, end: int) -> None:
        """Hash, check and log the bytes up to ``end``. Called in order, from a worker thread or inline.

        Raises:
            BadGradient: with the index of the first NaN, infinity, or value whose square overflows.
            MalformedBody: indices out of order or range.

        """
        part = self.buffer[self._done : end]
        self._digest.update(part)
        self.gradient.check(end)
        if self.staging is not None:
            self.staging.write(memoryview(part))
        self._done = end


async def receive_exactly(
    body: RequestBody, reception: Reception, executor: Executor, gap: float, draining: Callable[[], bool]
) -> None:
    """Fill the buffer from the body, working on whole pieces in a thread while the next ones arrive.

    Raises:
        WrongLength: too few or too many bytes.
        BadGradient, MalformedBody: at once, without waiting for the rest.
        UploadTimeout: nothing came for ``gap`` seconds.
        ShuttingDown: the server is going down.

    """
    buffer = reception.buffer
    total = buffer.nbytes
    if body.whole is not None:
        buffer[:] = np.frombuffer(body.whole, dtype=np.uint8)
        await _take_rest(reception, executor, 0)
        return
    loop = asyncio.get_running_loop()
    started = loop.time()
    filled = done = 0
    work: asyncio.Future[None] | None = None
    arrivals = _copied(body.chunks, buffer) if body.fill is None or not total else body.fill(memoryview(buffer))
    try:
        async with aclosing(arrivals), _patience(gap) as patience:
            async for filled in arrivals:
                _still_coming(patience, gap, draining, started + filled / SLOWEST_RATE)
                if work is not None and work.done():
                    work.result()
                    work = None
                ready = filled - filled % reception.piece
                if work is None and ready > done:
                    work = loop.run_in_executor(executor, reception.take, ready)
                    done = ready
        if filled < total:
            raise WrongLength(f"the body ended after {filled} bytes; this gradient has {total}")
        if work is not None:
            await asyncio.wait([work])
            work.result()
    finally:
        if work is not None:
            await settled(work)  # it must not write into memory that is used again
    await _take_rest(reception, executor, done)


async def _take_rest(reception: Reception, executor: Executor, done: int) -> None:
    """Take the rest of the buffer, in a thread where it is large or has to be logged."""
    total = reception.buffer.nbytes
    if total - done <= HASH_INLINE_BYTES and reception.staging is None:
        reception.take(total)
        return
    work = asyncio.get_running_loop().run_in_executor(executor, reception.take, total)
    try:
        await asyncio.wait([work])
        work.result()
    finally:
        await settled(work)  # it must not write into memory that is used again


async def receive_all(
    body: RequestBody, limit: int, pool: BufferPool, gap: float, draining: Callable[[], bool]
) -> Bytes:
    """Return a whole body of unknown shape, at most ``limit`` bytes: refused by its declared length, then by counting.

    Raises:
        TooLarge: beyond the limit.
        UploadTimeout, ShuttingDown: as `receive_exactly`.

    """
    if body.declared is not None and body.declared > limit:
        raise TooLarge(f"a body of {body.declared} bytes; at most {limit} are accepted")
    buffer = pool.lease(65_536 if body.declared is None else body.declared)
    filled = 0
    started = asyncio.get_running_loop().time()
    async with _patience(gap) as patience:
        if body.fill is not None and body.declared:
            async with aclosing(body.fill(memoryview(buffer))) as arrivals:
                async for filled in arrivals:
                    _still_coming(patience, gap, draining, started + filled / SLOWEST_RATE)
            return buffer[:filled]
        async for chunk in body.chunks:
            _still_coming(patience, gap, draining, started + filled / SLOWEST_RATE)
            end = filled + len(chunk)
            if end > limit:
                raise TooLarge(f"more than {limit} bytes came; no more are accepted")
            if end > buffer.nbytes:
                larger = pool.lease(min(limit, max(end, 2 * buffer.nbytes)))
                larger[:filled] = buffer[:filled]
                buffer = larger
            buffer[filled:end] = np.frombuffer(chunk, dtype=np.uint8)
            filled = end
    if body.declared is not None and filled != body.declared:
        raise WrongLength(f"{body.declared} bytes were declared, {filled} came")
    return buffer[:filled]


async def _copied(chunks: AsyncGenerator[bytes | memoryview], buffer: Bytes) -> AsyncGenerator[int]:
    """Copy chunks into the buffer; yields how much of it is filled."""
    filled = 0
    async for chunk in chunks:
        if filled + len(chunk) > buffer.nbytes:
            raise WrongLength(f"more than {buffer.nbytes} bytes came; this gradient has exactly {buffer.nbytes}")
        buffer[filled : filled + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        filled += len(chunk)
        yield filled


@asynccontextmanager
async def _patience(gap: float) -> AsyncGenerator[asyncio.Timeout]:
    """Time out after ``gap`` seconds without a byte; `_still_coming` moves this one timer of a body.

    Raises:
        UploadTimeout: nothing came, or too little on average.

    """
    try:
        async with asyncio.timeout(gap) as patience:
            yield patience
    except TimeoutError as late:
        if not patience.expired():
            raise
        if late.__cause__ is not None:
            late.__cause__.__traceback__ = None  # or Python keeps the frames, and the buffer, in a cycle
        raise UploadTimeout(
            f"nothing came for {gap:g} s, or less than {SLOWEST_RATE} bytes a second on the whole; "
            "the upload was given up"
        ) from None


def _still_coming(patience: asyncio.Timeout, gap: float, draining: Callable[[], bool], due: float) -> None:
    """Extend the timeout, but at most to ``gap`` after ``due``: a sender at SLOWEST_RATE would be here by then."""
    if draining():
        raise ShuttingDown("the server is shutting down; send the step again, to this address", retry_after=1.0)
    patience.reschedule(min(asyncio.get_running_loop().time(), due) + gap)
