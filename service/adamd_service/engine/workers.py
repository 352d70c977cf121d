"""Threads for blocking work, and tasks that outlive their caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """A bounded thread pool, and the tasks under way. Used on the event loop only."""

    def __init__(self, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="adamd")
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, work: Callable[..., T], *args: Any, after: Callable[[], object] | None = None) -> T:
        """Run blocking work in a thread; see `to_its_end`. ``after`` is called on the loop as soon as it is over."""
        try:
            begun = asyncio.get_running_loop().run_in_executor(self.threads, work, *args)
        except BaseException:
            if after is not None:
                after()
            raise
        self._tasks.add(begun)
        begun.add_done_callback(self._tasks.discard)
        if after is not None:
            begun.add_done_callback(lambda _: after())
        return await to_its_end(begun)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Begin ``work``, and wait for it; see `to_its_end`."""
        return await to_its_end(self.spawn(work))

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work``; `close` waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_observed)
        return task

    async def close(self) -> None:
        """Wait for everything that has begun."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.threads.shutdown(wait=True)


async def to_its_end(work: asyncio.Future[T]) -> T:
    """Wait for what cannot be cut off. A caller that is cancelled is so only when it is over.

    Until then the work uses memory that the caller holds of a budget, and takes one of the places for calls: one that
    left at once would give both back too early, and the next would be let in beside it, without end.
    """
    try:
        return await asyncio.shield(work)
    finally:
        await settled(work)


async def settled(work: asyncio.Future[Any]) -> None:
    """Wait until work is over, however often the waiting is cancelled; its outcome is looked at."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue
    _observed(work)


def _observed(task: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not complain where the caller went away."""
    if not task.cancelled():
        task.exception()
