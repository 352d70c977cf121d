"""Stochastic gradient descent, with momentum, dampening and Nesterov's momentum."""

from collections.abc import Collection, Mapping
from typing import Final

from numpy import where

from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import INF, Hyper, Optimizer, Scalar


def sgd(
    p: Operand,
    g: Operand,
    buf: Operand,
    /,
    wd: Operand,
    momentum: Operand,
    gain: Operand,
    ahead: Operand,
    step_size: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
    heavy: bool,
    nesterov: bool,
) -> tuple[Operand, ...]:
    r"""SGD as `torch.optim.SGD` has it.

        g_t = g_t  (+ wd p_{t-1}, coupled)
        buf_t = momentum buf_{t-1} + (1 - dampening) g_t,       buf_1 = g_1            `heavy`
        p_t = p_{t-1} - lr g_t
        p_t = p_{t-1} - lr buf_t                                                       `heavy`
        p_t = p_{t-1} - lr (g_t + momentum buf_t)                                      `heavy` and `nesterov`

    Sources: Polyak 1964; Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning",
    equations 1 to 4, in the form of `torch.optim.SGD` in torch 2.13, where lr is outside of the momentum.

    Arrays: p, g; buf momentum_buffer (unused unless `heavy`), which becomes +0 below `tiny`. gain: 1 - dampening, and 1
    at a tensor's first update, where buf is 0, so that buf_1 is g_1. ahead: momentum where `nesterov`, else 0.
    `heavy` is a momentum that is not 0 now: where a scheduler brings it to 0, torch leaves buf alone until it is above
    0 again, and so does this. (torch begins buf with g at the first update whose momentum is not 0: where that is not
    the tensor's first, it differs from this if dampening is not 0.) Returns the new (p, buf).
    """
    if coupled:
        g = g + wd * p
    q = g
    if heavy:
        buf = momentum * buf + gain * g
        buf = where((-tiny < buf) & (buf < tiny), zero, buf)
        q = buf
        if nesterov:
            q = g + ahead * buf
    p = p - step_size * q
    return p, buf


def _scalars(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    return {
        "wd": hyper.weight_decay,
        "momentum": hyper.momentum,
        "gain": 1.0 if t == 1 else 1.0 - hyper.dampening,
        "ahead": hyper.momentum if hyper.nesterov else 0.0,
        "step_size": hyper.lr,
    }, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return ("momentum_buffer",) if hyper.momentum_buffer or hyper.momentum > 0.0 else ()


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {
        "coupled": scalars["wd"] != 0.0,
        "heavy": scalars["momentum"] != 0.0,
        "nesterov": scalars["ahead"] != 0.0,
    }


def _refuse(hyper: Hyper) -> tuple[str, str] | None:
    if hyper.nesterov and (not _present(hyper) or hyper.dampening != 0.0):
        return "nesterov", "it goes with a momentum above 0 and a dampening of 0"
    return None


SGD: Final = Optimizer(
    name="sgd",
    text=sgd,
    arrays=(("buf", "momentum_buffer"),),
    settings={"lr": 0.001, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    | {"momentum_buffer": False},
    present=_present,
    scalars=_scalars,
    choices=_choices,
    schema={
        "momentum": Scalar(0.0, INF, "momentum", "the momentum"),
        "gain": Scalar(-INF, INF, "dampening", "1 - dampening"),
        "ahead": Scalar(0.0, INF, "momentum", "Nesterov's momentum"),
    },
    refuse=_refuse,
)
