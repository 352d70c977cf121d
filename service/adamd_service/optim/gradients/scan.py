"""Gradients as they come over the wire, checked by their bits."""

import inspect
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamd_service.optim.gradients.half_precision import widen
from adamd_service.optim.numba_cache import Compiled, compile_loop

STORED_AS: Final = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "float64": "float64"}
WIRE_NAME: Final = {np.dtype(stored): name for name, stored in STORED_AS.items()}  # dtype.name is computed: 6 us
UNSIGNED: Final = {2: "uint16", 4: "uint32", 8: "uint64"}


class Scanned(NamedTuple):
    """What one look at a part of a gradient tells.

    bad: the index of the first NaN, infinity, or value whose square overflows in the session's dtype after widening; -1
    if there is none. largest: the largest magnitude, as the bits of its dtype, where nothing is bad.
    """

    bad: int
    largest: int


def scan_gradient(gradient: NDArray[Any], dtype: str, session_dtype: np.dtype[Any]) -> Scanned:
    """Look at a gradient, or any part of it: one-dimensional, contiguous, as it is stored (bfloat16: uint16).

    One pass, no temporaries, without the GIL; the largest magnitude costs nothing beside the check.
    Raises ValueError where the array is not of `dtype`, or `dtype` does not widen into the session's.
    """
    require_widening(gradient, dtype, session_dtype)
    mask, limit = _bounds(dtype, session_dtype)
    bits = gradient.view(UNSIGNED[gradient.dtype.itemsize])
    return Scanned(*map(int, _scan(bits.dtype)(bits, mask, limit)))


def check_gradient(gradient: NDArray[Any], dtype: str, session_dtype: np.dtype[Any]) -> int:
    """`Scanned.bad` of a gradient; see `scan_gradient`."""
    return scan_gradient(gradient, dtype, session_dtype).bad


def magnitude(bits: int, dtype: str) -> float:
    """The number that these bits are, in a wire's dtype; it has no sign."""
    stored = np.array([bits], UNSIGNED[np.dtype(STORED_AS[dtype]).itemsize])
    wide = np.empty(1, np.float64)
    widen(stored.view(STORED_AS[dtype]), wide)
    return float(wide[0])


def require_widening(gradient: NDArray[Any], dtype: str, session_dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless the array is contiguous, stored as `dtype` is, and each value of it also is one of the
    session's dtype.
    """
    if dtype not in STORED_AS:
        raise ValueError(f"gradient dtype {dtype!r}; wanted one of {', '.join(STORED_AS)}")
    if dtype == "float64" and session_dtype != np.float64:
        raise ValueError(
            f"a float64 gradient in a {session_dtype} session would be rounded; send it as {session_dtype}"
        )
    if gradient.dtype != np.dtype(STORED_AS[dtype]) or gradient.ndim != 1:
        raise ValueError(
            f"a {gradient.ndim}-dimensional {gradient.dtype} array; wanted a flat one of {STORED_AS[dtype]} for {dtype}"
        )
    if not (gradient.flags.c_contiguous and gradient.flags.aligned):
        raise ValueError("a gradient that is not contiguous and aligned")


def wire_dtype(gradient: NDArray[Any]) -> str:
    """The wire's name of an array's dtype: uint16 holds bfloat16."""
    return WIRE_NAME.get(gradient.dtype) or str(gradient.dtype)


def largest_fitting(dtype: str, session_dtype: np.dtype[Any]) -> float:
    """The largest float32 or float64 magnitude that scan_gradient lets through."""
    _, limit = _bounds(dtype, session_dtype)
    return float(np.array([limit]).view(STORED_AS[dtype])[0])


@cache
def _bounds(dtype: str, session_dtype: np.dtype[Any]) -> tuple[np.unsignedinteger[Any], np.unsignedinteger[Any]]:
    """The mask that drops the sign, and the bits of the largest magnitude whose square the session's dtype holds.

    Bits of non-negative floats are ordered as their values are, infinity and NaN above all: one integer comparison
    tells all three faults. The limit is found by bisection with the very operations of the update, so no formula about
    rounding has to be right.
    """
    stored = np.dtype(STORED_AS[dtype])
    unsigned = np.dtype(UNSIGNED[stored.itemsize])
    wide = np.empty(1, session_dtype)

    def fits(bits: int) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            widen(np.array([bits], unsigned).view(stored), wide)
            return bool(np.isfinite(wide * wide)[0])

    mask = (1 << (8 * stored.itemsize - 1)) - 1
    low, high = 0, mask  # 0 fits; all ones is a NaN
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return unsigned.type(mask), unsigned.type(low)


def scan_bits(bits, mask, limit):  # type: ignore[no-untyped-def]  # a text for Numba, which infers its types
    """Find the first index where bits & mask > limit, -1 if there is none, and the largest bits & mask.

    Blocks keep the exact search short. The loop over a block has no exit and starts at 0: else it does not vectorise
    (10 ms instead of 1 for 10 M float32).
    """
    largest = mask - mask
    for start in range(0, bits.size, 4096):
        block = bits[start : start + 4096]
        top = mask - mask
        for i in range(block.size):
            top = max(top, block[i] & mask)
        if top > limit:
            for i in range(block.size):
                if (block[i] & mask) > limit:
                    return start + i, largest
        largest = max(largest, top)
    return -1, largest


@cache
def _scan(unsigned: np.dtype[Any]) -> Compiled:
    import numba

    scalar = numba.from_dtype(unsigned)
    return compile_loop(
        inspect.getsource(scan_bits),
        "scan_bits",
        (numba.types.Array(scalar, 1, "C", readonly=True), scalar, scalar),
    )


def compile_scans() -> None:
    """Compile scan_gradient for every width."""
    for unsigned in UNSIGNED.values():
        _scan(np.dtype(unsigned))
