"""Schedule-free AdamW: averaging in the place of a learning rate schedule."""

import math
import sys
from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import INF, Average, Hyper, Optimizer, Scalar

LARGEST: Final = sys.float_info.max


def schedule_free_adamw(
    p: Operand,
    g: Operand,
    z: Operand,
    v: Operand,
    /,
    b2: Operand,
    one_minus_b2: Operand,
    wd: Operand,
    average: Operand,
    y_step: Operand,
    step_size: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    decays: bool,
) -> tuple[Operand, ...]:
    r"""Schedule-free AdamW as the authors' package `schedulefree` 1.4 has it, in its form without x.

        lr_t = lr min(1, t / warmup_steps),       weight_t = t^r max(lr_1…lr_t)^weight_lr_power
        c_t = weight_t / (weight_1 + … + weight_t)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        q_t = g_t / (sqrt(v_t) / sqrt(1 - b2^t) + eps) + weight_decay y_{t-1}
        y_t = y_{t-1} + c_t (z_{t-1} - y_{t-1}) - lr_t (1 - b1 (1 - c_t)) q_t
        z_t = z_{t-1} - lr_t q_t

    Sources: Defazio et al. 2024, "The road less scheduled", arXiv:2405.15682, equations 3 to 5 and algorithm 1; the
    weights, warm-up and bias correction as in `schedulefree.AdamWScheduleFree` 1.4.1.

    p is y: the session's parameters are those that gradients are taken at. The parameters to evaluate, and to keep at
    the end, are the average x_t = (1 - c_t) x_{t-1} + c_t z_t, which y = (1 - b1) z + b1 x gives: `averaged`,
    `GET …/parameters?at=average`.

    Arrays: as `adam.adam`; z begins as the parameters; v below `tiny` becomes +0. Scalars: average c_t, y_step
    lr_t (1 - b1 (1 - c_t)), step_size lr_t. Where d is 0 (eps may be) the quotient is 0; `decays` is off where wd is 0.
    Returns the new (p, z, v).
    """
    v = b2 * v + one_minus_b2 * (g * g)
    v = where(v < tiny, zero, v)
    d = sqrt(v) / sqrt_bc2 + eps
    q = where(d == zero, zero, g / d)
    if decays:
        q = q + wd * p
    p = p + average * (z - p)
    p = p - y_step * q
    z = z - step_size * q
    return p, z, v


def averaged(p: Operand, z: Operand, /, weight: Operand) -> tuple[Operand, ...]:
    r"""The average, from the parameters y and z; weight is 1 - 1/b1.

        x = y + (1 - 1/b1) (z - y)

    Source: `schedulefree.AdamWScheduleFree.eval`. Returns (x,).
    """
    p = p + weight * (z - p)
    return (p,)


def _averaged_scalars(hyper: Hyper) -> dict[str, float]:
    b1 = hyper.betas[0]
    if b1 == 0.0:  # y is z, and x cannot be had from them
        raise ValueError("betas[0] is 0, so that the parameters hold nothing of their average; wanted more than 0")
    return {"weight": 1.0 - 1.0 / b1}


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """weight_sum and lr_max are carried: lr may change from update to update."""
    b1, b2 = hyper.betas
    lr = hyper.lr * (t / hyper.warmup_steps) if t < hyper.warmup_steps else hyper.lr
    lr_max = max(lr, carried["lr_max"])
    weight = min(_power(float(t), hyper.r) * _power(lr_max, hyper.weight_lr_power), LARGEST)
    weight_sum = min(carried["weight_sum"] + weight, LARGEST)
    average = weight / weight_sum if weight_sum > 0.0 else 0.0
    made = {
        "b2": b2,
        "one_minus_b2": 1.0 - b2,
        "wd": hyper.weight_decay,
        "average": average,
        "y_step": lr * (1.0 - b1 * (1.0 - average)),
        "step_size": lr,
        "sqrt_bc2": math.sqrt(1.0 - b2**t),
        "eps": hyper.eps,
    }
    return made, {"weight_sum": weight_sum, "lr_max": lr_max}


def _power(base: float, exponent: float) -> float:
    """base**exponent for base and exponent of 0 or more; the largest float64 where it would be more."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return LARGEST


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "z", "exp_avg_sq"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"decays": scalars["wd"] != 0.0}


SCHEDULE_FREE_ADAMW: Final = Optimizer(
    name="schedule_free_adamw",
    text=schedule_free_adamw,
    arrays=(("z", "z"), ("v", "exp_avg_sq")),
    settings={
        "lr": 0.0025,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
    },
    present=_present,
    scalars=_scalars,
    choices=_choices,
    begins={"z": "params"},
    carried={"weight_sum": 0.0, "lr_max": 0.0},
    nonnegative=("exp_avg_sq",),
    schema={
        "average": Scalar(0.0, 1.0, "weight_lr_power", "the average's newest weight"),
        "y_step": Scalar(0.0, INF, "lr", "the step size"),
    },
    average=Average(averaged, _averaged_scalars),
    why_not_lazy="schedule_free_adamw averages every parameter with every step",
)
