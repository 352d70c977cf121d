"""Words for settings that are refused: what came, and what it was probably meant to be."""

import difflib
from collections.abc import Collection, Mapping
from typing import Final

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


def shown(value: object) -> str:
    """An excerpt of what came, at most 60 characters of it."""
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
    """What came, that is none of these names, which of them it was probably meant to be, and all of them."""
    word = value.lower()[:64] if isinstance(value, str) else ""
    near = [name for name in known if word and sorted(name) == sorted(word)]  # two letters changed their places
    near = near or difflib.get_close_matches(word, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"is {shown(value)}; {meant}wanted one of {', '.join(known)}"


def path_of(place: tuple[int | str, ...]) -> str:
    """A place as people write it: `groups[0].lr`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in place]
    # A lone surrogate, which JSON can spell, could not be written into the answer.
    return "".join(parts).removeprefix(".").encode(errors="backslashreplace").decode()
