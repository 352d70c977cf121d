"""Answers on their way out: in pieces, each of which has to be taken within the gap."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

from adamd.errors import AdamdError, UploadTimeout
from adamd.wire.channel import PIECE
from adamd.wire.pieces import Data, Piece
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs.states import raw
from adamd_service.engine import Answer
from adamd_service.grpc import messages
from adamd_service.grpc.guard import Context

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
        raise UploadTimeout(f"nothing of the answer was read for {gap:g} s; it was given up") from None


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

    Args:
        context: the call.
        gap: seconds that a piece may take.

    """

    def __init__(self, context: Context, gap: float) -> None:
        self._context = context
        self._gap = gap
        self._main = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._stuck: AdamdError | None = None

    async def send(self, answer: Answer) -> None:
        """Begin to send, once the answer before has left."""
        await self.done()
        if answer.parameters is None or answer.parameters.nbytes <= INLINE:
            await self._send(answer)
            return
        self._task = asyncio.ensure_future(self._send(answer))
        self._task.add_done_callback(self._look)

    async def _send(self, answer: Answer) -> None:
        views = [] if answer.parameters is None else [raw(answer.parameters)]
        standing = messages.standing(answer)
        del answer
        try:
            await write_all(self._context, standing, views, self._gap)
        finally:
            views.clear()  # or an error's traceback would hold them

    def _look(self, task: asyncio.Task[None]) -> None:
        """End what the call waits for where nobody reads its answers."""
        error = None if task.cancelled() else task.exception()
        if error is not None and self._main is not None:
            self._stuck = error if isinstance(error, AdamdError) else None
            self._main.cancel()

    async def unless_stuck(self, work: Awaitable[T]) -> T:
        """Wait for ``work``, but not beyond the end of the sending by an error."""
        try:
            return await work
        except asyncio.CancelledError:
            if self._stuck is None or self._main is None:
                raise
            self._main.uncancel()
            raise self._stuck from None

    async def done(self) -> None:
        """Wait until the last answer has left."""
        task, self._task = self._task, None
        if task is not None:
            await self.unless_stuck(task)

    def give_up(self) -> None:
        """Send nothing more."""
        if self._task is not None:
            self._task.cancel()
