"""Counts the writes under way, so that a snapshot lets bodies go first."""

from __future__ import annotations

import threading
from concurrent.futures import Future


class Writing:
    """Counts the parts of bodies that are on their way to the disk."""

    def __init__(self) -> None:
        self._count = 0
        self._none = threading.Condition()

    def add(self) -> None:
        """Note one more."""
        with self._none:
            self._count += 1

    def done(self, _: Future[None]) -> None:
        """Note that one has ended."""
        with self._none:
            self._count -= 1
            if not self._count:
                self._none.notify_all()

    def wait_for_none(self, seconds: float) -> None:
        """Wait until there is none, at most so long."""
        with self._none:
            self._none.wait_for(lambda: not self._count, seconds)
