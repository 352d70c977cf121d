"""The loops in plain NumPy: slow, easy to read, and what the compiled ones are compared with.

See `protocol.Kernels` for what each function promises.
"""

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation.kernels.protocol import Doubles, Network
from adamd_service.optim.gradients.norm import BLOCK, LANES


def add_squares(values: Floats, total: float) -> float:
    """See `Kernels`."""
    for start in range(0, values.size, BLOCK):
        block = np.zeros(BLOCK)  # a zero changes no sum
        part = values[start : start + BLOCK]
        block[: part.size] = part
        sums = np.zeros(LANES)
        for row in (block * block).reshape(-1, LANES):
            sums += row
        while sums.size > 1:
            sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
        total += float(sums[0])
    return total


def add_distance(values: Floats, scale: float, center: Doubles, total: float) -> float:
    """See `Kernels`."""
    return add_squares(scale * values.astype(np.float64) - center, total)


def add_scaled(values: Floats, factor: float, total: Doubles) -> None:
    """See `Kernels`."""
    total += factor * values.astype(np.float64)


def add_scaled_and_squares(values: Floats, factor: float, total: Doubles, squares: float) -> float:
    """See `Kernels`."""
    add_scaled(values, factor, total)
    return add_squares(values, squares)


def write_scaled(values: Floats, factor: float, out: Floats) -> None:
    """See `Kernels`."""
    out[:] = factor * values.astype(np.float64)
    out += 0  # -0 + 0 is 0


def sort_columns(rows: Floats, network: Network) -> None:
    """See `Kernels`."""
    rows.sort(axis=0)
