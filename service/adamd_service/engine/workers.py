"""Thread pools for blocking work, and tasks that outlive their caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from adamd.errors import AdamdError

T = TypeVar("T")
LOOKS = 2  # threads for questions about the store's health, which no other call may keep waiting
log = structlog.get_logger()


class Workers:
    """Bounded thread pools, and the tasks under way. Used on the event loop only.

    Work that waits for the store has threads of its own: a store that hangs blocks all of them, but not those that
    compute.
    """

    def __init__(self, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="adamd")
        self.waiting = ThreadPoolExecutor(threads, thread_name_prefix="adamd-store")
        self._looking = ThreadPoolExecutor(LOOKS, thread_name_prefix="adamd-health")
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, work: Callable[..., T], *args: Any, after: Callable[[], object] | None = None) -> T:
        """Run blocking work that does not wait for the store; see `to_its_end`.

        ``after`` is called on the loop as soon as it is over.
        """
        return await self._run(self.threads, work, args, after)

    async def ask(self, work: Callable[..., T], *args: Any, after: Callable[[], object] | None = None) -> T:
        """Run work that may wait for the store; otherwise as `run`."""
        return await self._run(self.waiting, work, args, after)

    async def look(self, work: Callable[..., T], *args: Any) -> T:
        """Run a question about the store's health; otherwise as `run`."""
        return await self._run(self._looking, work, args, None)

    async def _run(
        self, where: Executor, work: Callable[..., T], args: tuple[Any, ...], after: Callable[[], object] | None
    ) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(where, work, *args)
        except BaseException:
            if after is not None:
                after()
            raise
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)
        if after is not None:
            future.add_done_callback(lambda _: after())
        return await to_its_end(future)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a task to its end even if the caller is cancelled; see `to_its_end`."""
        return await to_its_end(self._task(work))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a task in the background. Its failure is logged."""
        self._task(work).add_done_callback(_log_failure)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_observed)
        return task

    async def close(self) -> None:
        """Wait for everything that has begun."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        for pool in (self.threads, self.waiting, self._looking):
            pool.shutdown(wait=True)


async def to_its_end(work: asyncio.Future[T]) -> T:
    """Wait for work that cannot be interrupted; a cancellation of the caller takes effect only when it is over.

    Until then the work uses memory of the caller's budget and one of the places for calls. A caller that left at once
    would give both back too early, and abandoned work could pile up without bound.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await settled(work)
        if not work.cancelled() and not isinstance(work.exception(), AdamdError):
            _log_failure(work)  # its caller is gone
        raise
    finally:
        await settled(work)


async def settled(work: asyncio.Future[Any]) -> None:
    """Wait until work is over, however often the waiting is cancelled, and retrieve its outcome."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue
    _observed(work)


def _observed(task: asyncio.Future[Any]) -> None:
    """Retrieve the outcome, so that asyncio does not complain where the caller went away."""
    if not task.cancelled():
        task.exception()


def _log_failure(task: asyncio.Future[Any]) -> None:
    """Log the failure of a task that nobody waits for."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, AdamdError):
        log.warning("work in the background was given up", reason=error.detail)
    elif error is not None:
        log.error("work in the background failed", exc_info=error)
