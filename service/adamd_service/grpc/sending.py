"""Receives and sends bodies in pieces; a reader has to take each piece within the gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import Any, TypeVar

import grpc

from adamd.errors import InvalidRequest, UploadTimeout
from adamd.wire.channel import PIECE, most_pieces
from adamd.wire.pieces import Data, Piece
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs.states import raw
from adamd_service.engine import Answer
from adamd_service.grpc import messages
from adamd_service.grpc.calls import Context, read

T = TypeVar("T")
INLINE = 64 * 1024  # bytes of an answer that leaves before the next message is read: a task would cost more


async def write(context: Context, message: Any, gap: float) -> None:
    """Send one message.

    Raises:
        UploadTimeout: the other end has not read what was sent before.

    """
    try:
        async with asyncio.timeout(gap):
            await context.write(message)
    except TimeoutError:
        raise _unread(gap) from None


def _unread(gap: float) -> UploadTimeout:
    return UploadTimeout(f"nothing of the answer was read for {gap:g} s; it was given up")


async def write_all(context: Context, standing: pb.Standing, views: list[memoryview], gap: float) -> None:
    """Send bytes in pieces, the first of them with the standing."""
    head: pb.Standing | None = standing
    offset = 0
    for part in _parts(views):
        await write(context, Piece(head, offset, part), gap)
        head, offset = None, offset + len(part)
    if head is not None:
        await write(context, Piece(head, 0, b""), gap)


def _parts(views: list[memoryview]) -> Iterator[Data]:
    for view in views:
        for start in range(0, view.nbytes, PIECE):
            yield view[start : start + PIECE]


class Sender:
    """Sends a stream's answers one after the other, a large one in the background.

    A reader that stops reading ends the call: it is noticed while the call waits for something else. No exception is
    kept for that, because its frames would keep the answer.

    Args:
        context: the call.
        gap: seconds that a piece may take.

    """

    def __init__(self, context: Context, gap: float) -> None:
        self._context = context
        self._gap = gap
        self._main = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._stuck = asyncio.Event()
        self._waking = False

    async def send(self, answer: Answer) -> None:
        """Begin to send, once the answer before has left."""
        await self.done()
        views = [] if answer.parameters is None else [raw(answer.parameters)]
        standing = messages.standing(answer)
        if answer.parameters is None or answer.parameters.nbytes <= INLINE:
            await write(self._context, Piece(standing, 0, views[0] if views else b""), self._gap)
        else:
            self._task = asyncio.ensure_future(self._send(standing, views))

    async def _send(self, standing: pb.Standing, views: list[memoryview]) -> None:
        try:
            await write_all(self._context, standing, views, self._gap)
        except UploadTimeout:
            self._stuck.set()
        except grpc.aio.BaseError:  # the other end has gone: the call is about to be cancelled
            return
        if self._stuck.is_set() and self._waking and self._main is not None:
            self._main.cancel()

    async def unless_stuck(self, work: Awaitable[T]) -> T:
        """Wait for ``work``, but no longer where nobody reads what was sent.

        Raises:
            UploadTimeout: nobody does.

        """
        if self._stuck.is_set():
            raise _unread(self._gap)
        self._waking = True
        try:
            return await work
        except asyncio.CancelledError:
            if not self._stuck.is_set() or self._main is None:
                raise
            self._main.uncancel()
        finally:
            self._waking = False
        raise _unread(self._gap)

    async def done(self) -> None:
        """Wait until the last answer has left."""
        task, self._task = self._task, None
        if task is not None:
            try:
                await task
            finally:
                task.cancel()
        if self._stuck.is_set():
            raise _unread(self._gap)

    def give_up(self) -> None:
        """Send nothing more.

        The task is not kept: how it ended knows its frames, and they know this sender and the answer, in a cycle.
        """
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


async def pieces(message: Piece[Any], total: int | None, context: Context) -> AsyncGenerator[Data]:
    """Give a body's pieces as they come: in order, without holes or overlaps, none empty, not too many.

    Begins with the data of ``message``, the body's first; ``total`` is the body's length, None where it ends with the
    stream. Ends early where the stream does: whoever reads it knows how much there should be.

    Raises:
        InvalidRequest: they are not.

    """
    received, count = 0, 1
    while True:
        if message.offset != received:
            hole = message.offset > received
            what = "a hole, or a piece is missing" if hole else "an overlap, or a piece comes twice"
            raise InvalidRequest(f"offset {message.offset}: the body goes on at {received}: {what}", path="offset")
        received += len(message.data)
        if total is not None and received > total:
            raise InvalidRequest(f"more than the {total} bytes came that nbytes tells", path="nbytes")
        if count > most_pieces(received):
            raise InvalidRequest(
                f"{received} bytes in {count} pieces; send larger ones, best 256 KiB to 1 MiB", path="data"
            )
        if message.data:
            yield message.data
        if received == total:
            return
        following = await read(context)
        if following is None:
            return
        message, count = following, count + 1
        if message.head is not None:
            raise InvalidRequest(f"another head after {received} bytes; the first message alone has one", path="header")
        if not message.data:
            raise InvalidRequest("data: an empty piece", path="data")
