"""Before anything is timed: the same numbers come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan
from bench.contenders import BySdk, Contender, Floats, Naive, Session

STEPS = 3
CLOSE = 1e-6


def check(parameters: Floats, gradient: Floats, *groups: Sequence[Contender] | Sequence[tuple[Contender, ...]]) -> None:
    """Compare the first steps of every service with the readable NumPy reference.

    Raises:
        SystemExit: adamd differs in one bit, or the naive service by more than 1e-6.

    """
    state = State.fresh(parameters, 1, amsgrad=False)
    settings = parse_settings({"name": "adam"})
    bounds = (0, len(parameters))
    contenders = [one for group in groups for item in group for one in (item if isinstance(item, tuple) else (item,))]
    for step in range(1, STEPS + 1):
        updates = plan(settings, ("vector",), state.counts, (True,), state.params.dtype)
        apply(state, gradient, updates, bounds, None, ReferenceKernel())
        for contender in contenders:
            if not isinstance(contender, Session | BySdk | Naive):
                continue
            contender.step()
            off = _distance(state.params, contender.answer, exact=not isinstance(contender, Naive))
            if off:
                raise SystemExit(f"{contender.name}, {len(parameters)} parameters, step {step}: {off}")


def _distance(wanted: Floats, came: Floats, *, exact: bool) -> str:
    if exact:
        differing = int((wanted.view(np.uint32) != came.view(np.uint32)).sum())
        return f"{differing} parameters differ from the reference" if differing else ""
    distance = float(np.abs(wanted - came).max())
    return f"{distance:g} from the reference" if distance > CLOSE else ""
