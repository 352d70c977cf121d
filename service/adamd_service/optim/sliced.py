"""A kernel over fixed slices of a large block, on a few threads: one core does not fill the memory's bandwidth."""

from concurrent.futures import Executor, wait
from dataclasses import dataclass

from adamd_service.optim.kernel import Block, Kernel, slices_of
from adamd_service.optim.scalars import Scalars

SLICE = 1 << 18  # elements: a fraction of a millisecond, so that a thread which begins late or is held up costs no more
LEAST = 1 << 20  # elements; below it waking a thread costs more than it brings


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

        handed = [self.threads.submit(lane) for _ in range(self.lanes - 1)]
        try:
            diverged = lane()
        finally:
            # Threads that others keep busy are not waited for: there is nothing left to do for them.
            begun = [future for future in handed if not future.cancel()]
            wait(begun)
        return any([diverged, *(future.result() for future in begun)])
