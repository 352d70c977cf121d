"""Lion: the sign of a moving average."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import where

from adamd_service.optim.family.moments import averages
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import INF, Hyper, Optimizer, Scalar


def lion(
    p: Operand,
    g: Operand,
    m: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    b2: Operand,
    one_minus_b2: Operand,
    step_decay: Operand,
    step_size: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    decays: bool,
) -> tuple[Operand, ...]:
    r"""Lion as `optax.lion` has it; its weight decay is decoupled, and multiplied with lr.

        c_t = b1 m_{t-1} + (1 - b1) g_t
        m_t = b2 m_{t-1} + (1 - b2) g_t
        p_t = p_{t-1} - lr (sign(c_t) + weight_decay p_{t-1})

    Sources: Chen et al. 2023, arXiv:2302.06675, algorithm 2; `optax.lion` 0.2.8, for the defaults of betas and
    weight_decay. lr (optax asks for one) is 1e-4, that of the authors' own implementation.

    Arrays: as `adam.adam`; m below `tiny` becomes +0, and sign(±0) is 0. step_decay: lr*weight_decay; `decays` is off
    where it is 0. Returns the new (p, m).
    """
    c = b1 * m + one_minus_b1 * g
    m = b2 * m + one_minus_b2 * g
    m = where((-tiny < m) & (m < tiny), zero, m)
    u = where(c > zero, step_size, where(c < zero, -step_size, zero))
    if decays:
        u = u + step_decay * p
    p = p - u
    return p, m


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    return {**averages(hyper), "step_decay": hyper.lr * hyper.weight_decay, "step_size": hyper.lr}, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return ("exp_avg",)


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"decays": scalars["step_decay"] != 0.0}


LION: Final = Optimizer(
    name="lion",
    text=lion,
    arrays=(("m", "exp_avg"),),
    settings={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-3},
    present=_present,
    scalars=_scalars,
    choices=_choices,
    schema={"step_decay": Scalar(0.0, INF, "weight_decay", "lr*weight_decay")},
)
