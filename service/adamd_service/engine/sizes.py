"""How many bytes things take, known before any of them exists (laws 6 and 7)."""

from __future__ import annotations

from adamd.errors import TooLarge
from adamd.wire.dtypes import ITEMSIZE, check_narrows
from adamd.wire.layout import Layout
from adamd_service.engine.calls import CreateCall, StepCall
from adamd_service.engine.limits import Limits
from adamd_service.optim import Settings, parse_settings
from adamd_service.records import Head, Spec

AROUND, AROUND_TENSOR = 128 * 1024, 1024  # bytes: head, ring, keys; a tensor's name, shape, place and count


def check_kept(call: CreateCall, settings: Settings, limits: Limits) -> None:
    """Raise TooLarge where this server keeps less in memory than a session that is to be made would take."""
    nbytes = state_bytes(call.layout, call.dtype, settings)
    limit = limits.memory_sessions if call.durability == "memory" else limits.hot
    if nbytes > limit:
        raise TooLarge(f"a state of {nbytes} bytes; this server keeps at most {limit} in memory")


def answer_bytes(spec: Spec, call: StepCall) -> int:
    """Return the bytes of the parameters that answer a step.

    Raises:
        TooLarge: they could not be sent: once the step is applied, that is too late.
        WrongDtype: they cannot have the dtype that was asked for.

    """
    nbytes = parameter_bytes(spec, call.answer_dtype)
    if call.answer_limit is not None and not call.minimal and nbytes > call.answer_limit:
        raise TooLarge(
            f"the answer has {nbytes} bytes; a single message takes at most {call.answer_limit}: use StepStream, "
            "or ask for no parameters"
        )
    return nbytes


def parameter_bytes(spec: Spec, answer_dtype: str | None) -> int:
    """Return the bytes of a session's parameters; raises WrongDtype where they cannot have that dtype."""
    if answer_dtype is not None:
        check_narrows(answer_dtype, spec.dtype)
    return spec.layout.size * ITEMSIZE[answer_dtype or spec.dtype]


def state_bytes(layout: Layout, dtype: str, settings: Settings) -> int:
    """Return what a session takes in memory: its arrays, or what surrounds them where that is more."""
    arrays = 1 + len(settings.arrays) + settings.keep_best  # the parameters, the optimizer's own, the best parameters
    return max(layout.size * ITEMSIZE[dtype] * arrays, AROUND + AROUND_TENSOR * len(layout.tensors))


def head_bytes(head: Head) -> int:
    """Return what the session of a head takes in memory."""
    return state_bytes(head.spec.layout, head.spec.dtype, parse_settings(head.settings))
