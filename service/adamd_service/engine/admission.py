"""Admission by bytes in flight: what cannot be held is refused before it is read (laws 6 and 7)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from numpy.typing import NDArray

from adamd.errors import Busy, TooLarge
from adamd.wire.buffers import when_gone


class Budget:
    """A bound on bytes held at once."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.used = 0
        self._what = what
        # An answer's share comes back from whichever thread lets go of it last, the garbage collector's turn included.
        self._lock = threading.RLock()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[Hold]:
        """Hold ``nbytes`` for the duration; `Hold.leave` lets an answer keep its share longer.

        Raises:
            TooLarge: more than there is altogether.
            Busy: more than there is now.

        """
        self.take(nbytes)
        held = Hold(self, nbytes)
        try:
            yield held
        finally:
            self.give(held.nbytes)

    def take(self, nbytes: int) -> None:
        """Hold ``nbytes`` until `give`; raises as `hold` does."""
        if nbytes > self.limit:
            raise TooLarge(f"{nbytes} bytes of {self._what}; this server holds at most {self.limit}")
        with self._lock:
            used = self.used
            if used + nbytes <= self.limit:
                self.used = used + nbytes
                return
        raise Busy(f"{used} of {self.limit} bytes of {self._what} are taken; try again", retry_after=0.5)

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= nbytes


class Hold:
    """What one call holds of a budget."""

    def __init__(self, budget: Budget, nbytes: int) -> None:
        self.nbytes = nbytes
        self._budget = budget

    def leave(self, array: NDArray[Any] | None) -> None:
        """Let an answer's array keep its share until nobody can see it any more: a slow reader holds memory too."""
        if array is not None and 0 < array.nbytes <= self.nbytes:
            self.nbytes -= array.nbytes
            when_gone(array, partial(self._budget.give, array.nbytes))
