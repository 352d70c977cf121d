"""Ends what blocks without a limit of its own: one thread looks whether anything moved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from adamd.errors import TransportError
from adamd.transports.silence import Attempt

FOREVER = 1e6  # seconds


class Watched:
    """Something that blocks. ``moved`` counts bytes on: the inactivity begins again."""

    def __init__(
        self,
        end: Callable[[], object],
        deadline: float,
        inactivity: float,
        clock: Callable[[], float],
        attempt: Attempt,
    ) -> None:
        self._end = end
        self._attempt = attempt
        self._deadline = deadline
        self._inactivity = inactivity
        self._clock = clock
        self._last = clock()
        self.ended = False

    @property
    def due(self) -> float:
        """When it is to be ended, or its silence told."""
        return self._given_up if self._attempt.told else min(self._given_up, self._last + self._attempt.patience)

    @property
    def _given_up(self) -> float:
        return min(self._deadline, self._last + self._inactivity)

    def act(self) -> None:
        """Do what is due."""
        left = self._given_up - self._clock()
        if left > 0 and not self._attempt.told:
            self._attempt.tell(left)
        elif left <= 0:
            self.end()

    def moved(self) -> None:
        """Say that something came or went."""
        self._last = self._clock()

    def end(self) -> None:
        """End it."""
        self.ended = True
        self._end()


class Watch:
    """Watches any number of them in one thread, which starts with the first.

    Args:
        inactivity: seconds in which something has to move.
        clock: monotonic seconds; deadlines are on it.

    """

    def __init__(self, inactivity: float, clock: Callable[[], float]) -> None:
        self._inactivity = inactivity
        self._clock = clock
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._next = 0.0  # when the thread looks again
        self._running = False
        self._closed = False

    @contextmanager
    def over(self, end: Callable[[], object], deadline: float, attempt: Attempt) -> Iterator[Watched]:
        """Surround what blocks; ``end`` makes it fail, and ``attempt`` is told of its silence.

        Raises:
            TransportError: it was ended, with ``extra["phase"]`` "timeout", in the place of its own error.

        """
        one = Watched(end, deadline, self._inactivity, self._clock, attempt)
        with self._changed:
            self._watched.add(one)
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, name="adamd-watch", daemon=True).start()
            elif one.due < self._next:
                self._changed.notify()
        try:
            yield one
        except TransportError:
            if not one.ended:
                raise
            words = f"nothing moved for {self._inactivity:g} s, or the whole call's time is over"
            raise TransportError(words, phase="timeout") from None
        finally:
            with self._changed:
                self._watched.discard(one)

    def close(self) -> None:
        """Let the thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _look(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                late = {one for one in self._watched if one.due <= now}
                if not late:
                    if self._closed and not self._watched:
                        self._running = False
                        return
                    self._next = min((one.due for one in self._watched), default=now + FOREVER)
                    self._changed.wait(min(self._next - now, FOREVER))
            for one in late:
                with suppress(Exception):  # its call is over already; the others are still to be ended in time
                    one.act()
                if one.ended:
                    with self._changed:
                        self._watched.discard(one)
