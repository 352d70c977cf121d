"""InactivityMonitor: one thread ends calls in which no byte moves for too long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from adamd.errors import TransportError
from adamd.transports.silence import Attempt

FOREVER_SECONDS = 1e6  # seconds


class MonitoredCall:
    """A call that blocks. ``moved`` restarts its inactivity."""

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
        """When to end it, or to warn of its silence."""
        return self._time_out if self._attempt.warned else min(self._time_out, self._last + self._attempt.patience)

    @property
    def _time_out(self) -> float:
        return min(self._deadline, self._last + self._inactivity)

    def act(self) -> None:
        """Warn, or end it."""
        remaining = self._time_out - self._clock()
        if remaining > 0 and not self._attempt.warned:
            self._attempt.warn(remaining)
        elif remaining <= 0:
            self.end()

    def moved(self) -> None:
        """Note that bytes came or went."""
        self._last = self._clock()

    def end(self) -> None:
        """End it."""
        self.ended = True
        self._end()


class InactivityMonitor:
    """Watches any number of calls in one thread, which starts with the first.

    Args:
        inactivity: seconds in which something has to move.
        clock: monotonic seconds; deadlines are on it.

    """

    def __init__(self, inactivity: float, clock: Callable[[], float]) -> None:
        self._inactivity = inactivity
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: set[MonitoredCall] = set()
        self._next = 0.0  # when the thread looks again
        self._running = False
        self._closed = False

    @contextmanager
    def watch(self, end: Callable[[], object], deadline: float, attempt: Attempt) -> Iterator[MonitoredCall]:
        """Watch a call that blocks: ``end`` makes it fail, and ``attempt`` warns of its silence.

        Raises:
            TransportError: it was ended; ``extra["phase"]`` is "timeout". This replaces its own error.

        """
        call = MonitoredCall(end, deadline, self._inactivity, self._clock, attempt)
        with self._changed:
            self._calls.add(call)
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, name="adamd-watch", daemon=True).start()
            elif call.due < self._next:
                self._changed.notify()
        try:
            yield call
        except TransportError:
            if not call.ended:
                raise
            words = f"nothing moved for {self._inactivity:g} s, or the whole call's time is over"
            raise TransportError(words, phase="timeout") from None
        finally:
            with self._changed:
                self._calls.discard(call)

    def close(self) -> None:
        """Let the thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _look(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                late = {call for call in self._calls if call.due <= now}
                if not late:
                    if self._closed and not self._calls:
                        self._running = False
                        return
                    self._next = min((call.due for call in self._calls), default=now + FOREVER_SECONDS)
                    self._changed.wait(min(self._next - now, FOREVER_SECONDS))
            for call in late:
                with suppress(Exception):  # its call is over already; the others are still to be ended in time
                    call.act()
                if call.ended:
                    with self._changed:
                        self._calls.discard(call)
