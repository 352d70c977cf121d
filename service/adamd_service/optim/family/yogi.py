"""Yogi: Adam whose second moment moves towards the squared gradient by additions."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.family.moments import averages, first_moment, second_moment
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer


def yogi(
    p: Operand,
    g: Operand,
    m: Operand,
    v: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    one_minus_b2: Operand,
    step_size: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
) -> tuple[Operand, ...]:
    r"""Yogi as `optax.yogi` has it.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = v_{t-1} - (1 - b2) sign(v_{t-1} - g_t^2) g_t^2
        p_t = p_{t-1} - lr / (1 - b1^t) * m_t / (sqrt(v_t) / sqrt(1 - b2^t) + eps)

    Both moments begin as `initial_accumulator_value`. Sources: Zaheer et al. 2018, "Adaptive Methods for Nonconvex
    Optimization", algorithm 2; bias correction, eps beside the corrected root and the first values as in `optax.yogi`
    0.2.8. TensorFlow Addons' is eps_form "hat".

    Arrays, what becomes of small moments, the quotient where d is 0: as `adam.adam`. Returns the new (p, m, v).
    """
    m = b1 * m + one_minus_b1 * g
    m = where((-tiny < m) & (m < tiny), zero, m)
    s = g * g
    c = one_minus_b2 * s
    v = where(v > s, v - c, where(v < s, v + c, v))
    v = where(v < tiny, zero, v)
    d = sqrt(v) / sqrt_bc2 + eps
    q = where(d == zero, zero, m / d)
    p = p - step_size * q
    return p, m, v


def scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The scalars of update t, see `moments`; nothing is carried."""
    factor, sqrt_bc2 = second_moment(hyper, t)
    made = averages(hyper)
    del made["b2"]  # v is not multiplied by anything
    return {
        **made,
        "step_size": hyper.lr * factor / first_moment(hyper, t),
        "sqrt_bc2": sqrt_bc2,
        "eps": hyper.eps,
    }, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "exp_avg", "exp_avg_sq"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {}


YOGI: Final = Optimizer(
    name="yogi",
    text=yogi,
    arrays=(("m", "exp_avg"), ("v", "exp_avg_sq")),
    # optax asks for lr; 0.01 is the paper's and TensorFlow Addons'. The other defaults are optax's.
    settings={
        "lr": 0.01,
        "betas": (0.9, 0.999),
        "eps": 1e-3,
        "initial_accumulator_value": 1e-6,
        "eps_form": "outside",
        "bias_correction": True,
    },
    present=_present,
    scalars=scalars,
    choices=_choices,
    begins={"exp_avg": "initial_accumulator_value", "exp_avg_sq": "initial_accumulator_value"},
    nonnegative=("exp_avg_sq",),
)
