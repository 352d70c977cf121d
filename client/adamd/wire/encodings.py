"""Gradient encodings: their normative text, and the functions that write and read them. No I/O.

A gradient has n elements, the flat vector in the order of the layout. Everything is little-endian. A body's length is
exact; nothing follows it, nothing is padded.

``raw`` (where nothing else is said)
    The n elements in the body's dtype (Adamd-Dtype, else the session's): float16, bfloat16, float32, or float64 in a
    float64 session. Exact, as far as the dtype is: who rounds to nearest errs by half a unit in the last place at
    most, 2^-11 |g| in float16 and 2^-8 |g| in bfloat16 (below 2^-14 and 2^-126: 2^-25 and 2^-134, absolute).

``int8``
    ceil(n/256) scales of 4 bytes (float32), then n signed bytes q (two's complement; -128 is allowed, though the
    encoder here never writes it). Element i is ``scale[i // 256] * q[i]``: ONE float32 multiplication, rounded to
    nearest even, then widened exactly to float64 where the session is that. Blocks run over the flat vector and do not
    begin anew with a tensor; the last may be short. A scale is finite and its sign bit is clear (no -0); 0 and
    subnormal numbers are allowed. The dtype, where it is said, is float32.
    The encoder here: scale = max|g| / 127 over the block, rounded to float32, or 0 where that is below the smallest
    normal number (2^-126); q = g / scale, rounded to nearest, ties to even. Then every element is within
    ``scale * (1/2 + 2^-16)`` of the gradient (the 2^-16 is what rounding scale, quotient and product in float32 adds),
    or, in a block of scale 0, within 127 * 2^-126.
``sparse``
    k indices of 4 bytes (uint32), then k values in the body's dtype, 0 <= k <= n: k follows from the body's length.
    Indices are below n and strictly ascending, so none comes twice. Elements that are not named are zero: the step is
    dense Adam, bit for bit the step of that vector sent raw. Exact. For sessions of fewer than 2^32 elements.

``sparse-lazy``
    The same bytes, another meaning: what is not named is not touched, as torch.optim.SparseAdam has it. Parameters and
    moments of the named elements take the step by the same recurrence; every tensor with a named element counts one
    update, however few are named; a tensor without one is left out, as a gradient that is None, and does not count.
    Weight decay, coupled or not, acts on the named elements only (SparseAdam has none). Naming nothing is a step that
    changes nothing.

Every element, decoded, is held to the rule for raw gradients: finite, and its square does not overflow the session's
dtype (`bad_gradient`, with the element's index; so is a scale that is not finite or negative, with the index of its
block's first element). Indices out of order or range are a `malformed_body`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adamd.errors import BadGradient, InvalidRequest, WrongDtype, WrongLength
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import ITEMSIZE, Array, check_widens, storage

RAW, INT8, SPARSE, LAZY = "raw", "int8", "sparse", "sparse-lazy"
ENCODINGS: Final = (RAW, INT8, SPARSE, LAZY)
BLOCK = 256  # elements that share a scale
LEVELS = 127  # of each sign
INDEX = 4  # bytes of an index, and of a scale
_SLICE = 256 * BLOCK  # elements encoded at once: what they need meanwhile stays in the cache

Floats = NDArray[np.floating[Any]]


def body_dtype(encoding: str, dtype: str | None, session_dtype: str) -> str:
    """Return the dtype of a body's values: what was said, else the encoding's own.

    Raises:
        WrongDtype: the session would have to round it, or int8 with another than its scales' float32.

    """
    if encoding == INT8:
        if dtype not in (None, "float32"):
            raise WrongDtype(f"a body in int8 has float32 scales, so its dtype is float32 or not said; got {dtype}")
        return "float32"
    chosen = dtype or session_dtype
    check_widens(chosen, session_dtype)
    return chosen


def most(encoding: str, size: int, dtype: str) -> int:
    """Return the bytes that a gradient of ``size`` elements takes; of a sparse one, the most that it may.

    Raises:
        InvalidRequest: a sparse one of a session whose elements 4 bytes cannot name.

    """
    if encoding == RAW:
        return size * ITEMSIZE[dtype]
    if encoding == INT8:
        return scales_of(size) * INDEX + size
    if size >= 2**32:
        raise InvalidRequest(f"{encoding}: its indices have 4 bytes; this session has {size} elements, 2^32 or more")
    return size * (INDEX + ITEMSIZE[dtype])


def check_length(encoding: str, nbytes: int, size: int, dtype: str) -> None:
    """Refuse a length that no body of ``size`` elements has.

    Raises:
        WrongLength: with what it would have to be.

    """
    limit = most(encoding, size, dtype)
    each = INDEX + ITEMSIZE[dtype]
    if encoding == RAW and nbytes != limit:
        raise WrongLength(f"{nbytes} bytes; {size} {dtype} are {limit}")
    if encoding == INT8 and nbytes != limit:
        raise WrongLength(
            f"{nbytes} bytes; {size} elements in int8 are {limit}: {scales_of(size)} scales of 4 bytes, {size} of 1"
        )
    if encoding in (SPARSE, LAZY) and (nbytes % each or nbytes > limit):
        raise WrongLength(
            f"{nbytes} bytes; a {encoding} gradient of {dtype} is a multiple of {each} (an index of 4 bytes for each "
            f"value), and at most {limit} for {size} elements"
        )


def scales_of(size: int) -> int:
    """Return how many blocks, and so scales, ``size`` elements have."""
    return -(-size // BLOCK)


def encode_int8(values: Floats) -> Bytes:
    """Write a flat float32 or float64 vector; see the module for the rounding and its bound.

    Raises:
        BadGradient: an element is not finite, or too large for a product in float32.

    """
    body = np.empty(most(INT8, values.size, "float32"), np.uint8)
    scales, quantized = int8_parts(body, values.size)
    for start in range(0, values.size, _SLICE):
        part = values[start : start + _SLICE]
        block_scales = scales[start // BLOCK : scales_of(start + len(part))]
        starts = np.arange(0, len(part), BLOCK)
        with np.errstate(over="ignore"):
            largest = np.maximum(np.maximum.reduceat(part, starts), -np.minimum.reduceat(part, starts))
            block_scales[:] = largest / part.dtype.type(LEVELS)
            fits = np.isfinite(block_scales * np.float32(LEVELS)).all()  # not NaN, nor beyond what float32 holds
        if not fits:
            _refuse(part, start)
        block_scales[block_scales < np.finfo(np.float32).smallest_normal] = 0  # -0 too: a scale's sign bit is clear
        divisors = np.where(block_scales == 0, part.dtype.type(np.inf), block_scales)
        quotients = part / np.repeat(divisors, BLOCK)[: len(part)]
        quantized[start : start + len(part)] = np.rint(quotients, out=quotients)
    return body


def _refuse(part: Floats, start: int) -> None:
    with np.errstate(over="ignore"):
        scaled = (part / part.dtype.type(LEVELS)).astype(np.float32) * np.float32(LEVELS)
        bad = int(np.flatnonzero(~np.isfinite(scaled))[0])
    raise BadGradient(
        f"element {start + bad} of the gradient is {part[bad]}: int8 wants finite numbers in float32's range",
        index=start + bad,
    )


def int8_parts(body: Bytes, size: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return the scales and the signed bytes of a whole body, as views."""
    end = scales_of(size) * INDEX
    return body[:end].view("<f4"), body[end:].view(np.int8)


