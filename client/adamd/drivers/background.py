"""Steps that a script sends ahead of itself: one after the other, in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Queued(Future[Any]):
    """A future of one call, which knows whether its owner has seen how it failed.

    Those that are cancelled because of it share its ``seen``: whoever looks at one of them knows of all.
    """

    def __init__(self, before: Queued | None) -> None:
        super().__init__()
        self.before = before
        self.seen = threading.Event()

    def result(self, timeout: float | None = None) -> Any:
        """Return what `Future.result` does."""
        try:
            return super().result(timeout)
        finally:
            self._looked()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `Future.exception` does."""
        try:
            return super().exception(timeout)
        finally:
            self._looked()

    def _looked(self) -> None:
        if self.done():
            self.seen.set()

    @property
    def failure(self) -> BaseException | None:
        """How it failed, once it is done; looking here is not seeing."""
        return None if self.cancelled() else super().exception()

    @property
    def known(self) -> bool:
        """Say whether it failed, or fails because one before it did, and that was seen."""
        one: Queued | None = self
        while one is not None:
            if one.done() and one.failure is not None and one.seen.is_set():
                return True
            one = one.before
        return False


class Ahead:
    """The turns of one session: what was queued first comes first, and everything else after what is queued."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._queueing = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._owner = 0
        self._last: Queued | None = None
        self._thread = 0  # the worker's

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Surround one call of the session."""
        last = self._last
        if last is not None and self._owner == os.getpid() and self._thread != threading.get_ident():
            wait([last])  # in the worker itself, which runs the futures' callbacks, that were for ever
            with self._queueing:
                if self._last is last:
                    self._last = None  # the script goes on from here, whatever became of what was queued
        with self._turn:
            yield

    def queue(self, call: Callable[[], Any]) -> Future[Any]:
        """Make a call in its turn. It is cancelled where the one before it fails, or has failed and nobody saw it."""
        with self._queueing:
            if self._worker is None or self._owner != os.getpid():  # after a fork the thread is the parent's
                self._worker, self._owner, self._last = ThreadPoolExecutor(1, "adamd-step"), os.getpid(), None
            before = None if self._last is None or self._last.known else self._last
            queued = self._last = Queued(before)
            self._worker.submit(self._make, queued, call)
            return queued

    def _make(self, queued: Queued, call: Callable[[], Any]) -> None:
        self._thread = threading.get_ident()
        before = queued.before
        if queued.set_running_or_notify_cancel():
            try:
                queued.set_result(self._made(queued, before, call))
            except BaseException as error:
                queued.set_exception(error)
        queued.before = None  # or every future would keep all before it

    def _made(self, queued: Queued, before: Queued | None, call: Callable[[], Any]) -> Any:
        if before is not None and before.failure is not None:
            queued.seen = before.seen
            raise CancelledError("a step before this one failed, so this one was not sent") from before.failure
        with self._turn:
            return call()
