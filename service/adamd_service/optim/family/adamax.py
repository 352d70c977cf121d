"""Adamax: Adam with the largest gradient of late in the second moment's place."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import where

from adamd_service.optim.family.moments import averages, first_moment
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer


def adamax(
    p: Operand,
    g: Operand,
    m: Operand,
    u: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    b2: Operand,
    wd: Operand,
    step_size: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
) -> tuple[Operand, ...]:
    r"""Adamax as `torch.optim.Adamax` and optax have it.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = max(b2 u_{t-1}, |g_t| + eps)
        p_t = p_{t-1} - lr / (1 - b1^t) * m_t / u_t

    Sources: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2; eps, which that has not, as in `torch.optim.Adamax` of
    torch 2.13 and `optax.adamax`.

    Arrays: as `adam.adam`, u is the infinity norm. m and u below `tiny` become +0; where u is 0 (eps may be) so is the
    quotient. Returns the new (p, m, u).
    """
    if coupled:
        g = g + wd * p
    m = b1 * m + one_minus_b1 * g
    m = where((-tiny < m) & (m < tiny), zero, m)
    a = where(g < zero, -g, g) + eps
    u = b2 * u
    u = where(a > u, a, u)
    u = where(u < tiny, zero, u)
    q = where(u == zero, zero, m / u)
    p = p - step_size * q
    return p, m, u


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    made = averages(hyper)
    del made["one_minus_b2"]  # a maximum has no second weight
    step_size = hyper.lr / first_moment(hyper, t)
    return {**made, "wd": hyper.weight_decay, "step_size": step_size, "eps": hyper.eps}, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "exp_avg", "exp_inf"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"coupled": scalars["wd"] != 0.0}


ADAMAX: Final = Optimizer(
    name="adamax",
    text=adamax,
    arrays=(("m", "exp_avg"), ("u", "exp_inf")),
    settings={"lr": 0.002, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "bias_correction": True},
    present=_present,
    scalars=_scalars,
    choices=_choices,
    nonnegative=("exp_inf",),
)
