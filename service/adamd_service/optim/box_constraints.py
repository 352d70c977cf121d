"""Bounds on the parameters: scalars by tensor, or an array with a number for each element, which never changes.

The projected gradient is what they leave of a gradient:

    g_i = 0   where p_i <= lower_i and the step would lower p_i, or p_i >= upper_i and it would raise it

At a minimum within bounds it is zero, as the gradient itself need not be (Calamai & More 1987, Math. Programming 39).
The step is taken to go against the scaled gradient, as every optimizer's first one does.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from adamd.wire.dtypes import SLICE, Floats
from adamd_service.optim.gradients.encoded import Encoded, Raw
from adamd_service.optim.recurrence.wrapping import ARRAY, BOUNDS
from adamd_service.optim.scalars import Update
from adamd_service.optim.settings import Settings, resolve
from adamd_service.optim.state import State, runs_of
from adamd_service.optim.validation import SettingsError

NONE: Final = {"lower": -np.inf, "upper": np.inf}  # what bounds nothing


def each(settings: Settings) -> tuple[str, ...]:
    """Which bounds have a number for each element."""
    return tuple(name for name in BOUNDS if name in settings.arrays)


def check_bounds(
    state: State, settings: Settings, names: Sequence[str], offsets: Sequence[int], *, inside: bool
) -> None:
    """Refuse arrays of bounds with a NaN or lower above upper, and (`inside`) parameters that lie beyond.

    names and offsets are the layout's. A session that goes on may stand outside: its bounds are changed, and its next
    update brings it back. Raises SettingsError with the tensor and the index of the first element.
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
    raise SettingsError(path, f"{path}: element {first + place} of {name!r} is {values[place]}; wanted {told}")


BELOW, ABOVE = BOUNDS


def bounded(state: State, updates: Sequence[Update]) -> bool:
    """Some of what is updated has a bound."""
    return not state.slots.keys().isdisjoint(BOUNDS) or any(
        not update.scalars.named.keys().isdisjoint(BOUNDS) for update in updates
    )


def projected(state: State, gradient: Encoded, updates: Sequence[Update], bounds: Sequence[int]) -> Encoded:
    """A copy of the gradient, in the session's dtype, without what the bounds take from it.

    state: before the step, on the host. gradient: complete and checked. bounds: the tensors' offsets, as in
    `state.apply`.
    """
    dtype = state.params.dtype
    flat: Floats = np.empty(gradient.size, dtype)
    into = np.empty(min(SLICE, gradient.size), dtype)
    for start in range(0, gradient.size, SLICE):
        stop = min(start + SLICE, gradient.size)
        flat[start:stop] = gradient.part(start, stop, into)
    for run in runs_of(state, gradient.size, updates, bounds, None):
        scalars, here = run.update.scalars.named, slice(run.start, run.end)
        slope = flat[run.source : run.source + run.end - run.start]
        lower, upper = (_limit(name, state, scalars, here, dtype) for name in (BELOW, ABOVE))
        falling, params = slope * np.sign(scalars["sign"]) > 0, state.params[here]
        if lower is not None:
            slope[falling & (params <= lower)] = 0
        if upper is not None:
            slope[~falling & (params >= upper)] = 0
    return Raw.of(flat, dtype)


def _limit(name: str, state: State, scalars: dict[str, float], here: slice, dtype: np.dtype[Any]) -> Any:
    if name in state.slots:
        return state.slots[name][here]
    return dtype.type(scalars[name]) if name in scalars else None
