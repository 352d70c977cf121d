"""Guard: bounds and counts calls, and turns their errors into statuses.

gRPC for Python ends a call whose message cannot be parsed, or whose handler raises, with a traceback in the log and
UNKNOWN for the client. So the deserializers here return an error instead of raising it. And every method is served
as one that reads its messages itself, so that a single message too has a time limit, and is refused with details.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from adamd.errors import AdamdError, Busy, InternalError, InvalidRequest, MalformedBody, ShuttingDown, UploadTimeout
from adamd_service.engine import ASKED
from adamd_service.engine.admission import WaitingRoom
from adamd_service.grpc.status import rich, status_of
from adamd_service.telemetry import Telemetry

Context = Any  # grpc.aio.ServicerContext; its types say less than it has
Streaming = Callable[[Context], Awaitable[None]]
Single = Callable[[Any, Context], Awaitable[Any]]
LAST_WORD = 5.0  # seconds that an error may take on its way; a reader that has stopped reading never takes it
log = structlog.get_logger()


class Draining(Protocol):
    """Says whether the server is going down."""

    def __call__(self) -> bool:
        """Say it."""


def reading(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that returns the error for what cannot be parsed."""

    def read(raw: bytes) -> Any:
        try:
            return parse(raw)
        except (DecodeError, UnicodeDecodeError) as error:
            return MalformedBody(f"not a message of this method: {error}")

    return read


class Guard:
    """Serves calls, counted and bounded.

    Args:
        telemetry: counts them.
        most: calls at once.
        gap: seconds that a message may take.
        draining: says whether the server is going down.

    """

    def __init__(self, telemetry: Telemetry, most: int, gap: float, draining: Draining) -> None:
        self.waiting = WaitingRoom(max(1, most // 2))  # else those that they wait for found no place
        self._telemetry = telemetry
        self._most = most
        self._gap = gap
        self._draining = draining
        self._running = 0
        self._idle: dict[asyncio.Task[Any], None] = {}  # the longest idle first
        self._leaving: set[asyncio.Task[Any]] = set()  # idle ones that give their places to others

    def streaming(self, name: str, work: Streaming) -> Callable[[Any, Context], Awaitable[None]]:
        """Serve a method that reads and writes by itself."""

        async def call(_messages: Any, context: Context) -> None:
            await self._run(name, work(context), context)

        return call

    def single(self, name: str, work: Single) -> Callable[[Any, Context], Awaitable[Any]]:
        """Serve a method that takes one message."""

        async def call(_messages: Any, context: Context) -> Any:
            return await self._run(name, self._single_message(work, context), context)

        return call

    async def _single_message(self, work: Single, context: Context) -> Any:
        return await work(await self.first(context), context)

    async def first(self, context: Context) -> Any:
        """Wait for a call's first message.

        Raises:
            UploadTimeout: it did not come in whole.
            InvalidRequest: the stream ended without one.

        """
        try:
            async with asyncio.timeout(self._gap):
                message = await read(context)
        except TimeoutError:
            raise UploadTimeout(f"the message was not whole after {self._gap:g} s; send it in a stream") from None
        if message is None:
            raise InvalidRequest("no message came")
        return message

    async def _run(self, name: str, work: Awaitable[Any], context: Context) -> Any:
        started, status = time.perf_counter(), "OK"
        task = asyncio.current_task()
        assert task is not None
        self._running += 1
        try:
            if not self._room():
                work.close()  # type: ignore[attr-defined]  # a coroutine
                raise Busy(f"{self._most} calls are under way, no more are possible; try again", retry_after=0.5)
            return await work
        except AdamdError as error:
            status, failed = status_of(error).name, error
            if isinstance(error, InternalError):
                log.error("internal error", method=name, session=ASKED.get(), detail=error.detail, exc_info=error)
            else:
                tell = log.info if error.status >= 500 else log.debug
                tell("refused", method=name, session=ASKED.get(), code=error.code, detail=error.detail)
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except grpc.aio.BaseError:  # the other end went away while something was sent to it
            status = "CANCELLED"
            raise asyncio.CancelledError from None
        except Exception as error:
            status = "INTERNAL"
            log.error("unexpected error", method=name, exc_info=error)
            failed = InternalError(f"{type(error).__name__}; the server's log has the rest")
        finally:
            self._running -= 1
            self._leaving.discard(task)
            self._telemetry.request("gRPC", name, status, time.perf_counter() - started)
        return await _refuse(context, failed)

    async def idle(self, context: Context) -> Any:
        """Wait for a message for as long as it takes; None at the stream's end.

        Raises:
            ShuttingDown: the server goes down, and nothing is under way here.
            Busy: all places are taken, and no other call has been idle for longer.

        """
        task = asyncio.current_task()
        assert task is not None
        if self._draining():
            raise going_down()
        self._idle[task] = None
        try:
            return await read(context)
        except asyncio.CancelledError:
            if task in self._leaving:
                task.uncancel()
                raise Busy("this stream was idle, and another call needed its place; open a new one") from None
            if not self._draining():
                raise
            task.uncancel()
            raise going_down() from None
        finally:
            self._idle.pop(task, None)

    def _room(self) -> bool:
        """Say whether one more call may run; where all places are taken, the longest idle stream gives up its own."""
        if self._running - len(self._leaving) <= self._most:
            return True
        oldest = next(iter(self._idle), None)
        if oldest is None:
            return False
        del self._idle[oldest]
        self._leaving.add(oldest)
        oldest.cancel()
        return True

    def wake(self) -> None:
        """End the calls that only wait: the server goes down."""
        for task in self._idle:
            task.cancel()


async def read(context: Context) -> Any:
    """Return the next message, None at the stream's end.

    Raises:
        AdamdError: it could not be parsed.

    """
    message = await context.read()
    if message is grpc.aio.EOF:
        return None
    if isinstance(message, AdamdError):
        raise message
    return message


def going_down() -> ShuttingDown:
    """Return what a call is told when the server goes down."""
    return ShuttingDown("the server is shutting down; try again, at this address", retry_after=1.0)


async def _refuse(context: Context, error: AdamdError) -> None:
    """End a call with an error.

    gRPC keeps the exception that ends a call in a cycle with its frames. So what the error has seen on its way, buffers
    among them, is let go of first.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    try:
        async with asyncio.timeout(LAST_WORD):
            await context.abort_with_status(rpc_status.to_status(rich(error)))
    except grpc.aio.AbortError:
        raise
    except (grpc.aio.BaseError, TimeoutError):  # nobody is there to hear it, or to read what was sent before it
        raise asyncio.CancelledError from None
