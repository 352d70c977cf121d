"""Gradients as they came, in whichever encoding: checked while they arrive, decoded slice by slice.

What the bytes mean, and every rounding, is `adamd.wire.encodings`' text; here it meets the state. No gradient is ever
decoded as a whole: a slice of it fits into the L2 cache, and a dense copy would be four times an int8 body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adamd.errors import BadGradient, MalformedBody
from adamd.wire import encodings
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import ITEMSIZE, SLICE, Floats, storage
from adamd_service.optim.gradients.half_precision import widen
from adamd_service.optim.gradients.scan import (
    check_gradient,
    largest_fitting,
    magnitude,
    require_widening,
    scan_gradient,
    wire_dtype,
)


class Encoded(Protocol):
    """A gradient in a buffer that may still be filling.

    size: elements that it stands for. exact: `part` is a view, so there is no need for slices. largest: the largest
    magnitude that `check` has met; None where it does not tell.
    """

    @property
    def size(self) -> int:
        """See above."""

    @property
    def exact(self) -> bool:
        """See above."""

    @property
    def largest(self) -> float | None:
        """See above."""

    def check(self, end: int) -> None:
        """Look at what is new up to byte `end`; called in order, until the last byte. Raises BadGradient with the index
        of the first bad element, MalformedBody for indices out of order or range.
        """

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """Elements start..stop-1, widened: a view, or the beginning of `into`. Only once the buffer is full."""


def encoded(encoding: str, dtype: str, body: Bytes, size: int, session_dtype: np.dtype[Any]) -> Encoded:
    """The gradient of `size` elements that lies (or will lie) in `body`, whose length is checked already
    (`encodings.check_length`).
    """
    if encoding == encodings.INT8:
        return Int8(body, size, session_dtype)
    if encoding in (encodings.SPARSE, encodings.LAZY):
        kind = Lazy if encoding == encodings.LAZY else Sparse
        return kind(body, dtype, size, session_dtype)
    return Raw(body.view(storage(dtype)), dtype, session_dtype)


class Raw:
    """The flat vector itself; bfloat16 as uint16. See `Encoded`."""

    def __init__(self, values: NDArray[Any], dtype: str, session_dtype: np.dtype[Any]) -> None:
        require_widening(values, dtype, session_dtype)
        self._values = values
        self._dtype = dtype
        self._session_dtype = session_dtype
        self._checked = 0  # elements
        self._largest = 0  # as bits, which are ordered as magnitudes are

    @classmethod
    def of(cls, gradient: NDArray[Any], session_dtype: np.dtype[Any]) -> Raw:
        """An array as a gradient."""
        return cls(gradient, wire_dtype(gradient), session_dtype)

    @property
    def size(self) -> int:
        """Elements."""
        return len(self._values)

    @property
    def exact(self) -> bool:
        """Nothing has to be widened."""
        return self._values.dtype == self._session_dtype

    def check(self, end: int) -> None:
        """See `Encoded`."""
        start, self._checked = self._checked, end // self._values.itemsize
        found = scan_gradient(self._values[start : self._checked], self._dtype, self._session_dtype)
        if found.bad >= 0:
            raise _bad(start + found.bad, self._values[start + found.bad], self._session_dtype)
        self._largest = max(self._largest, found.largest)

    @property
    def largest(self) -> float | None:
        """See `Encoded`."""
        return magnitude(self._largest, self._dtype)

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Encoded`."""
        if self.exact:
            return self._values[start:stop]
        widen(self._values[start:stop], into[: stop - start])
        return into[: stop - start]


