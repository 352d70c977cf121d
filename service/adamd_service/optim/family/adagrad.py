"""Adagrad."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer


def adagrad(
    p: Operand,
    g: Operand,
    s: Operand,
    /,
    wd: Operand,
    step_size: Operand,
    eps: Operand,
    zero: Operand,
    *,
    coupled: bool,
) -> tuple[Operand, ...]:
    r"""Adagrad as `torch.optim.Adagrad` has it.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        s_t = s_{t-1} + g_t^2
        p_t = p_{t-1} - lr / (1 + (t - 1) lr_decay) * g_t / (sqrt(s_t) + eps)

    s begins as `initial_accumulator_value`. Sources: Duchi, Hazan & Singer 2011, JMLR 12:2121, figure 1 with diagonal
    matrices; lr_decay and eps as in `torch.optim.Adagrad` of torch 2.13. optax adds eps under the root.

    Arrays: as `adam.adam`, s is the sum of squares. s never falls, so that a subnormal one stays as it is: were it made
    0, small gradients would never add up. Where d is 0 (eps may be) the quotient is 0. Returns the new (p, s).
    """
    if coupled:
        g = g + wd * p
    s = s + g * g
    d = sqrt(s) + eps
    q = where(d == zero, zero, g / d)
    p = p - step_size * q
    return p, s


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    step_size = hyper.lr / (1.0 + (t - 1) * hyper.lr_decay)
    return {"wd": hyper.weight_decay, "step_size": step_size, "eps": hyper.eps}, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return ("sum",)


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {"coupled": scalars["wd"] != 0.0}


ADAGRAD: Final = Optimizer(
    name="adagrad",
    text=adagrad,
    arrays=(("s", "sum"),),
    settings={"lr": 0.01, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
    present=_present,
    scalars=_scalars,
    choices=_choices,
    begins={"sum": "initial_accumulator_value"},
    nonnegative=("sum",),
)
