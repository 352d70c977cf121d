"""What a kernel is: one update of one block of a session's arrays, in place."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from adamd.wire.dtypes import Floats
from adamd_service.optim.scalars import Scalars


class Block(NamedTuple):
    """Equally long, contiguous, one-dimensional slices, all of the session's dtype. None of them overlap.

    arrays: the state arrays that the session has, in the state's order, which is `Rule.arrays`'. out, where given,
    receives the new parameters.
    """

    p: Floats
    g: Floats
    arrays: tuple[Floats, ...]
    out: Floats | None


class Kernel(Protocol):
    """Every implementation gives the same bits (law 4)."""

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update p and the state arrays in place by `scalars.rule`; True where one that the rule watches is now NaN or
        infinite. The scalars are of the block's dtype (`apply` sees to it).
        """


def slices_of(block: Block, size: int) -> Iterator[Block]:
    """Neighbouring parts of a block, to be taken by whoever is free."""
    parts = [slice(start, start + size) for start in range(0, block.p.size, size)]
    return iter(
        tuple(
            Block(
                block.p[part],
                block.g[part],
                tuple(array[part] for array in block.arrays),
                None if block.out is None else block.out[part],
            )
            for part in parts
        )
    )
