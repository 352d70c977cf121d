"""Clipping, gradient scale, bounds and averages: a prelude before each optimizer's recurrence, and a postlude after it.

Each part is a recurrence of its own. It is there where its scalars are among the recorded ones and its state arrays
among the session's, so that a replay decides alike, and a session without it runs the kernel of the bare text.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from numpy import where

from adamd_service.optim.recurrence.language import Operand, Text, signature
from adamd_service.optim.recurrence.optimizer import ABOVE_0, INF, Hyper, Scalar


class AtStep(NamedTuple):
    """What a step adds to its settings: the schedule's factor of lr, and that of clip_norm, of the gradient."""

    lr_factor: float = 1.0
    clip_factor: float = 1.0


def scale(g: Operand, /, sign: Operand) -> tuple[Operand, ...]:
    """G = sign g, where sign = (-1 if maximize else 1) gradient_scale clip_factor, rounded once; without them exact.

    clip_factor = min(1, clip_norm / (gradient_scale norm + 1e-6)),  `norm.gradient_norm` of all tensors present.
    Pascanu et al. 2013, arXiv:1211.5063, algorithm 1; torch.nn.utils.clip_grad_norm_.
    """
    g = sign * g
    return (g,)


def clip_by_value(g: Operand, /, clip: Operand) -> tuple[Operand, ...]:
    """G = max(-clip, min(g, clip)), after `scale`: torch.nn.utils.clip_grad_value_."""
    g = where(g > clip, clip, g)
    g = where(g < -clip, -clip, g)
    return (g,)


def bound_below(p: Operand, /, lower: Operand) -> tuple[Operand, ...]:
    """P = max(p, lower): projected gradient, as in Kingma & Ba's p_t followed by a projection onto the box."""
    p = where(p < lower, lower, p)
    return (p,)


def bound_above(p: Operand, /, upper: Operand) -> tuple[Operand, ...]:
    """P = min(p, upper)."""
    p = where(p > upper, upper, p)
    return (p,)


def bound_each_below(p: Operand, lowest: Operand, /) -> tuple[Operand, ...]:
    """P = max(p, lower), with a bound of its own for each element; -inf is none."""
    p = where(p < lowest, lowest, p)
    return (p,)


def bound_each_above(p: Operand, highest: Operand, /) -> tuple[Operand, ...]:
    """P = min(p, upper), with a bound of its own for each element; inf is none."""
    p = where(p > highest, highest, p)
    return (p,)


def average(
    p: Operand, ema: Operand, /, ema_decay: Operand, one_minus_ema: Operand, tiny: Operand, zero: Operand
) -> tuple[Operand, ...]:
    """Ema = ema_decay ema + (1 - ema_decay) p: Polyak & Juditsky 1992 in the form of optax.ema and
    torch.optim.swa_utils.get_ema_multi_avg_fn; it begins as the parameters, so there is nothing to debias.

    Below the smallest normal number it becomes +0, as the moments do.
    """
    ema = ema_decay * ema + one_minus_ema * p
    ema = where((-tiny < ema) & (ema < tiny), zero, ema)
    return (ema,)


PRELUDE: Final[tuple[Text, ...]] = (scale, clip_by_value)  # on g, in this order
POSTLUDE: Final[tuple[Text, ...]] = (  # on p, in this order
    bound_below,
    bound_above,
    bound_each_below,
    bound_each_above,
    average,
)
# State arrays that a postlude keeps: (name in its text, name of the state array).
ARRAYS: Final[tuple[tuple[str, str], ...]] = (("lowest", "lower"), ("highest", "upper"), ("ema", "ema"))
SURROUNDING: Final = tuple(name for _, name in ARRAYS)
BEGINS: Final[Mapping[str, str]] = {"ema": "params"}
BOUNDS: Final = "lower", "upper"  # arrays that never change
ARRAY: Final = "array"  # a bound that has a number for each element says so, in its setting's place
SCHEMA: Final[Mapping[str, Scalar]] = {
    "sign": Scalar(-INF, INF, "gradient_scale", "the gradient's factor"),
    "clip": Scalar(ABOVE_0, INF, "clip_value", "the largest magnitude"),
    "lower": Scalar(-INF, INF, "lower", "the lower bound"),
    "upper": Scalar(-INF, INF, "upper", "the upper bound"),
    "ema_decay": Scalar(0.0, 1.0, "ema_decay", "the average's decay"),
    "one_minus_ema": Scalar(ABOVE_0, 1.0, "ema_decay", "1 - ema_decay"),
}
REQUIRED: Final = ("sign",)  # scalars that every update has; the others come with their settings
LEAST: Final = "eps", "clip", "sign"  # where one is not 0, its dtype's smallest normal number is the least of them
# Every optimizer has these settings; their defaults change nothing (clip_norm, clip_value, ema_decay: 0 is off)
SETTINGS: Final[Mapping[str, Any]] = {
    "maximize": False,
    "schedule": None,
    "gradient_scale": 1.0,
    "clip_norm": 0.0,
    "clip_value": 0.0,
    "ema_decay": 0.0,
    "lower": None,
    "upper": None,
}
SESSION: Final = {"schedule", "gradient_scale", "clip_norm", "ema_decay"}  # not for a group of tensors


def scalars(hyper: Hyper, clip_factor: float) -> dict[str, float]:
    """The exact scalars of the parts that these settings ask for."""
    made = {"sign": (-1.0 if hyper.maximize else 1.0) * hyper.gradient_scale * clip_factor}
    if hyper.clip_value:
        made["clip"] = hyper.clip_value
    made |= {name: bound for name in BOUNDS if isinstance(bound := getattr(hyper, name), float)}
    if hyper.ema_decay:
        made |= {"ema_decay": hyper.ema_decay, "one_minus_ema": 1.0 - hyper.ema_decay}
    return made


def present(hyper: Hyper) -> tuple[str, ...]:
    """The state arrays, in ARRAYS' order, that these settings ask for."""
    there = {"lower": hyper.lower == ARRAY, "upper": hyper.upper == ARRAY, "ema": hyper.ema_decay > 0.0}
    return tuple(name for _, name in ARRAYS if there[name])


def refused(hyper: Hyper, *, averaged: bool) -> tuple[str, str] | None:
    """The setting that does not fit to another, and what is wanted; None where all do.

    averaged: the optimizer's parameters are not those to evaluate, but a mixture from which these are computed back; to
    bound the mixture would falsify them.
    """
    lower, upper = hyper.lower, hyper.upper
    for name in BOUNDS:
        if averaged and getattr(hyper, name) is not None:
            return name, "wanted no bounds with this optimizer, whose average is computed back from its parameters"
    if isinstance(lower, float) and isinstance(upper, float) and lower > upper:
        return "lower", f"wanted at most upper, which is {upper!r}"
    return None


def parts(texts: tuple[Text, ...], scalars: Collection[str], arrays: Collection[str]) -> tuple[Text, ...]:
    """Those of `texts` for which everything is there. scalars: names recorded; arrays: names in the texts."""
    known = {"p", "g", "tiny", "zero", *scalars, *arrays}
    return tuple(
        text for text in texts if known.issuperset(signature(text).arrays) and known.issuperset(signature(text).scalars)
    )
