"""Computes a step's two factors before the commit: the schedule's of lr, and that of clip_norm. Both are recorded."""

from typing import Any

import numpy as np

from adamd.errors import BadGradient
from adamd.wire.dtypes import SLICE
from adamd_service.optim.family import Hyper
from adamd_service.optim.gradients.encoded import Encoded
from adamd_service.optim.gradients.norm import clip_factor, gradient_norm
from adamd_service.optim.recurrence.wrapping import AtStep
from adamd_service.optim.schedules import factor
from adamd_service.optim.settings import Settings


def at_step(settings: Settings, number: int, gradient: Encoded, dtype: np.dtype[Any]) -> AtStep:
    """The schedule's factor at step `number` (from 1), and the factor that clips the scaled gradient's norm.

    gradient: complete and checked. dtype: the session's. Without a norm to clip, and without a scale above 1, the
    gradient is not looked at. Raises BadGradient where the scaled gradient has no norm in float64, or an element of it
    a square that overflows.
    """
    hyper = settings.hyper
    lr_factor, clipped = _lr_factor(hyper, number), 1.0
    if hyper.clip_norm or hyper.gradient_scale > 1.0:
        norm = hyper.gradient_scale * gradient_norm(gradient, dtype)
        if hyper.clip_norm:
            if not np.isfinite(norm):
                raise BadGradient("the norm of the scaled gradient is beyond float64. The step is not counted.")
            clipped = clip_factor(norm, hyper.clip_norm)
            if hyper.gradient_scale * clipped < np.finfo(dtype).smallest_normal:
                raise BadGradient(
                    f"the norm of the scaled gradient is {norm:g}: clipped to {hyper.clip_norm:g}, nothing is left of "
                    f"it in {dtype}. The step is not counted."
                )
        if hyper.gradient_scale > 1.0:
            _check_scaled(gradient, hyper.gradient_scale * clipped, norm * clipped, dtype)
    return AtStep(lr_factor, clipped)


def lr_at(settings: Settings, number: int) -> float:
    """The lr of step `number` (from 1), for tensors of no group."""
    return settings.hyper.lr * _lr_factor(settings.hyper, number)


def _lr_factor(hyper: Hyper, number: int) -> float:
    return 1.0 if hyper.schedule is None else factor(hyper.schedule, number)


def _check_scaled(gradient: Encoded, scale: float, norm: float, dtype: np.dtype[Any]) -> None:
    """Raise BadGradient with the index of the first element whose scaled square overflows in `dtype`.

    `norm` is the scaled gradient's: no element is larger, so in nearly every step nothing is looked at.
    """
    most = float(np.sqrt(np.finfo(dtype).max)) * (1.0 - 2.0**-20)  # below it no rounding leads beyond
    if norm < most:
        return
    into = np.empty(min(SLICE, gradient.size), dtype)
    for start in range(0, gradient.size, SLICE):
        part = gradient.part(start, min(start + SLICE, gradient.size), into)
        bad = np.abs(part) * scale >= most
        if bad.any():
            index = start + int(bad.argmax())
            raise BadGradient(
                f"element {index} of the gradient is {part[index - start]}; times {scale:g} (gradient_scale) its "
                f"square overflows {dtype}. The step is not counted.",
                index=index,
            )
