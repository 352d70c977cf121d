"""Steps that a script sends ahead of itself: one after the other, in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Ahead:
    """The turns of one session: what was queued first comes first, and everything else after what is queued."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._queueing = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._owner = 0
        self._last: Future[Any] | None = None
        self._thread = 0  # the worker's

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Surround one call of the session."""
        last = self._last
        if last is not None and self._owner == os.getpid() and self._thread != threading.get_ident():
            wait([last])  # in the worker itself, which runs the futures' callbacks, that were for ever
        with self._turn:
            yield

    def queue(self, call: Callable[[], Any]) -> Future[Any]:
        """Make a call in its turn; it is cancelled where the one before it fails."""
        with self._queueing:
            if self._worker is None or self._owner != os.getpid():  # after a fork the thread is the parent's
                self._worker, self._owner, self._last = ThreadPoolExecutor(1, "adamd-step"), os.getpid(), None
            before = None if self._last is None or self._last.done() else self._last
            self._last = self._worker.submit(self._after, before, call)
            return self._last

    def _after(self, before: Future[Any] | None, call: Callable[[], Any]) -> Any:
        self._thread = threading.get_ident()
        if before is not None and not before.cancelled() and before.exception() is not None:
            raise CancelledError("a step before this one failed, so this one was not sent") from before.exception()
        with self._turn:
            return call()
