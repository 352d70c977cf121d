"""The gradient's norm, over all tensors present: one number, whatever computed it.

    norm = sqrt(sum_i g_i^2)        each square and each sum rounded once, in float64

A sum of floats depends on its order, so the order is part of the numerics, a tree: blocks of BLOCK elements, in order
of the joined gradient; in each block LANES sums, lane j over the elements j, j + LANES, …, in order; then lanes are
added in halves (j with j + LANES/2, until one is left), and the blocks' sums one after the other. Lanes are what lets a
loop vectorise. A zero changes no sum, so a sparse gradient and the dense one that it stands for have one norm.
"""

import inspect
import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adamd.wire.dtypes import SLICE
from adamd_service.optim.gradients.encoded import Encoded
from adamd_service.optim.numba_cache import Compiled, compile_loop

if TYPE_CHECKING:  # `compile_loop` gives them to the texts
    from numpy import float64

BLOCK: Final = 4096  # as add_squares has it
LANES: Final = 256
EPSILON: Final = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


def gradient_norm(gradient: Encoded, dtype: np.dtype[Any]) -> float:
    """The Euclidean norm of the (unscaled) gradient; infinite where the squares' sum is beyond float64.

    gradient: complete and checked. dtype: the session's, into which it widens exactly. One pass, slice by slice,
    without the GIL.
    """
    into = np.empty(0 if gradient.exact else min(SLICE, gradient.size), dtype)
    lanes = np.empty(LANES, np.float64)
    total = 0.0
    for start in range(0, gradient.size, SLICE):  # a multiple of BLOCK
        total = squares_loop(dtype)(gradient.part(start, min(start + SLICE, gradient.size), into), lanes, total)
    return math.sqrt(total)


def clip_factor(norm: float, most: float) -> float:
    """What a gradient of this norm is multiplied by, so that it has at most norm `most`.

    min(1, most / (norm + 1e-6)),     as torch.nn.utils.clip_grad_norm_ has it
    """
    return min(1.0, most / (norm + EPSILON))


def add_squares(values, lanes, total):  # type: ignore[no-untyped-def]  # a text for Numba, which infers its types
    """Add the squares of `values`, block by block, to `total`; `lanes` is room for a block's sums, float64."""
    for start in range(0, values.size, 4096):
        block = values[start : start + 4096]
        for j in range(lanes.size):
            lanes[j] = 0.0
        for i in range(0, block.size, lanes.size):
            row = block[i : i + lanes.size]
            for j in range(row.size):
                x = float64(row[j])
                lanes[j] = lanes[j] + x * x
        half = lanes.size // 2
        while half > 0:
            for j in range(half):
                lanes[j] = lanes[j] + lanes[j + half]
            half = half // 2
        total = total + lanes[0]
    return total


@cache
def squares_loop(dtype: np.dtype[Any]) -> Compiled:
    """`add_squares`, compiled for arrays of this dtype."""
    import numba

    values = numba.types.Array(numba.from_dtype(dtype), 1, "C", readonly=True)
    lanes = numba.types.Array(numba.float64, 1, "C")
    return compile_loop(inspect.getsource(add_squares), "add_squares", (values, lanes, numba.float64))


def compile_norm() -> None:
    """Compile gradient_norm for both session dtypes."""
    for dtype in ("float32", "float64"):
        squares_loop(np.dtype(dtype))
