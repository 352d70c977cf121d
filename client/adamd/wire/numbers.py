"""Arrays as JSON numbers: strict on the way in, exact on the way out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adamd.errors import InvalidRequest, WrongLayout
from adamd.wire.dtypes import Array, storage
from adamd.wire.layout import MAX_RANK, Layout


def array_from_json(raw: Any, dtype: str, where: str) -> Array:
    """Read a number or a nested list of numbers into an array of ``dtype``, rounding each decimal once.

    Raises:
        InvalidRequest: something that is no number, or does not fit the dtype; ``where`` names the place.
        WrongLayout: ragged, or nested deeper than 32.

    """
    shape = _shape(raw, where)
    numbers: list[float] = []
    _flatten(raw, shape, 0, where, numbers)
    with np.errstate(over="ignore"):
        flat = np.array(numbers, dtype=np.float64).astype(storage(dtype))
    bad = np.flatnonzero(~np.isfinite(flat))
    if bad.size:
        index = int(bad[0])
        raise InvalidRequest(f"{where}: element {index} ({numbers[index]!r}) is not a finite {dtype}", index=index)
    return flat.reshape(shape)


def parameters_to_json(flat: Array, layout: Layout) -> Any:
    """Return the parameters in the shape of their creation; a float32 becomes exactly its float64 value."""
    parts = (
        flat[layout.bounds[i] : layout.bounds[i + 1]].reshape(t.shape).tolist() for i, t in enumerate(layout.tensors)
    )
    return next(parts) if layout.vector else dict(zip(layout.names, parts, strict=True))


def _shape(raw: Any, where: str) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(raw, list):
        shape.append(len(raw))
        if len(shape) > MAX_RANK:
            raise WrongLayout(f"{where}: nested deeper than {MAX_RANK}")
        if not raw:
            break
        raw = raw[0]
    return tuple(shape)


def _flatten(raw: Any, shape: tuple[int, ...], depth: int, where: str, out: list[float]) -> None:
    """Append the numbers of ``raw``; the recursion is bounded by the rank that ``_shape`` allowed."""
    if depth == len(shape):
        if type(raw) not in (int, float):
            raise InvalidRequest(f"{where}: wanted a number, got {_kind(raw)}")
        out.append(_finite(raw, where))
        return
    if not isinstance(raw, list) or len(raw) != shape[depth]:
        raise WrongLayout(f"{where}: ragged; wanted {shape[depth]} elements at depth {depth}, got {_kind(raw)}")
    for item in raw:
        _flatten(item, shape, depth + 1, where, out)


def _finite(number: float, where: str) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise InvalidRequest(f"{where}: {'NaN' if math.isnan(value) else 'a number that is too large'}")
    return value


def _kind(raw: Any) -> str:
    if isinstance(raw, list):
        return f"a list of {len(raw)}"
    return {bool: "true or false", str: "a string", dict: "an object", type(None): "null"}.get(
        type(raw), type(raw).__name__
    )
