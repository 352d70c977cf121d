"""The gradient that bounds leave: what would push a parameter out of its bound is no slope that can be followed.

    g_i = 0   where p_i <= lower_i and the step would lower p_i, or p_i >= upper_i and it would raise it

At a minimum within bounds this is zero, as the gradient itself need not be (Calamai & More 1987, Math. Programming 39,
the projected gradient). The step is taken to go against the scaled gradient, as every optimizer's first one does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.optim.gradients.encoded import SLICE, Encoded, Raw
from adamd_service.optim.recurrence.wrapping import BOUNDS
from adamd_service.optim.scalars import Update
from adamd_service.optim.state import State, runs_of

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
        lower, upper = (_bound(name, state, scalars, here, dtype) for name in (BELOW, ABOVE))
        falling, params = slope * np.sign(scalars["sign"]) > 0, state.params[here]
        if lower is not None:
            slope[falling & (params <= lower)] = 0
        if upper is not None:
            slope[~falling & (params >= upper)] = 0
    return Raw.of(flat, dtype)


def _bound(name: str, state: State, scalars: dict[str, float], here: slice, dtype: np.dtype[Any]) -> Any:
    if name in state.slots:
        return state.slots[name][here]
    return dtype.type(scalars[name]) if name in scalars else None
