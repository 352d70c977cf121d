"""Adam, AdamW and AMSGrad."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from numpy import sqrt, where

from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer


def adam(
    p: Operand,
    g: Operand,
    m: Operand,
    v: Operand,
    v_max: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    b2: Operand,
    one_minus_b2: Operand,
    wd: Operand,
    decay: Operand,
    step_size: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
    amsgrad: bool,
) -> tuple[Operand, ...]:
    r"""Adam, AdamW and AMSGrad, with eps outside the square root and bias correction, as `torch.optim.Adam` has it.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2,          v_max_t = max(v_max_{t-1}, v_t)
        p_t = (1 - lr wd) p_{t-1} - lr / (1 - b1^t) * m_t / (sqrt(v_t or v_max_t) / sqrt(1 - b2^t) + eps)

    Sources: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2
    (`decay` = 1 - lr wd, 1 for Adam); Reddi et al. 2018, arXiv:1904.09237, algorithm 2 (`v_max`, over the uncorrected v
    as torch takes it).

    Arrays: p parameters, g gradient, m and v moments, v_max (unused without `amsgrad`), all of one shape and of the
    session's dtype. Scalars: of the same dtype, see `scalars`; `tiny` is its smallest normal number: m and v
    below it become +0, because idle parameters reach subnormals, where a CPU crawls and GPU builds flush. Where d is 0
    (eps may be) the quotient is 0. `coupled` is off where wd is 0, so that g stays g: adding 0*p would turn -0 into +0
    and an infinite p into NaN.

    Returns the new (p, m, v, v_max). Raises nothing: NaN and infinity pass through and are the caller's to see.
    """
    if coupled:
        g = g + wd * p
    p = decay * p
    m = b1 * m + one_minus_b1 * g
    v = b2 * v + one_minus_b2 * (g * g)
    m = where((-tiny < m) & (m < tiny), zero, m)
    v = where(v < tiny, zero, v)
    s = v
    if amsgrad:
        v_max = where(v > v_max, v, v_max)
        s = v_max
    d = sqrt(s) / sqrt_bc2 + eps
    q = where(d == zero, zero, m / d)
    p = p - step_size * q
    return p, m, v, v_max


def scalars(hyper: Hyper, t: int, decoupled: bool) -> dict[str, float]:
    """The scalars of update t. Sources as the text's; `decoupled` tells AdamW from Adam.

        step_size = lr / (1 - b1^t),                      sqrt_bc2 = sqrt(1 - b2^t)      eps_form "outside"
        step_size = lr sqrt(1 - b2^t) / (1 - b1^t),       sqrt_bc2 = 1                   eps_form "hat"
        step_size = lr,                                   sqrt_bc2 = 1                   without bias correction

    "hat" is Keras' and TensorFlow's epsilon hat: Kingma & Ba 2015, the end of section 2.
    """
    b1, b2 = hyper.betas
    step_size, sqrt_bc2 = hyper.lr, 1.0
    if hyper.bias_correction:
        step_size, sqrt_bc2 = hyper.lr / (1.0 - b1**t), math.sqrt(1.0 - b2**t)
        if hyper.eps_form == "hat":
            step_size, sqrt_bc2 = hyper.lr * sqrt_bc2 / (1.0 - b1**t), 1.0
    return {
        "b1": b1,
        "one_minus_b1": 1.0 - b1,
        "b2": b2,
        "one_minus_b2": 1.0 - b2,
        "wd": 0.0 if decoupled else hyper.weight_decay,
        "decay": 1.0 - hyper.lr * hyper.weight_decay if decoupled else 1.0,
        "step_size": step_size,
        "sqrt_bc2": sqrt_bc2,
        "eps": hyper.eps,
    }


def _coupled(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    return scalars(hyper, t, decoupled=False), {}


def _decoupled(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    return scalars(hyper, t, decoupled=True), {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if hyper.amsgrad else ("exp_avg", "exp_avg_sq")


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"coupled": scalars["wd"] != 0.0, "amsgrad": "max_exp_avg_sq" in arrays}


SETTINGS: Final[Mapping[str, Any]] = {
    "lr": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "eps_form": "outside",
    "bias_correction": True,
}
ADAM: Final = Optimizer(
    name="adam",
    text=adam,
    arrays=(("m", "exp_avg"), ("v", "exp_avg_sq"), ("v_max", "max_exp_avg_sq")),
    settings=SETTINGS,
    present=_present,
    scalars=_coupled,
    choices=_choices,
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
ADAMW: Final = replace(ADAM, name="adamw", settings={**SETTINGS, "weight_decay": 0.01}, scalars=_decoupled)
