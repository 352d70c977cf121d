"""The loops as texts that Numba compiles when one is first needed; they run without the GIL.

See `protocol.Kernels` for what each function promises.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation.kernels.protocol import Doubles, Network
from adamd_service.optim.gradients.norm import LANES, squares_loop
from adamd_service.optim.numba_cache import Compiled, compile_loop

if TYPE_CHECKING:  # `compile_loop` gives them to the texts
    from numpy import float64


def add_squares(values: Floats, total: float) -> float:
    """See `Kernels`."""
    return float(squares_loop(values.dtype)(values, np.empty(LANES), total))


def add_distance(values: Floats, scale: float, center: Doubles, total: float) -> float:
    """See `Kernels`."""
    return float(_loop("distance_text", values.dtype)(values, scale, center, np.empty(LANES), total))


def add_scaled(values: Floats, factor: float, total: Doubles) -> None:
    """See `Kernels`."""
    _loop("add_scaled_text", values.dtype)(values, factor, total)


def add_scaled_and_squares(values: Floats, factor: float, total: Doubles, squares: float) -> float:
    """See `Kernels`."""
    return float(_loop("both_text", values.dtype)(values, factor, total, np.empty(LANES), squares))


def write_scaled(values: Floats, factor: float, out: Floats) -> None:
    """See `Kernels`."""
    _loop("write_scaled_text", values.dtype)(values, factor, out, out.dtype.type(0))


def sort_columns(rows: Floats, network: Network) -> None:
    """See `Kernels`."""
    _loop("sort_columns_text", rows.dtype)(rows, network, rows.dtype.type(0))


def compile_aggregation() -> None:
    """Compile all of them for both session dtypes."""
    for dtype in ("float32", "float64"):
        squares_loop(np.dtype(dtype))
        for name in _TEXTS:
            _loop(name, np.dtype(dtype))


# Texts for Numba, which infers their types.


def distance_text(values, scale, center, lanes, total):  # type: ignore[no-untyped-def]  # a text for Numba
    """Add the squares of the differences, block by block, as `norm.add_squares` adds squares."""
    for start in range(0, values.size, 4096):
        block = values[start : start + 4096]
        middle = center[start : start + 4096]
        for j in range(lanes.size):
            lanes[j] = 0.0
        for i in range(0, block.size, lanes.size):
            row = block[i : i + lanes.size]
            here = middle[i : i + lanes.size]
            for j in range(row.size):
                x = scale * float64(row[j]) - here[j]
                lanes[j] = lanes[j] + x * x
        half = lanes.size // 2
        while half > 0:
            for j in range(half):
                lanes[j] = lanes[j] + lanes[j + half]
            half = half // 2
        total = total + lanes[0]
    return total


def add_scaled_text(values, factor, total):  # type: ignore[no-untyped-def]  # a text for Numba
    """Add the products to `total`."""
    for i in range(values.size):
        total[i] = total[i] + factor * float64(values[i])


def both_text(values, factor, total, lanes, squares):  # type: ignore[no-untyped-def]  # a text for Numba
    """Add the products to `total`, and the squares, block by block, as `norm.add_squares` adds them."""
    for start in range(0, values.size, 4096):
        block = values[start : start + 4096]
        sums = total[start : start + 4096]
        for j in range(lanes.size):
            lanes[j] = 0.0
        for i in range(0, block.size, lanes.size):
            row = block[i : i + lanes.size]
            here = sums[i : i + lanes.size]
            for j in range(row.size):
                x = float64(row[j])
                lanes[j] = lanes[j] + x * x
            for j in range(row.size):
                here[j] = here[j] + factor * float64(row[j])
        half = lanes.size // 2
        while half > 0:
            for j in range(half):
                lanes[j] = lanes[j] + lanes[j + half]
            half = half // 2
        squares = squares + lanes[0]
    return squares


def write_scaled_text(values, factor, out, zero):  # type: ignore[no-untyped-def]  # a text for Numba
    """Write the products, rounded to the dtype of `out`; adding `zero` after that takes the sign of a zero."""
    for i in range(values.size):
        out[i] = factor * float64(values[i])
    for i in range(values.size):
        out[i] = out[i] + zero


def sort_columns_text(rows, network, zero):  # type: ignore[no-untyped-def]  # a text for Numba
    """Exchange whole rows where they are not in order; without a branch, so that it vectorises.

    Adding `zero` changes nothing, as no zero has a sign. Without it LLVM sees that the smaller value often lies there
    already, and stores under a mask, which takes five times as long.
    """
    for k in range(network.shape[0]):
        low = rows[network[k, 0]]
        high = rows[network[k, 1]]
        for i in range(low.size):
            a = low[i]
            b = high[i]
            low[i] = min(a, b) + zero
            high[i] = max(a, b)


_TEXTS: Final[dict[str, Callable[..., Any]]] = {
    "add_scaled_text": add_scaled_text,
    "both_text": both_text,
    "distance_text": distance_text,
    "sort_columns_text": sort_columns_text,
    "write_scaled_text": write_scaled_text,
}


@cache
def _loop(name: str, dtype: np.dtype[Any]) -> Compiled:
    import numba

    scalar, double = numba.from_dtype(dtype), numba.float64
    values, out = numba.types.Array(scalar, 1, "C", readonly=True), scalar[::1]
    network = numba.types.Array(numba.int64, 2, "C", readonly=True)
    signatures: dict[str, tuple[Any, ...]] = {
        "add_scaled_text": (values, double, double[::1]),
        "both_text": (values, double, double[::1], double[::1], double),
        "distance_text": (values, double, double[::1], double[::1], double),
        "sort_columns_text": (scalar[:, ::1], network, scalar),
        "write_scaled_text": (values, double, out, scalar),
    }
    return compile_loop(inspect.getsource(_TEXTS[name]), name, signatures[name])
