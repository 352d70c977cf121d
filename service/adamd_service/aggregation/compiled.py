"""The reductions as loops that Numba compiles when one is first needed; they run without the GIL.

See `kernels.Kernels` for what each function promises.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation.kernels import Doubles
from adamd_service.optim.gradients.norm import LANES, squares_loop
from adamd_service.optim.numba_cache import Compiled, compile_loop

if TYPE_CHECKING:  # `compile_loop` gives them to the texts
    from numpy import float64


def add_squares(values: Floats, total: float) -> float:
    """See `Kernels`."""
    return float(squares_loop(values.dtype)(values, np.empty(LANES), total))


def add_scaled(values: Floats, factor: float, total: Doubles) -> None:
    """See `Kernels`."""
    _loop("add_scaled_text", values.dtype)(values, factor, total)


# Texts for Numba, which infers their types.


def add_scaled_text(values, factor, total):  # type: ignore[no-untyped-def]  # a text for Numba
    """Add the products to `total`."""
    for i in range(values.size):
        total[i] = total[i] + factor * float64(values[i])


@cache
def _loop(name: str, dtype: np.dtype[Any]) -> Compiled:
    import numba

    values = numba.types.Array(numba.from_dtype(dtype), 1, "C", readonly=True)
    signatures: dict[str, tuple[Any, ...]] = {
        "add_scaled_text": (values, numba.float64, numba.float64[::1]),
    }
    return compile_loop(inspect.getsource(_TEXTS[name]), name, signatures[name])


_TEXTS: Final[dict[str, Callable[..., Any]]] = {"add_scaled_text": add_scaled_text}
