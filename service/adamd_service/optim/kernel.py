"""What a kernel is: one update of one block of a session's arrays, in place."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adamd_service.optim.scalars import Scalars

Floats: TypeAlias = NDArray[np.floating[Any]]


class Block(NamedTuple):
    """Equally long, contiguous, one-dimensional slices, all of the session's dtype. None of them overlap.

    v_max is None without AMSGrad; out, where given, receives the new parameters.
    """

    p: Floats
    g: Floats
    m: Floats
    v: Floats
    v_max: Floats | None
    out: Floats | None


class Kernel(Protocol):
    """Every implementation gives the same bits (law 4)."""

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update p, m, v (and v_max) in place; True where a p or a v is now NaN or infinite. Raises ValueError for
        scalars of another dtype.
        """


def choices(block: Block, scalars: Scalars) -> dict[str, bool]:
    """How the recurrence is specialised for this block."""
    return {"coupled": scalars.wd != 0.0, "amsgrad": block.v_max is not None}
