"""Runs the logic for asyncio: the blocking transport in threads, with cancellation.

A thread that sends or receives holds no interpreter lock, and fills the caller's memory straight from the socket;
asyncio's own streams copy every piece, and gRPC's asyncio channel is slower than its blocking one (ARCHITECTURE.md).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from adamd.errors import AdamdError, TransportError
from adamd.log import LOG
from adamd.sansio import retry
from adamd.sansio.operations import WAITING, Operation
from adamd.sansio.retry import Got, Send, Tell, Timeout
from adamd.sansio.tracking import Logic, Work
from adamd.transports.cancellation import Cancellation
from adamd.transports.select import Transport

T = TypeVar("T")
AT_ONCE = 64  # calls of one client under way; pauses between attempts take no thread
WATCHES = 256  # beside them: a watch over gRPC, or a wait for a task, has its thread for seconds; no step waits for it


class AsyncShell:
    """The asyncio shell. Its calls may run side by side."""

    def __init__(self, transport: Transport, timeout: Timeout) -> None:
        self._transport = transport
        self._timeout = timeout
        self._answered = False  # the server has answered once
        self._closed = False
        self._threads = ThreadPoolExecutor(AT_ONCE, "adamd")
        self._watchers = ThreadPoolExecutor(WATCHES, "adamd-watch")

    def close(self) -> None:
        """Let the threads end when their calls do."""
        self._closed = True
        self._threads.shutdown(wait=False)
        self._watchers.shutdown(wait=False)

    async def run(self, logic: Logic[T], on_retry: Callable[[AdamdError], None] | None = None) -> T:
        """Drive a logic to its end. ``on_retry`` gets each failure that another attempt follows."""
        outcome: Any = None
        try:
            while True:
                effect = logic.throw(outcome) if isinstance(outcome, AdamdError) else logic.send(outcome)
                try:
                    outcome = await (self._work(effect) if isinstance(effect, Work) else self._call(effect, on_retry))
                except AdamdError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            logic.close()

    async def _call(self, operation: Operation, on_retry: Callable[[AdamdError], None] | None = None) -> Any:
        """Drive one operation to its result, sleeping and sending as the flow asks."""
        flow = retry.call(operation, self._timeout, time.monotonic, random.random, answered=self._answered)
        outcome: Got | AdamdError | None = None
        try:
            while True:
                event = flow.send(outcome)
                if isinstance(event, Send):
                    outcome = await self._attempt(event)
                elif isinstance(event, Tell):
                    if on_retry is None:  # a watch warns by itself
                        LOG.warning("%s: %s", self._transport.url, event.words)
                    outcome = None
                else:
                    if on_retry is not None and isinstance(outcome, AdamdError):
                        on_retry(outcome)
                    await asyncio.sleep(event.seconds)
                    outcome = None
        except StopIteration as end:
            return end.value

    async def _attempt(self, event: Send) -> Got | AdamdError:
        stop = Cancellation()
        outcome: Got | AdamdError
        try:
            threads = self._watchers if isinstance(event.operation, WAITING) else self._threads
            send = partial(self._transport.send, event.operation, event.deadline, stop)
            outcome = Got(await self._in_thread(threads, send, stop.cancel))
        except AdamdError as error:
            outcome = error
        self._answered = self._answered or retry.replied(outcome)
        return outcome

    async def _work(self, work: Work) -> Any:
        return await self._in_thread(self._threads, work.run, lambda: True)

    async def _in_thread(self, threads: ThreadPoolExecutor, run: Callable[[], T], give_up: Callable[[], bool]) -> T:
        """Run something that blocks. On cancellation, return only when nothing uses the caller's memory any more.

        Args:
            threads: one of which runs it.
            run: what blocks.
            give_up: makes it end soon, and returns whether to wait for its end.

        """
        if self._closed:
            raise TransportError("this client is closed; connect again", phase="connect", permanent=True)
        job = threads.submit(run)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.done() and give_up():
                await _wait_for(job)
            raise


async def _wait_for(job: Future[Any]) -> None:
    """Wait until a job that was told to end has ended, however often the waiting is cancelled."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    while not done.is_set():
        with suppress(asyncio.CancelledError):
            await done.wait()
