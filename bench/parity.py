"""Before anything is timed: the same numbers come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan
from bench.clock import Compared, Floats

STEPS = 3


def check(parameters: Floats, gradient: Floats, contenders: Sequence[Compared]) -> None:
    """Compare the first steps of every service with the readable NumPy reference.

    Raises:
        SystemExit: one is further from it than it may be; adamd may not differ in one bit.

    """
    state = State.fresh(parameters, 1, parse_settings({"name": "adam"}))
    settings = parse_settings({"name": "adam"})
    bounds = (0, len(parameters))
    for step in range(1, STEPS + 1):
        updates = plan(settings, ("vector",), state.counts, (True,), state.params.dtype)
        apply(state, gradient, updates, bounds, None, ReferenceKernel())
        for contender in contenders:
            contender.step()
            off = _distance(state.params, contender.answer, contender.tolerance)
            if off:
                raise SystemExit(f"{contender.name}, {len(parameters)} parameters, step {step}: {off}")


def _distance(wanted: Floats, came: Floats, tolerance: float) -> str:
    if not tolerance:
        differing = int((wanted.view(np.uint32) != came.view(np.uint32)).sum())
        return f"{differing} parameters differ from the reference" if differing else ""
    distance = float(np.abs(wanted - came).max())
    return f"{distance:g} from the reference" if distance > tolerance else ""