class Int8:
    """Signed bytes with a float32 scale for each block. See `Encoded`."""

    exact = False
    largest = None  # blocks whose products are small are not decoded to be looked at

    def __init__(self, body: Bytes, size: int, session_dtype: np.dtype[Any]) -> None:
        self.size = size
        self._scales, self._quantized = encodings.int8_parts(body, size)
        self._session_dtype = session_dtype
        # Below this no byte's product can be bad: only blocks above it are decoded to be looked at.
        self._limit = np.float32(largest_fitting("float32", session_dtype) / 128)
        self._scales_checked = self._checked = 0

    def check(self, end: int) -> None:
        """See `Encoded`."""
        begin = self._scales.nbytes
        start, self._scales_checked = self._scales_checked, min(end, begin) // encodings.INDEX
        self._check_scales(start, self._scales_checked)
        while self._checked < end - begin:  # slice by slice: what is decoded to be looked at is small
            first, self._checked = self._checked, min(self._checked + SLICE, end - begin)
            self._check_values(first, self._checked)

    def _check_scales(self, start: int, stop: int) -> None:
        # As bits: infinity, NaN and whatever has a sign lie above the largest finite number.
        bad = self._scales[start:stop].view("<u4") > np.uint32(0x7F7FFFFF)
        if bad.any():
            block = start + int(bad.argmax())
            raise BadGradient(
                f"scale {block} of the gradient is {self._scales[block]}; wanted a finite float32, 0 or more, without "
                "a sign. The step is not counted.",
                index=block * encodings.BLOCK,
            )

    def _check_values(self, start: int, stop: int) -> None:
        scales = self._scales[start // encodings.BLOCK : encodings.scales_of(stop)]
        if bool((scales <= self._limit).all()):
            return
        values = np.empty(stop - start, np.float32)
        encodings.decode_int8(self._scales, self._quantized, start, values)
        bad = check_gradient(values, "float32", self._session_dtype)
        if bad >= 0:
            raise _bad(start + bad, values[bad], self._session_dtype)

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Encoded`."""
        encodings.decode_int8(self._scales, self._quantized, start, into[: stop - start])
        return into[: stop - start]


class Sparse:
    """Indices and their values; the rest is zero. See `Encoded`."""

    exact = False

    def __init__(self, body: Bytes, dtype: str, size: int, session_dtype: np.dtype[Any]) -> None:
        self.size = size
        self._indices, self._values = encodings.sparse_parts(body, dtype)
        self._dtype = dtype
        self._session_dtype = session_dtype
        self._ordered = self._checked = self._largest = 0

    def check(self, end: int) -> None:
        """See `Encoded`."""
        begin = self._indices.nbytes
        start, self._ordered = self._ordered, min(end, begin) // encodings.INDEX
        self._check_order(start, self._ordered)
        start, self._checked = self._checked, max(0, end - begin) // ITEMSIZE[self._dtype]
        values = np.require(self._values[start : self._checked], requirements="A")  # float64 may lie between its places
        found = scan_gradient(values, self._dtype, self._session_dtype)
        if found.bad >= 0:
            raise _bad(int(self._indices[start + found.bad]), values[found.bad], self._session_dtype)
        self._largest = max(self._largest, found.largest)

    @property
    def largest(self) -> float | None:
        """See `Encoded`."""
        return magnitude(self._largest, self._dtype)

    def _check_order(self, start: int, stop: int) -> None:
        before = max(0, start - 1)
        here = self._indices[before:stop]
        wrong = here[1:] <= here[:-1]
        if wrong.any():
            place = before + 1 + int(wrong.argmax())
            raise MalformedBody(
                f"index {place} of the gradient is {self._indices[place]} after {self._indices[place - 1]}; wanted "
                "strictly ascending ones, each once"
            )
        if len(here) and here[-1] >= self.size:
            place = before + int(np.searchsorted(here, np.uint32(self.size)))
            raise MalformedBody(
                f"index {place} of the gradient is {self._indices[place]}; this session has {self.size} elements"
            )

    def named(self, start: int, stop: int) -> tuple[int, int]:
        """The places first..last-1 of those indices that lie in start..stop-1."""
        first, last = np.searchsorted(self._indices, np.array([start, stop], np.uint32))
        return int(first), int(last)

    def taken(self, first: int, last: int) -> tuple[NDArray[np.uint32], Floats]:
        """Indices and widened values of the places first..last-1."""
        values = np.empty(last - first, self._session_dtype)
        widen(np.require(self._values[first:last], requirements="A"), values)
        return self._indices[first:last], values

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Encoded`."""
        here = into[: stop - start]
        here[:] = 0
        indices, values = self.taken(*self.named(start, stop))
        here[indices - np.uint32(start)] = values
        return here


class Lazy(Sparse):
    """The same bytes; what is not named is not touched, see `state.apply`."""

    def touched(self, bounds: Sequence[int]) -> tuple[int, ...]:
        """The tensors with a named element, by their place. bounds: as in `state.apply`."""
        places = np.searchsorted(self._indices, np.array(bounds, np.uint32))
        return tuple(np.flatnonzero(np.diff(places)).tolist())


def _bad(index: int, value: Any, session_dtype: np.dtype[Any]) -> BadGradient:
    return BadGradient(
        f"element {index} of the gradient is {value}: NaN, infinity, or a magnitude whose square overflows "
        f"{session_dtype}. The step is not counted.",
        index=index,
    )
