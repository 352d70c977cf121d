"""The parameters to evaluate, where an optimizer has others than those that gradients are taken at."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.optim.recurrence.language import signature
from adamd_service.optim.settings import Settings, resolve
from adamd_service.optim.state import State
from adamd_service.optim.validation import SettingsError

SLICE = 65_536  # elements at a time, so that what NumPy allocates between is small


def check_average(settings: Settings) -> None:
    """Raise SettingsError where no average can be had from a session with these settings."""
    average = settings.optimizer.average
    if average is None:
        raise SettingsError(
            "at",
            f"at is average; {settings.optimizer.name} has none: its parameters are those to evaluate, without `at`",
        )
    for hyper in (settings.hyper, *(group.hyper for group in settings.groups)):
        try:
            average.scalars(hyper)
        except ValueError as error:
            raise SettingsError("at", f"at is average; {error}") from None


def write_average(state: State, settings: Settings, names: Sequence[str], bounds: Sequence[int], out: Floats) -> None:
    """Write the average into `out` (flat, of the state's length and dtype). names and bounds are the layout's.

    Raises what `check_average` raises, before anything is written.
    """
    check_average(settings)
    average = settings.optimizer.average
    assert average is not None
    declared = signature(average.text)
    arrays = [state.arrays["params" if name == "p" else name] for name in declared.arrays]
    for name, (begin, end) in zip(names, pairwise(bounds), strict=True):
        exact = average.scalars(resolve(settings, name))
        scalars = [state.params.dtype.type(exact[scalar]) for scalar in declared.scalars]
        for start in range(begin, end, SLICE):
            here = slice(start, min(start + SLICE, end))
            with np.errstate(all="ignore"):  # a diverged session's is as it is
                (out[here],) = average.text(*(array[here] for array in arrays), *scalars)
