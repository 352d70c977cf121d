"""Which steps the event loop makes itself: a hop to a thread and back costs as much as they do."""

from __future__ import annotations

from typing import Final

from adamd.wire.dtypes import ITEMSIZE
from adamd_service.engine.cache import Hot
from adamd_service.engine.step import Step
from adamd_service.optim import WARM

SMALL: Final = 512 * 1024  # bytes of a gradient, and of the parameters
TENSORS: Final = 64  # each may want an update, scalars and a place in the record of its own: 40 µs in Python
SAME_KERNEL: Final = {"lr", "schedule", "gradient_scale", "clip_norm"}  # settings whose change asks for no other kernel
OTHER_KERNEL: Final = {
    "clip_value",
    "lower",
    "upper",
    "ema_decay",
    "groups",
}  # and those that ask even Adam for another


def is_small(hot: Hot, step: Step) -> bool:
    """Say whether a step takes so little that the event loop may make it, and waits for no compiler."""
    if hot.head is None or may_compile(hot, step):
        return False
    spec = hot.head.spec  # by the whole vector: the answer has all of it, however few tensors the gradient names
    if len(spec.layout.tensors) > TENSORS:
        return False
    return max(spec.layout.size * ITEMSIZE[spec.dtype], step.reception.buffer.nbytes) <= SMALL


def may_compile(hot: Hot, step: Step) -> bool:
    """Say whether a step's settings may ask for a variant of the optimizer that was not compiled with the session."""
    if not step.settings or hot.settings is None or step.settings.keys() <= SAME_KERNEL:
        return False
    return hot.settings.optimizer.name not in WARM or not step.settings.keys().isdisjoint(OTHER_KERNEL)
