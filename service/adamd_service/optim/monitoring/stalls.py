"""What makes a session stall silently: gradients too small for eps, or for their squares. Pure.

With G the largest magnitude of the step's gradient, scaled as the update scales it, over all tensors present:

    gradient_below_eps        0 < G < eps / 1000 at step 1, and from then on until a step where it is not so;
                              or at any step 0 < G < u eps, with u half a unit in the last place of 1 (2^-24, 2^-53)
    second_moment_underflow   G > 0, and (1 - b2) G^2 (alpha for b2 in RMSprop) is below the smallest normal number

In the first case the denominator is eps, whatever the gradient, and a step is at most about lr G / eps instead of about
lr: a thousandth of it, or less than what a parameter of the size of lr can take up. A gradient that has become small is
mostly one that has converged, so only one that begins small, or moves nothing at all, is told. In the second case v
stays +0: nothing divides by the gradient's size.

Only where it is known: not for int8 gradients (nobody looks at all of them), nor with coupled weight decay (the
parameters are in the gradient then), nor for optimizers without eps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np

BELOW_EPS: Final = "gradient_below_eps"
UNDERFLOW: Final = "second_moment_underflow"
SMALL: Final = 1e-3  # of eps


def stalls(
    largest: float | None,
    updates: Iterable[Mapping[str, float]],
    dtype: np.dtype[Any],
    number: int,
    before: Collection[str],
) -> dict[str, float]:
    """What is wrong with the gradient of step `number`: its G, by the names above.

    largest: the gradient's, unscaled; None where it is not known. updates: the scalars of each; no more of them are
    looked at once one moves. before: what was wrong with the step before it.
    """
    if not largest:
        return {}
    limits = np.finfo(dtype)
    share = SMALL if number == 1 or BELOW_EPS in before else float(limits.eps) / 2
    below, under, size = False, False, 0.0
    for index, scalars in enumerate(updates):
        mine, eps = _scaled(largest, scalars), scalars.get("eps", 0.0)
        gain = scalars.get("one_minus_b2", scalars.get("one_minus_alpha", math.inf))
        known = eps > 0.0 and scalars.get("wd", 0.0) == 0.0 and scalars.get("rect", 1.0) != 0.0
        below = (below or not index) and known and 0.0 < mine < eps * share
        under = (under or not index) and known and mine > 0.0 and gain * mine * mine < float(limits.tiny)
        if not below and not under:
            return {}
        size = max(size, mine)
    return {name: size for name, holds in ((BELOW_EPS, below), (UNDERFLOW, under)) if holds}


def remedy(found: Mapping[str, float], dtype: np.dtype[Any]) -> float | None:
    """The eps that would help against what `stalls` found, a power of ten; None where the dtype has none.

    Where the second moment vanishes the denominator is eps alone: one of the gradient's size, or a little more, makes
    steps of up to about lr. Else a thousandth of the gradient's size is out of its way.
    """
    size = max(found.values())
    eps = 10.0 ** (math.ceil(math.log10(size)) if UNDERFLOW in found else math.floor(math.log10(size * SMALL)))
    return eps if eps >= float(np.finfo(dtype).tiny) else None


def told(name: str, found: Mapping[str, float], dtype: np.dtype[Any]) -> str:
    """The words for a person."""
    size, eps = found[name], remedy(found, dtype)
    scale = f"gradient_scale={10.0 ** min(-math.floor(math.log10(size)), 300):g}"
    why = (
        "is far below eps: a step is that small a part of lr"
        if name == BELOW_EPS
        else f"has a square that is nothing in {dtype}: the second moment stays 0"
    )
    wanted = f"{scale} would help" if eps is None else f"eps={eps:g} would help, or {scale}"
    return f"the gradient's largest magnitude, {size:.3g}, {why}; {wanted}"


def _scaled(largest: float, scalars: Mapping[str, float]) -> float:
    size = largest * abs(scalars.get("sign", 1.0))
    return min(size, scalars["clip"]) if "clip" in scalars else size
