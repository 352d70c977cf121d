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

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *args)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``, and let it run to its end even if the caller is cancelled."""
        return await asyncio.shield(self.spawn(work))

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


def _observed(task: asyncio.Task[Any]) -> None:
    """Look at the outcome, so that asyncio does not complain where the caller went away."""
    if not task.cancelled():
        task.exception()
