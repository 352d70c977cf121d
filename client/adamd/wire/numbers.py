"""Arrays as JSON numbers: strict when read, exact when written, in pieces where they are large."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.errors import InvalidRequest, WrongLayout
from adamd.wire.dtypes import Array, storage
from adamd.wire.layout import MAX_RANK, Layout

NUMBERS = {int, float}
PIECE = 4096  # elements in one piece of text: about a millisecond's work


def array_from_json(raw: Any, dtype: str, where: str, *, finite: bool = True) -> Array:
    """Read a number or a nested list of numbers into an array of ``dtype``, by way of float64 as JSON's readers do.

    ``finite=False`` lets through what is too large for the dtype, as an infinity, to those who judge gradients.

    Raises:
        InvalidRequest: something that is no number, or does not fit the dtype; its ``path`` is below ``where``.
        WrongLayout: ragged, or nested deeper than 32.

    """
    shape = _shape(raw, where)
    _check(raw, shape, where)  # before anything has the size that the first branch claims
    doubles = np.empty(math.prod(shape), dtype=np.float64)
    _fill(raw, len(shape), doubles, 0)
    with np.errstate(over="ignore"):
        flat = doubles.astype(storage(dtype), copy=False)
    if finite:
        bad = np.flatnonzero(~np.isfinite(flat))
        if bad.size:
            index = int(bad[0])
            value = "a number that is too large" if math.isinf(doubles[index]) else repr(float(doubles[index]))
            raise InvalidRequest(f"{where}: element {index} ({value}) is not a finite {dtype}", index=index, path=where)
    return flat.reshape(shape)


def pieces_of_json(flat: Array, layout: Layout) -> Iterator[str]:
    """Write parameters in the shape of their creation, piece by piece; a float32 becomes exactly its float64 value.

    A list of a million floats takes ten times the memory of its array, so there is never more than a piece of it.
    """
    parts = [flat[layout.bounds[i] : layout.bounds[i + 1]].reshape(t.shape) for i, t in enumerate(layout.tensors)]
    if layout.vector:
        yield from _pieces(parts[0])
        return
    for i, (name, part) in enumerate(zip(layout.names, parts, strict=True)):
        yield f"{', ' if i else '{'}{json.dumps(name)}: "
        yield from _pieces(part)
    yield "}" if parts else "{}"


def _pieces(array: Array) -> Iterator[str]:
    if array.size <= PIECE:
        yield json.dumps(array.tolist(), allow_nan=False)
        return
    yield "["
    if array.ndim == 1:
        for start in range(0, len(array), PIECE):
            text = json.dumps(array[start : start + PIECE].tolist(), allow_nan=False)
            yield (", " if start else "") + text[1:-1]
    else:
        rows = max(1, PIECE // max(1, array[0].size))
        for start in range(0, len(array), rows):
            if start:
                yield ", "
            if rows > 1:
                yield json.dumps(array[start : start + rows].tolist(), allow_nan=False)[1:-1]
            else:
                yield from _pieces(array[start])
    yield "]"


def _shape(raw: Any, where: str) -> tuple[int, ...]:
    """Return the shape that the first branch has."""
    shape: list[int] = []
    while isinstance(raw, list):
        shape.append(len(raw))
        if len(shape) > MAX_RANK:
            raise WrongLayout(f"{where}: nested deeper than {MAX_RANK}")
        if not raw:
            break
        raw = raw[0]
    return tuple(shape)


def _check(raw: Any, shape: tuple[int, ...], where: str, at: tuple[int, ...] = ()) -> None:
    """Refuse what is ragged or no number; the recursion is bounded by the rank that ``_shape`` allowed.

    ``at``: the indices that lead from ``where`` to ``raw``.
    """
    depth = len(at)
    if not shape:
        if type(raw) not in NUMBERS:
            raise _no_number(raw, where)
        return
    if not isinstance(raw, list) or len(raw) != shape[depth]:
        place = _place(where, at)
        raise WrongLayout(f"{place}: ragged; wanted {shape[depth]} elements at depth {depth}, got {_kind(raw)}")
    if depth == len(shape) - 1:
        if not set(map(type, raw)) <= NUMBERS:
            index, odd = next((index, item) for index, item in enumerate(raw) if type(item) not in NUMBERS)
            raise _no_number(odd, _place(where, (*at, index)))
        return
    for index, item in enumerate(raw):
        _check(item, shape, where, (*at, index))


def _no_number(odd: Any, place: str) -> InvalidRequest:
    return InvalidRequest(f"{place}: wanted a number, got {_kind(odd)}", path=place)


def _place(where: str, at: tuple[int, ...]) -> str:
    return where + "".join(f"[{index}]" for index in at)


def _fill(raw: Any, depth: int, out: NDArray[np.float64], start: int) -> int:
    """Write the numbers of ``raw`` from ``start`` on, and return where they end."""
    if depth == 0:
        raw, depth = [raw], 1
    if depth == 1:
        end = start + len(raw)
        try:
            out[start:end] = np.fromiter(raw, np.float64, len(raw))
        except OverflowError:
            out[start:end] = [_float(number) for number in raw]
        return end
    for item in raw:
        start = _fill(item, depth - 1, out, start)
    return start


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond every double
        return math.inf if number > 0 else -math.inf


def _kind(raw: Any) -> str:
    if isinstance(raw, list):
        return f"a list of {len(raw)}"
    if type(raw) in NUMBERS:
        return "a number"
    return {bool: "true or false", str: "a string", dict: "an object", type(None): "null"}.get(
        type(raw), type(raw).__name__
    )
