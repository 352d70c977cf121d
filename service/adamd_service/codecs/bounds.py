"""Bounds with a number for each element, as a creation brings them: lists in its settings, or tensors `lower:NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adamd.errors import WrongLayout
from adamd.wire import numbers
from adamd.wire.dtypes import Array, storage
from adamd.wire.layout import Layout, shown, some
from adamd_service.optim import ARRAY, BOUNDS, NONE


def side_of(optimizer: Mapping[str, Any], name: str) -> str | None:
    """Return which bound a tensor of a creation is: `lower:NAME` where the optimizer's lower is "array"; None: none."""
    side, _, rest = name.partition(":")
    return side if rest and side in BOUNDS and optimizer.get(side) == ARRAY else None


def named(optimizer: Mapping[str, Any], made: Layout, dtype: str, given: Mapping[str, Array]) -> dict[str, Array]:
    """Join the tensors `lower:NAME` and `upper:NAME` of a creation."""
    flats = {}
    for side in BOUNDS:
        arrays = {name.partition(":")[2]: array for name, array in given.items() if side_of(optimizer, name) == side}
        if arrays:
            flats[side] = _flat(side, made, dtype, arrays)
    return flats


def sides(optimizer: Mapping[str, Any], made: Layout) -> list[str]:
    """Return which bounds the settings give by element."""
    return [side for side in BOUNDS if isinstance(optimizer.get(side), (dict, list) if made.vector else dict)]


def listed(optimizer: Mapping[str, Any], made: Layout, dtype: str) -> dict[str, Array]:
    """Read bounds that are numbers by tensor in the optimizer's settings, or a list for the one that a vector is."""
    flats = {}
    for side in sides(optimizer, made):
        given, where = optimizer[side], f"optimizer.{side}"
        if isinstance(given, list):
            given = {made.names[0]: given}
        arrays = {name: numbers.array_from_json(value, dtype, f"{where}.{name[:64]}") for name, value in given.items()}
        flats[side] = _flat(side, made, dtype, arrays)
    return flats


def _flat(side: str, made: Layout, dtype: str, given: Mapping[str, Array]) -> Array:
    """Return a bound for each element; a tensor may have one number, and one that is not named has none.

    Raises:
        WrongLayout: a tensor that there is not, or another shape.

    """
    flat = np.full(made.size, NONE[side], storage(dtype))
    for name, array in given.items():
        index = made.index.get(name)
        if index is None:
            raise WrongLayout(f"{side}: there is no tensor {shown(name)}; there are {some(made.names)}")
        shape = made.tensors[index].shape
        if array.shape not in ((), shape):
            raise WrongLayout(
                f"{side}: tensor {shown(name)} has shape {list(shape)}, its bounds {list(array.shape)}; "
                "wanted the same, or one number"
            )
        flat[made.bounds[index] : made.bounds[index + 1]] = array.reshape(-1)
    return flat
