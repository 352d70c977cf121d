"""NAdam: Adam whose step looks ahead by Nesterov's momentum."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.family.moments import averages, second_moment, weight_decay
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import INF, Hyper, Optimizer, Scalar


def nadam(
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
    g_step: Operand,
    m_step: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
) -> tuple[Operand, ...]:
    r"""NAdam as `torch.optim.NAdam` has it, with its weight decay coupled or not.

        mu_t = b1 (1 - 0.96^(t momentum_decay) / 2)
        g_t = g_t  (+ wd p_{t-1}, coupled)
        m_t = b1 m_{t-1} + (1 - b1) g_t,          v_t = b2 v_{t-1} + (1 - b2) g_t^2
        d_t = sqrt(v_t) / sqrt(1 - b2^t) + eps
        p_t = (1 - lr wd) p_{t-1} - lr (1 - mu_t) / (1 - mu_1…mu_t) * g_t / d_t
                                  - lr mu_{t+1} / (1 - mu_1…mu_{t+1}) * m_t / d_t

    Sources: Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2, without its extra b2 before v, as
    `torch.optim.NAdam` in torch 2.13 has it. Two steps, one after the other, as torch takes them: one step of their sum
    would round p once less, and in float32 part from torch's by more than 1e-6 of the largest parameter in 100 steps.

    Arrays, what becomes of small moments, the quotients where d is 0: as `adam.adam`. g_step and m_step: the factors of
    g / d and m / d. Returns the new (p, m, v).
    """
    if coupled:
        g = g + wd * p
    p = decay * p
    m = b1 * m + one_minus_b1 * g
    v = b2 * v + one_minus_b2 * (g * g)
    m = where((-tiny < m) & (m < tiny), zero, m)
    v = where(v < tiny, zero, v)
    d = sqrt(v) / sqrt_bc2 + eps
    q = where(d == zero, zero, g / d)
    p = p - g_step * q
    q = where(d == zero, zero, m / d)
    p = p - m_step * q
    return p, m, v


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """mu_product is mu_1…mu_t, carried in float64 (betas may change between updates, so it is no function of t).

    Without bias correction the two denominators of the steps are 1.
    """
    b1 = hyper.betas[0]
    mu = b1 * (1.0 - 0.5 * 0.96 ** (t * hyper.momentum_decay))
    mu_next = b1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * hyper.momentum_decay))
    mu_product = carried["mu_product"] * mu
    factor, sqrt_bc2 = second_moment(hyper, t)
    made = {
        **averages(hyper),
        **weight_decay(hyper),
        "g_step": hyper.lr * factor * (1.0 - mu) / (1.0 - mu_product if hyper.bias_correction else 1.0),
        "m_step": hyper.lr * factor * mu_next / (1.0 - mu_product * mu_next if hyper.bias_correction else 1.0),
        "sqrt_bc2": sqrt_bc2,
        "eps": hyper.eps,
    }
    return made, {"mu_product": mu_product}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "exp_avg", "exp_avg_sq"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"coupled": scalars["wd"] != 0.0}


NADAM: Final = Optimizer(
    name="nadam",
    text=nadam,
    arrays=(("m", "exp_avg"), ("v", "exp_avg_sq")),
    settings={
        "lr": 0.002,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_decay": 0.004,
        "decoupled_weight_decay": False,
        "eps_form": "outside",
        "bias_correction": True,
    },
    present=_present,
    scalars=_scalars,
    choices=_choices,
    carried={"mu_product": 1.0},
    nonnegative=("exp_avg_sq",),
    schema={
        "g_step": Scalar(0.0, INF, "lr", "the gradient's step size"),
        "m_step": Scalar(0.0, INF, "lr", "the first moment's step size"),
    },
)
