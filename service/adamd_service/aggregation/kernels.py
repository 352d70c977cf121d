"""What the loops over contributions are. `reference` (NumPy) and `compiled` (Numba) give the same bits.

Sums are made in float64 whatever the session's dtype is, and rounded to it once, at the end: a sum of many float32
products would lose bits with every client, and reading the contributions costs more than adding them.
"""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import Floats

Doubles: TypeAlias = NDArray[np.float64]


class Kernels(Protocol):
    """Loops over slices of contributions, which are contiguous, one-dimensional and of the session's dtype."""

    @staticmethod
    def add_squares(values: Floats, total: float) -> float:
        """`total` and the squares of `values`, in the order of `optim.gradients.norm`; slices begin at its blocks."""

    @staticmethod
    def add_scaled(values: Floats, factor: float, total: Doubles) -> None:
        """Add factor × values to `total`, each product and each sum rounded once, in float64."""
