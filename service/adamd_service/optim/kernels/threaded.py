"""A kernel that updates fixed slices of a large block on a few threads.

One core does not fill the memory's bandwidth.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass

from adamd_service.optim.kernels.protocol import Block, Kernel, slices_of
from adamd_service.optim.scalars import Scalars

SLICE = 1 << 18  # elements: a fraction of a millisecond, so that a thread which begins late or is held up costs no more
# Elements; below it waking a thread costs more than it brings. One after the other, a million took 0.85 ms on one and
# 0.95 on two, two million 1.8 and 1.6, four 4.1 and 3.2.
LEAST = 1 << 21


@dataclass(frozen=True, slots=True)
class SlicedKernel:
    """`kernel` on `lanes` threads at once, the caller's among them; see `kernel.Kernel` for the contract.

    Every element is computed by itself, so the bits depend neither on the lanes nor on who takes which slice. least:
    elements from which a block is divided; size: of a slice.
    """

    kernel: Kernel
    threads: Executor
    lanes: int
    least: int = LEAST
    size: int = SLICE

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update the block in place; True where something watched is now NaN or infinite.

        Raises what a lane raises, once all of them have ended: nobody may write into arrays that are dropped.
        """
        if self.lanes < 2 or block.p.size < self.least:
            return self.kernel(block, scalars)
        slices = slices_of(block, self.size)

        def lane() -> bool:
            diverged = False
            for part in slices:  # a generator may not be entered twice at once; an iterator over a tuple may
                diverged |= self.kernel(part, scalars)
            return diverged

        return share(lane, self.threads, self.lanes)


def share(lane: Callable[[], bool], threads: Executor, most: int) -> bool:
    """Run `lane` at once on the caller's thread and on up to `most` - 1 of `threads`; True where one returned True.

    Each takes from something that all of them take from. Raises what a lane raises, once all of them have ended.
    """
    lanes, handed = _Lanes(lane), list[Future[None]]()
    # No thread to be had, or no more at the end of the process: then the caller's has all of it. An executor that
    # cannot start one has queued the lane all the same, so who has begun is not asked of futures.
    with suppress(RuntimeError):
        handed += (threads.submit(lanes) for _ in range(most - 1))
    try:
        found = lane()
    finally:
        for future in handed:
            future.cancel()
        lanes.close()
    return lanes.outcome() or found


class _Lanes:
    """A lane for whoever comes while there is something to do, and who is at work in it."""

    def __init__(self, lane: Callable[[], bool]) -> None:
        self._lane = lane
        self._turn = threading.Condition()
        self._working = 0
        self._closed = False
        self._diverged = False
        self._error: BaseException | None = None

    def __call__(self) -> None:
        with self._turn:
            if self._closed:
                return
            self._working += 1
        diverged, broken = False, None
        try:
            diverged = self._lane()
        except BaseException as error:  # whoever closes raises it
            broken = error
        with self._turn:
            self._working -= 1
            self._diverged |= diverged
            self._error = self._error or broken
            self._turn.notify_all()

    def close(self) -> None:
        """Let nobody begin any more, and wait for those who have; threads that others keep busy are not waited for."""
        with self._turn:
            self._closed = True
            self._turn.wait_for(lambda: not self._working)

    def outcome(self) -> bool:
        """Say whether one saw something non-finite; raises what one raised."""
        if self._error is not None:
            raise self._error
        return self._diverged
