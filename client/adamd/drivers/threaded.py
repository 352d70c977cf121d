"""What drives the logic over a transport, for asyncio: the blocking transport in threads, with cancellation.

A thread that sends or receives holds no interpreter lock, and fills the caller's memory straight from the socket;
asyncio's own streams copy every piece, and gRPC's asyncio channel is slower than its blocking one (ARCHITECTURE.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from adamd.errors import AdamdError, TransportError
from adamd.sansio import retry
from adamd.sansio.operations import Operation, Watch
from adamd.sansio.retry import Got, Send, Tell, Timeout
from adamd.sansio.tracking import Logic, Work
from adamd.transports.cancellation import Stop
from adamd.transports.select import Transport

T = TypeVar("T")
LOG = logging.getLogger("adamd")  # on stderr where nobody configured it
AT_ONCE = 64  # calls of one client under way; pauses between attempts take no thread
WATCHES = 256  # beside them: a watch over gRPC waits in its thread for seconds, and no step shall wait for it


class AsyncShell:
    """The asyncio shell. Its calls may run side by side."""

    def __init__(self, way: Transport, timeout: Timeout) -> None:
        self._transport = way
        self._timeout = timeout
        self._known = False  # the server has answered once
        self._closed = False
        self._threads = ThreadPoolExecutor(AT_ONCE, "adamd")
        self._watchers = ThreadPoolExecutor(WATCHES, "adamd-watch")

    def close(self) -> None:
        """Let the threads end when their calls do."""
        self._closed = True
        self._threads.shutdown(wait=False)
        self._watchers.shutdown(wait=False)

    async def run(self, logic: Logic[T], waiting: Callable[[AdamdError], None] | None = None) -> T:
        """Drive a logic to its end. ``waiting`` is told of each failure that another attempt follows."""
        outcome: Any = None
        try:
            while True:
                wanted = logic.throw(outcome) if isinstance(outcome, AdamdError) else logic.send(outcome)
                try:
                    outcome = await (self._work(wanted) if isinstance(wanted, Work) else self._call(wanted, waiting))
                except AdamdError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            logic.close()

    async def _call(self, operation: Operation, waiting: Callable[[AdamdError], None] | None = None) -> Any:
        """Drive one operation to its result, sleeping and sending as the flow asks."""
        flow = retry.call(operation, self._timeout, time.monotonic, random.random, known=self._known)
        outcome: Got | AdamdError | None = None
        try:
            while True:
                event = flow.send(outcome)
                if isinstance(event, Send):
                    outcome = await self._attempt(event)
                elif isinstance(event, Tell):
                    if waiting is None:  # who watches is told otherwise
                        LOG.warning("%s: %s", self._transport.url, event.words)
                    outcome = None
                else:
                    if waiting is not None and isinstance(outcome, AdamdError):
                        waiting(outcome)
                    await asyncio.sleep(event.seconds)
                    outcome = None
        except StopIteration as end:
            return end.value

    async def _attempt(self, event: Send) -> Got | AdamdError:
        stop = Stop()
        outcome: Got | AdamdError
        try:
            threads = self._watchers if isinstance(event.operation, Watch) else self._threads
            send = partial(self._transport.send, event.operation, event.deadline, stop)
            outcome = Got(await self._in_thread(threads, send, stop.set))
        except AdamdError as error:
            outcome = error
        self._known = self._known or retry.replied(outcome)
        return outcome

    async def _work(self, work: Work) -> Any:
        return await self._in_thread(self._threads, work.run, lambda: True)

    async def _in_thread(self, threads: ThreadPoolExecutor, run: Callable[[], T], give_up: Callable[[], bool]) -> T:
        """Run something that blocks; where the caller is cancelled, return only when its memory is its own again.

        Args:
            threads: one of which runs it.
            run: what blocks.
            give_up: makes it end soon, and says whether it has to be waited for.

        """
        if self._closed:
            raise TransportError("this client is closed; connect again", phase="connect", permanent=True)
        job = threads.submit(run)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.done() and give_up():
                await _ended(job)
            raise


async def _ended(job: Future[Any]) -> None:
    """Wait until a thread comes back, however often the waiting is cancelled: it has been told to be quick."""
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
    while not over.is_set():
        with suppress(asyncio.CancelledError):
            await over.wait()
