"""Queues a session's steps, and runs them one after the other in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Queued(Future[Any]):
    """A future of one call, which knows whether its owner has seen how it failed.

    Futures that are cancelled because it failed share its ``failure_seen``: to look at one is to know of all.
    """

    def __init__(self, predecessor: Queued | None) -> None:
        super().__init__()
        self.predecessor = predecessor
        self.failure_seen = threading.Event()

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
            self.failure_seen.set()

    @property
    def failure(self) -> BaseException | None:
        """How it failed, once it is done. Reading this does not count as having seen the failure."""
        return None if self.cancelled() else super().exception()

    @property
    def failure_known(self) -> bool:
        """Say whether it failed, or fails because one before it did, and that was seen."""
        queued: Queued | None = self
        while queued is not None:
            if queued.done() and queued.failure is not None and queued.failure_seen.is_set():
                return True
            queued = queued.predecessor
        return False


class Turns:
    """Orders the calls of one session: queued calls in their order, and any other call after them."""

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
            wait([last])  # not in the worker, which also runs the futures' callbacks: it would wait for itself for ever
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
            predecessor = None if self._last is None or self._last.failure_known else self._last
            queued = self._last = Queued(predecessor)
            self._worker.submit(self._run, queued, call)
            return queued

    def _run(self, queued: Queued, call: Callable[[], Any]) -> None:
        self._thread = threading.get_ident()
        predecessor = queued.predecessor
        if queued.set_running_or_notify_cancel():
            try:
                queued.set_result(self._outcome(queued, predecessor, call))
            except BaseException as error:
                queued.set_exception(error)
        queued.predecessor = None  # or every future would keep all before it

    def _outcome(self, queued: Queued, predecessor: Queued | None, call: Callable[[], Any]) -> Any:
        if predecessor is not None and predecessor.failure is not None:
            queued.failure_seen = predecessor.failure_seen
            raise CancelledError("a step before this one failed, so this one was not sent") from predecessor.failure
        with self._turn:
            return call()