def decode_int8(scales: NDArray[np.float32], quantized: NDArray[np.int8], start: int, out: Floats) -> None:
    """Write elements ``start`` to ``start + len(out)`` of a whole body's parts into ``out`` (float32 or float64).

    The product is rounded to float32 whatever ``out`` is. One that overflows becomes infinity.
    """
    q = quantized[start : start + len(out)]
    head = min(-start % BLOCK, len(out))
    tail = head + (len(out) - head) // BLOCK * BLOCK
    block = start // BLOCK
    with np.errstate(over="ignore", under="ignore"):
        if head:
            _product(scales[block : block + 1], q[:head], out[:head])
            block += 1
        if tail > head:
            block_scales = scales[block : block + (tail - head) // BLOCK, None]
            _product(block_scales, q[head:tail].reshape(-1, BLOCK), out[head:tail].reshape(-1, BLOCK))
            block += len(block_scales)
        if len(out) > tail:
            _product(scales[block : block + 1], q[tail:], out[tail:])


def _product(scales: Array, q: Array, out: Array) -> None:
    np.multiply(scales, q, out=out, dtype=np.float32, casting="same_kind")


def encode_sparse(indices: NDArray[np.integer[Any]], values: Array) -> Bytes:
    """Write indices (ascending, below 2^32) and their values (in ``storage(dtype)``)."""
    body = np.empty(len(indices) * INDEX + values.nbytes, np.uint8)
    body[: len(indices) * INDEX].view("<u4")[:] = indices
    body[len(indices) * INDEX :] = np.ascontiguousarray(values).view(np.uint8)
    return body


def sparse_parts(body: Bytes, dtype: str) -> tuple[NDArray[np.uint32], Array]:
    """Return the indices and the values of a whole body, as views; float64 values may be unaligned."""
    end = body.nbytes // (INDEX + ITEMSIZE[dtype]) * INDEX
    return body[:end].view("<u4"), body[end:].view(storage(dtype))


def largest(values: Floats, count: int) -> NDArray[np.uint32]:
    """Return the indices of the ``count`` elements of the largest magnitude, ascending; exact zeros are left out."""
    if count >= len(values):
        chosen = np.flatnonzero(values)
    else:
        chosen = np.argpartition(np.abs(values), len(values) - count)[len(values) - count :]
        chosen = np.sort(chosen[values[chosen] != 0])
    return chosen.astype(np.uint32)
