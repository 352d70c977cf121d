"""Bounds on the parameters: scalars by tensor, or an array with a number for each element, which never changes."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.optim.gradients.encoded import SLICE
from adamd_service.optim.recurrence.wrapping import ARRAY, BOUNDS
from adamd_service.optim.settings import Settings, resolve
from adamd_service.optim.state import State

NONE: Final = {"lower": -np.inf, "upper": np.inf}  # what bounds nothing


class BoundsError(ValueError):
    """A bound that is refused, or a parameter beyond its own. path: the setting, or "parameters"."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def each(settings: Settings) -> tuple[str, ...]:
    """Which bounds have a number for each element."""
    return tuple(name for name in BOUNDS if name in settings.arrays)


def check_bounds(
    state: State, settings: Settings, names: Sequence[str], offsets: Sequence[int], *, inside: bool
) -> None:
    """Refuse arrays of bounds with a NaN or lower above upper, and (`inside`) parameters that lie beyond.

    names and offsets are the layout's. A session that goes on may stand outside: its bounds are changed, and its next
    update brings it back. Raises BoundsError with the tensor and the index of the first element.
    """
    for index, name in enumerate(names):
        hyper = resolve(settings, name)
        if not isinstance(hyper.lower, float | str) and not isinstance(hyper.upper, float | str):
            continue
        for here in _slices(offsets[index], offsets[index + 1]):
            first = here.start - offsets[index]
            lower, upper = (_bound(state, here, side, getattr(hyper, side)) for side in BOUNDS)
            for side, values in (("lower", lower), ("upper", upper)):
                _refuse(np.isnan(values), side, name, first, values, "a number")
            _refuse(lower > upper, "lower", name, first, lower, "at most upper, which is {}", upper)
            if inside:
                p = state.params[here]
                _refuse(p < lower, "parameters", name, first, p, "at least lower, which is {}", lower)
                _refuse(p > upper, "parameters", name, first, p, "at most upper, which is {}", upper)


def _slices(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, SLICE):
        yield slice(first, min(first + SLICE, stop))


def _bound(state: State, here: slice, side: str, given: float | str | None) -> Floats:
    """The bound of each element of `here`, as the kernels have it."""
    if given == ARRAY:
        return state.slots[side][here]
    number = NONE[side] if given is None else given
    return np.full(here.stop - here.start, number, state.params.dtype)


def _refuse(
    bad: np.ndarray[Any, np.dtype[np.bool_]],
    path: str,
    tensor: str,
    first: int,
    values: Floats,
    wanted: str,
    other: Floats | None = None,
) -> None:
    if not bad.any():
        return
    place = int(bad.argmax())
    told = wanted if other is None else wanted.format(other[place])
    name = tensor if len(tensor) <= 64 else f"{tensor[:63]}…"
    raise BoundsError(path, f"{path}: element {first + place} of {name!r} is {values[place]}; wanted {told}")
