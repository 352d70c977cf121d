"""Cancellation: ends an attempt from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adamd.errors import TransportError


class Cancellation:
    """Cancels one attempt while a thread is blocked in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.cancelled = False

    @contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Surround the use of the caller's memory; ``end`` makes it fail soon, from any thread.

        Raises:
            TransportError: the attempt was cancelled before.

        """
        with self._lock:
            if self.cancelled:
                raise TransportError("the call was cancelled", phase="cancelled", permanent=True)
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def cancel(self) -> bool:
        """Cancel the attempt; return whether its thread still uses the caller's memory."""
        with self._lock:
            self.cancelled = True
            if self._end is None:
                return False
            self._end()
            return True
