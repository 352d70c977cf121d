"""Around: the keyword arguments that all optimizers of the adapters share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypedDict

from adamd.sansio.gradient_encoding import Encoding, EncodingOptions


class Around(TypedDict, total=False):
    """Keyword arguments of every optimizer in `adamd.torch` and `adamd.optax`, beside its own.

    The settings among them are the session's, as `Client.create` has them; `Session.update` changes them later.

    Attributes:
        schedule: multiplies lr in each step, as ``{"name": "cosine", "total_steps": 1000}``. A scheduler of the
            framework's own changes lr itself; where there are both, they are multiplied.
        gradient_scale: what each gradient is multiplied by.
        clip_norm: the largest norm of a gradient over all tensors; 0 is off.
        clip_value: the largest magnitude of an element; 0 is off.
        lower: what parameters are at least: a number, or a dict of numbers and arrays by the tensors' names.
        upper: what they are at most.
        ema_decay: keeps the parameters' moving average, for `Session.parameters` with ``at="ema"``.
        stop: rules that say when to stop, as ``{"max_steps": 1000}``; `Session.stop` tells which one holds.
        keep_best: keeps the parameters of the lowest loss that steps told, for `Session.best`.
        encoding: how gradients travel: "raw", "float16", "bfloat16", "int8" or `adamd.TopK`.
        error_feedback: what such an encoding drops goes along with the next gradient; true by default.
        answer_dtype: what parameters are rounded to on their way here: "float16", "bfloat16" or "float32".

    """

    schedule: Mapping[str, Any]
    gradient_scale: float
    clip_norm: float
    clip_value: float
    lower: Any
    upper: Any
    ema_decay: float
    stop: Mapping[str, Any]
    keep_best: bool
    encoding: Encoding
    error_feedback: bool
    answer_dtype: str | None


TRAVEL = tuple(field.name for field in fields(EncodingOptions))
SETTINGS = tuple(name for name in Around.__annotations__ if name not in TRAVEL)


def split_options(keywords: Mapping[str, Any], who: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an adapter's keyword arguments into settings and encoding options.

    Raises:
        TypeError: there is no such argument.
        InvalidRequest, WrongDtype: there is no such encoding, or dtype.

    """
    unknown = next((name for name in keywords if name not in Around.__annotations__), None)
    if unknown is not None:
        raise TypeError(f"{who}() got an unexpected keyword argument {unknown!r}; known are {', '.join(SETTINGS)}")
    encoding_options = {name: keywords[name] for name in TRAVEL if name in keywords}
    EncodingOptions.of(**encoding_options)
    return {name: keywords[name] for name in SETTINGS if keywords.get(name) is not None}, encoding_options
