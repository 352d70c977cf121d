"""The dtypes that travel, and exact widening and rounding between them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adamd.errors import WrongDtype, WrongLength

Array = NDArray[Any]
Floats: TypeAlias = NDArray[np.floating[Any]]

SLICE = 65_536  # elements: a slice widened to float32 is 256 KiB, still in the L2 cache when a kernel reads it
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SESSION_DTYPES = ("float32", "float64")
# What each session dtype takes without rounding.
WIDENS = {
    "float32": ("float32", "float16", "bfloat16"),
    "float64": ("float64", "float32", "float16", "bfloat16"),
}
SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
TO_SAFETENSORS = {name: code for code, name in SAFETENSORS.items()}


def storage(dtype: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype that holds ``dtype``; bfloat16 is held as uint16."""
    return np.dtype({"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype])


def check_widens(dtype: str, session_dtype: str, what: str = "gradient") -> None:
    """Refuse a dtype that the session could take only by rounding.

    Raises:
        WrongDtype: unknown, or wider than the session's.

    """
    if dtype not in ITEMSIZE:
        raise WrongDtype(f"unknown dtype {dtype!r}; known are {', '.join(ITEMSIZE)}")
    if dtype not in WIDENS[session_dtype]:
        raise WrongDtype(
            f"a {dtype} {what} would have to be rounded; this session is {session_dtype} "
            f"and takes {', '.join(WIDENS[session_dtype])}. Convert it before you send it."
        )


def widen(data: Array, dtype: str, into: str, out: Array | None = None) -> Array:
    """Widen ``data`` (in ``storage(dtype)``) to ``into`` (float32 or float64), exactly.

    A bfloat16 is the upper half of a float32, so widening it is a shift.
    """
    target = storage(into)
    if dtype == "bfloat16":
        data = (data.astype("<u4") << np.uint32(16)).view("<f4")
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN; others judge it
        if out is None:
            return data.astype(target, copy=False)
        np.copyto(out, data)
        return out


def check_narrows(dtype: str, session_dtype: str) -> None:
    """Refuse an answer's dtype that is unknown, or wider than the session's.

    Raises:
        WrongDtype: more bits would say no more.

    """
    if dtype not in ITEMSIZE:
        raise WrongDtype(f"unknown dtype {dtype!r}; known are {', '.join(ITEMSIZE)}")
    if ITEMSIZE[dtype] > ITEMSIZE[session_dtype]:
        raise WrongDtype(f"an answer in {dtype} would say no more than one in {session_dtype}, which this session is")


def narrow(data: Array, dtype: str, out: Array) -> None:
    """Round float32 or float64 ``data`` to ``dtype``, to nearest, ties to even, once, into ``out``.

    ``out`` is as long, of ``storage(dtype)``. What is too large becomes infinity, as IEEE 754 has it; NaN stays NaN.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            out[:] = narrow_bfloat16(_to_odd(data) if data.dtype == np.float64 else data)
        else:
            out[:] = data


def _to_odd(data: Array) -> Array:
    """Float64 to float32 by rounding to odd, which makes a second rounding to nearest as good as one alone."""
    single = data.astype("<f4")
    back = single.astype("<f8")
    bits = single.view("<u4")
    bits -= (np.abs(back) > np.abs(data)).astype("<u4")  # toward zero
    bits |= ((back != data) & ~np.isnan(data)).astype("<u4")
    return single


def narrow_bfloat16(data: Array) -> Array:
    """Round float32 to bfloat16 (held as uint16), to nearest, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(data, dtype="<f4").view("<u4")
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded).astype("<u2")


def vector_bytes(size: int, dtype: str | None, into: str) -> int:
    """Return how many bytes ``size`` parameters have in ``dtype`` (``into``, if None).

    Raises:
        WrongDtype: it would have to be rounded to become ``into``.

    """
    check_widens(dtype or into, into, "parameter vector")
    return size * ITEMSIZE[dtype or into]


def vector(body: memoryview, size: int, dtype: str | None, into: str) -> Array:
    """Read a flat vector of ``size`` parameters in ``dtype`` (``into``, if None) as ``into``.

    Raises:
        WrongDtype: it would have to be rounded.
        WrongLength: it has another length.

    """
    expected = vector_bytes(size, dtype, into)
    if body.nbytes != expected:
        raise WrongLength(f"{body.nbytes} bytes; {size} {dtype or into} parameters are {expected}")
    return widen(np.frombuffer(body, storage(dtype or into)), dtype or into, into)
