"""Admission by bytes in flight: what cannot be held is refused before it is read (laws 6 and 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adamd.errors import Busy, TooLarge


class Budget:
    """A bound on bytes held at once. Used on the event loop only, so it needs no lock."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.used = 0
        self._what = what

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Hold ``nbytes`` for the duration.

        Raises:
            TooLarge: more than there is altogether.
            Busy: more than there is now.

        """
        self.take(nbytes)
        try:
            yield
        finally:
            self.give(nbytes)

    def take(self, nbytes: int) -> None:
        """Hold ``nbytes`` until `give`; raises as `hold` does."""
        if nbytes > self.limit:
            raise TooLarge(f"{nbytes} bytes of {self._what}; this server holds at most {self.limit}")
        if self.used + nbytes > self.limit:
            raise Busy(f"{self.used} of {self.limit} bytes of {self._what} are taken; try again", retry_after=0.5)
        self.used += nbytes

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""
        self.used -= nbytes
