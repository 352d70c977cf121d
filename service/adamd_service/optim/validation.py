"""Validates settings: the error for refused ones, its words, and the parsing that all settings share."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

# What the same thing is called elsewhere (Keras, TensorFlow, optax, the papers); compared without case, "_" and "-".
ALIASES: Final[Mapping[str, str]] = {
    "learningrate": "lr",
    "stepsize": "lr",
    "alpha": "lr",
    "eta": "lr",
    "beta": "betas",
    "beta1": "betas",
    "beta2": "betas",
    "b1": "betas",
    "b2": "betas",
    "epsilon": "eps",
    "tau": "eps",
    "l2": "weight_decay",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "lambda": "weight_decay",
    "ascent": "maximize",
    "optimizer": "name",
    "type": "name",
    "params": "tensors",
    "paramgroups": "groups",
    "parametergroups": "groups",
    "scheduler": "schedule",
    "lrscheduler": "schedule",
    "lrschedule": "schedule",
    "clip": "clip_norm",
    "maxnorm": "clip_norm",
    "maxgradnorm": "clip_norm",
    "clipgradnorm": "clip_norm",
    "clipnorm": "clip_norm",
    "clipgradvalue": "clip_value",
    "clipvalue": "clip_value",
    "ema": "ema_decay",
    "emamomentum": "ema_decay",
    "min": "lower",
    "minimum": "lower",
    "max": "upper",
    "maximum": "upper",
}


class SettingsError(ValueError):
    """Settings, a schedule, stop rules or bounds that are refused.

    Attributes:
        path: the place, as `groups[0].lr`; "" for the whole.
        message: what came and what is wanted.

    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


class Strict(BaseModel):
    """The base of the models that settings are parsed by."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def number(value: object) -> float:
    """Validate a finite number. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        result = float(value) + 0.0  # -0 becomes +0: two spellings of one setting must not differ in the digest
    except OverflowError:
        raise ValueError("too large") from None
    if not math.isfinite(result):
        raise ValueError("not finite")
    return result


def whole(value: object) -> object:
    """Return 4 for 4.0, because protobuf's objects have no integers; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def not_null(value: object) -> object:
    """Refuse null. JavaScript writes NaN as null, so a NaN would otherwise silently become the default."""
    if value is None:
        raise ValueError("null")
    return value


def first_error(error: ValidationError) -> tuple[tuple[int | str, ...], str, Any]:
    """Return place, kind and input of the first error.

    An unknown key goes first: its cause, a misspelling, often explains the other errors.
    """
    errors = error.errors(include_url=False, include_context=False)
    first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    return first["loc"], first["type"], first["input"]


def alias_of(key: str, aliases: Mapping[str, str]) -> str | None:
    """Return the name that another library's `key` stands for; None where it is not known."""
    return aliases.get(key.lower().replace("_", "").replace("-", ""))


def suggestion(key: str, known: Collection[str], aliases: Mapping[str, str], *, near_aliases: bool = False) -> str:
    """Return which known name the unknown `key` probably means, or else all of them.

    near_aliases: misspelled aliases are recognised too.
    """
    guess = alias_of(key, aliases)
    if guess not in known:
        words = {name: name for name in known}
        if near_aliases:
            words |= {alias: name for alias, name in aliases.items() if name in known}
        guess = words.get(next(iter(difflib.get_close_matches(key.lower()[:64], words, n=1)), ""))
    return f"did you mean {guess}?" if guess else f"known are {', '.join(known)}"


def shown(value: object) -> str:
    """Return at most 60 characters that show `value`."""
    if isinstance(value, dict | list | tuple):
        return f"a{'n object' if isinstance(value, dict) else ' list'} of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_of(value: object, known: Collection[str]) -> str:
    """Return words for a value that is none of the `known` names, with the nearest one and all of them."""
    word = value.lower()[:64] if isinstance(value, str) else ""
    near = [name for name in known if word and sorted(name) == sorted(word)]  # two letters changed their places
    near = near or difflib.get_close_matches(word, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"is {shown(value)}; {meant}wanted one of {', '.join(known)}"


def path_of(place: tuple[int | str, ...]) -> str:
    """Return a place as people write it: `groups[0].lr`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in place]
    # A lone surrogate, which JSON can spell, could not be written into the answer.
    return "".join(parts).removeprefix(".").encode(errors="backslashreplace").decode()
