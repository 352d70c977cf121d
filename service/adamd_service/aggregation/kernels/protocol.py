"""What the loops over contributions are. `reference` (NumPy) and `compiled` (Numba) give the same bits.

Sums are made in float64 whatever the session's dtype is, and rounded to it once, at the end: a sum of many float32
products would lose bits with every client, and reading the contributions costs more than adding them.
"""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import Floats

Doubles: TypeAlias = NDArray[np.float64]
Network: TypeAlias = NDArray[np.int64]  # (comparisons, 2)


class Kernels(Protocol):
    """Loops over slices of contributions, which are contiguous, one-dimensional and of the session's dtype.

    Every product, difference and sum is rounded by itself. Arrays of one call do not overlap.
    """

    def add_squares(self, values: Floats, total: float) -> float:
        """`total` and the squares of `values`, in the order of `optim.gradients.norm`; slices begin at its blocks."""

    def add_distance(self, values: Floats, scale: float, center: Doubles, total: float) -> float:
        """`total` and the squares of scale × values - center, in the order of `add_squares`."""

    def add_scaled(self, values: Floats, factor: float, total: Doubles) -> None:
        """Add factor × values to `total`."""

    def add_scaled_and_squares(self, values: Floats, factor: float, total: Doubles, squares: float) -> float:
        """`add_scaled`, and what `add_squares` makes of `squares`, while the values are in the cache."""

    def write_scaled(self, values: Floats, factor: float, out: Floats) -> None:
        """Write factor × values into `out`, of the values' dtype; a zero has no sign."""

    def sort_columns(self, rows: Floats, network: Network) -> None:
        """Sort each column of `rows`, (contributions, elements), contiguous, no zero of which has a sign, in place.

        network: the comparisons, in order; each leaves the smaller value in the first row of its pair and the larger
        in the second. Only those rows that they bring into place need to be right.
        """
