"""Shares out parts of some work to threads; the parts never depend on the threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
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
        """Do parts 0…count-1, each once, in any order. `begin` makes what one thread works with: its own buffers.

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


def _take(begin: Callable[[], Work], parts: Iterator[int]) -> None:
    work: Work | None = None  # who comes too late for a part needs no buffers
    for part in parts:  # all threads take from the one iterator, whose steps the GIL makes atomic
        work = work or begin()
        work(part)
