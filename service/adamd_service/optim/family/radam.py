"""RAdam: Adam that goes without its second moment while that knows too little."""

import math
from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.family.moments import averages, first_moment, second_moment, weight_decay
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer, Scalar


def radam(
    p: Operand,
    g: Operand,
    m: Operand,
    v: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    b2: Operand,
    one_minus_b2: Operand,
    wd: Operand,
    decay: Operand,
    step_size: Operand,
    rect: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
    rectified: bool,
) -> tuple[Operand, ...]:
    r"""RAdam as `torch.optim.RAdam` has it, with its weight decay coupled or not.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        m_t = b1 m_{t-1} + (1 - b1) g_t,          v_t = b2 v_{t-1} + (1 - b2) g_t^2
        rho_inf = 2 / (1 - b2) - 1,               rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        p_t = (1 - lr wd) p_{t-1} - lr / (1 - b1^t) * u_t
        u_t = r_t m_t / (sqrt(v_t) / sqrt(1 - b2^t) + eps)     where rho_t > 5, `rectified`
        u_t = m_t                                              where not

    Sources: Liu et al. 2020, arXiv:1908.03265, algorithm 2; `torch.optim.RAdam` in torch 2.13, for the threshold 5 (the
    paper's is 4) and for eps beside the uncorrected sqrt(v): so eps_form is "hat" unless told otherwise, and "outside"
    is optax's.

    Arrays, what becomes of small moments, the quotient where d is 0: as `adam.adam`. rect: r_t, in the form "hat" times
    sqrt(1 - b2^t), and 0 where the update is not rectified. Returns the new (p, m, v).
    """
    if coupled:
        g = g + wd * p
    p = decay * p
    m = b1 * m + one_minus_b1 * g
    v = b2 * v + one_minus_b2 * (g * g)
    m = where((-tiny < m) & (m < tiny), zero, m)
    v = where(v < tiny, zero, v)
    u = m
    if rectified:
        d = sqrt(v) / sqrt_bc2 + eps
        q = where(d == zero, zero, m / d)
        u = rect * q
    p = p - step_size * u
    return p, m, v


def rectification(b2: float, t: int) -> float:
    """r_t, and 0 while rho_t is 5 or less: then v has too few terms for its variance to be known."""
    power = b2**t
    rho_inf = 2.0 / (1.0 - b2) - 1.0
    rho_t = rho_inf - 2.0 * t * power / (1.0 - power)
    if rho_t <= 5.0:
        return 0.0
    square = (rho_t - 4.0) * (rho_t - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho_t)
    return min(1.0, math.sqrt(square))  # it is below 1, but for a rounding


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    factor, sqrt_bc2 = second_moment(hyper, t)
    made = {
        **averages(hyper),
        **weight_decay(hyper),
        "step_size": hyper.lr / first_moment(hyper, t),
        "rect": rectification(hyper.betas[1], t) * factor,
        "sqrt_bc2": sqrt_bc2,
        "eps": hyper.eps,
    }
    return made, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "exp_avg", "exp_avg_sq"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"coupled": scalars["wd"] != 0.0, "rectified": scalars["rect"] != 0.0}


RADAM: Final = Optimizer(
    name="radam",
    text=radam,
    arrays=(("m", "exp_avg"), ("v", "exp_avg_sq")),
    settings={
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
        "eps_form": "hat",
        "bias_correction": True,
    },
    present=_present,
    scalars=_scalars,
    choices=_choices,
    nonnegative=("exp_avg_sq",),
    schema={"rect": Scalar(0.0, 1.0, "betas", "the rectification")},
)
