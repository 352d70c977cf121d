"""A way to end an attempt from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adamd.errors import TransportError


class Stop:
    """One attempt, which its caller may give up while a thread is blocked in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.given_up = False

    @contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Surround the use of the caller's memory; ``end`` makes it fail soon, from any thread.

        Raises:
            TransportError: the attempt was given up before.

        """
        with self._lock:
            if self.given_up:
                raise TransportError("the call was cancelled", phase="cancelled", permanent=True)
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def set(self) -> bool:
        """Give the attempt up; return whether the caller's memory is in use until the thread comes back."""
        with self._lock:
            self.given_up = True
            if self._end is None:
                return False
            self._end()
            return True
