"""RMSprop, plain, centered, with momentum."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import sqrt, where

from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import ABOVE_0, INF, Hyper, Optimizer, Scalar


def rmsprop(
    p: Operand,
    g: Operand,
    v: Operand,
    a: Operand,
    buf: Operand,
    /,
    alpha: Operand,
    one_minus_alpha: Operand,
    wd: Operand,
    momentum: Operand,
    step_size: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
    centered: bool,
    heavy: bool,
) -> tuple[Operand, ...]:
    r"""RMSprop as `torch.optim.RMSprop` has it, with eps outside the square root.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        v_t = alpha v_{t-1} + (1 - alpha) g_t^2,          a_t = alpha a_{t-1} + (1 - alpha) g_t      centered
        q_t = g_t / (sqrt(v_t) + eps),                    q_t = g_t / (sqrt(v_t - a_t^2) + eps)      centered
        p_t = p_{t-1} - lr q_t
        p_t = p_{t-1} - lr buf_t,                         buf_t = momentum buf_{t-1} + q_t           `heavy`

    Sources: Tieleman & Hinton 2012, lecture 6.5 of "Neural networks for machine learning"; Graves 2013,
    arXiv:1308.0850, equations 38 to 45 (centered, momentum); eps and the order of momentum as in `torch.optim.RMSprop`
    of torch 2.13. optax has eps under the root unless its eps_in_sqrt is False.

    Arrays: as `adam.adam`; v square_avg, a grad_avg (unused unless `centered`), buf momentum_buffer (unused unless
    `heavy`, which is a momentum that is not 0 now, as in `sgd.sgd`), all of which become +0 below `tiny`. v - a^2 is a
    variance: where it is below 0 by a rounding it is 0, and torch has NaN. Where d is 0 (eps may be) the quotient is 0.
    Returns the new (p, v, a, buf).
    """
    if coupled:
        g = g + wd * p
    v = alpha * v + one_minus_alpha * (g * g)
    v = where(v < tiny, zero, v)
    s = v
    if centered:
        a = alpha * a + one_minus_alpha * g
        a = where((-tiny < a) & (a < tiny), zero, a)
        s = v - a * a
        s = where(s < zero, zero, s)
    d = sqrt(s) + eps
    q = where(d == zero, zero, g / d)
    if heavy:
        buf = momentum * buf + q
        buf = where((-tiny < buf) & (buf < tiny), zero, buf)
        q = buf
    p = p - step_size * q
    return p, v, a, buf


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    return {
        "alpha": hyper.alpha,
        "one_minus_alpha": 1.0 - hyper.alpha,
        "wd": hyper.weight_decay,
        "momentum": hyper.momentum,
        "step_size": hyper.lr,
        "eps": hyper.eps,
    }, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return (
        "square_avg",
        *(("grad_avg",) if hyper.centered else ()),
        *(("momentum_buffer",) if hyper.momentum_buffer or hyper.momentum > 0.0 else ()),
    )


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {
        "coupled": scalars["wd"] != 0.0,
        "centered": "grad_avg" in arrays,
        "heavy": scalars["momentum"] != 0.0,
    }


RMSPROP: Final = Optimizer(
    name="rmsprop",
    text=rmsprop,
    arrays=(("v", "square_avg"), ("a", "grad_avg"), ("buf", "momentum_buffer")),
    settings={
        "lr": 0.01,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "centered": False,
        "momentum_buffer": False,
    },
    present=_present,
    scalars=_scalars,
    choices=_choices,
    nonnegative=("square_avg",),
    schema={
        "alpha": Scalar(0.0, 1.0, "alpha", "alpha"),
        "one_minus_alpha": Scalar(ABOVE_0, 1.0, "alpha", "1 - alpha"),
        "momentum": Scalar(0.0, INF, "momentum", "the momentum"),
    },
)
