"""Shares out parts of some work to threads; the parts never depend on the threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from adamd_service.optim.kernels.threaded import share

Work: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Lanes:
    """How many threads may work at once, the caller's among them. threads: None for the caller's alone."""

    threads: Executor | None = None
    most: int = 1

    def each(self, count: int, begin: Callable[[], Work]) -> None:
        """Do parts 0…count-1, each once, begun in order. `begin` makes what one thread works with: its own buffers.

        Raises what a part raises, once nobody works any more.
        """
        parts = iter(range(count))

        def lane() -> bool:
            _take(begin, parts)
            return False  # `share` asks whether an update diverged; a sum never says so

        if self.threads is None or self.most < 2 or count < 2:
            lane()
        else:
            share(lane, self.threads, min(self.most, count))


class Turns:
    """Lets parts 0, 1, … use each of some things in that order, though threads work at several parts at once.

    Every part uses every thing, and all of them in one order. So the earliest part waits for nobody, and the next ones
    follow it from thing to thing. Whoever has to wait lets the one ahead get away, or both would wait all the time.
    """

    def __init__(self, things: int, threads: int) -> None:
        self._next = [0] * things  # the part whose turn it is
        self._apart = things // (2 * threads)
        self._moved = threading.Condition()
        self._error: BaseException | None = None

    @contextmanager
    def part(self) -> Iterator[None]:
        """Work at a part. What it raises is raised by all who wait: the things that it left out would never be free."""
        try:
            yield
        except BaseException as error:
            with self._moved:
                self._error = self._error or error
                self._moved.notify_all()
            raise

    def wait(self, thing: int, part: int) -> None:
        """Wait until the parts before have used a thing."""
        if self._next[thing] == part:
            return
        ahead = min(thing + self._apart, len(self._next) - 1)
        with self._moved:
            self._moved.wait_for(lambda: self._next[ahead] == part or self._error is not None)
        if self._error is not None:
            raise self._error

    def done(self, thing: int, part: int) -> None:
        """Leave a thing to the next part."""
        with self._moved:
            self._next[thing] = part + 1
            self._moved.notify_all()


def _take(begin: Callable[[], Work], parts: Iterator[int]) -> None:
    work: Work | None = None  # who comes too late for a part needs no buffers
    for part in parts:  # all threads take from the one iterator, whose steps the GIL makes atomic
        work = work or begin()
        work(part)
