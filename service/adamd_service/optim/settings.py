"""An optimizer's settings: parsed strictly, merged, resolved for one tensor.

Every refusal is a SettingsError that names the place (`groups[0].lr`), what came and what is wanted, so that transports
only pass it on.
"""

import difflib
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

NUMBER = "a finite number, 0 or more"
BETA = "a finite number, 0 or more and below 1"
SWITCH = "true or false"
WANTED = {
    "name": '"adam" or "adamw"',
    "lr": NUMBER,
    "betas": f"a list of two numbers, each {BETA}",
    "eps": NUMBER,
    "weight_decay": NUMBER,
    "amsgrad": SWITCH,
    "maximize": SWITCH,
    "groups": 'a list of objects such as {"tensors": ["w"], "lr": 0.01}',
    "tensors": "a list of tensor names",
}
# What the same thing is called elsewhere (Keras, TensorFlow, optax, the papers); compared without case, "_" and "-".
ALIASES = {
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
}


class SettingsError(ValueError):
    """Settings that are refused. path: the place, as `groups[0].lr`, "" for the whole; message: what came and what is
    wanted.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        number = float(value) + 0.0  # -0 becomes +0: two spellings of one setting must not differ in the digest
    except OverflowError:
        raise ValueError("too large") from None
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _listed(value: object) -> object:
    """JSON has lists where the frozen models have tuples; nothing else is let through."""
    return tuple(value) if isinstance(value, list) else value


Number: TypeAlias = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Beta: TypeAlias = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Betas: TypeAlias = Annotated[tuple[Beta, Beta], BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def _present(value: object) -> object:
    # JavaScript writes NaN as null: were null the same as absent, a NaN would silently become the default.
    if value is None:
        raise ValueError("null")
    return value


class Group(_Strict):
    """Overrides for some tensors; None is "as the session has it"."""

    tensors: Annotated[tuple[str, ...], BeforeValidator(_listed)]
    lr: Annotated[Number | None, BeforeValidator(_present)] = None
    betas: Annotated[Betas | None, BeforeValidator(_present)] = None
    eps: Annotated[Number | None, BeforeValidator(_present)] = None
    weight_decay: Annotated[Number | None, BeforeValidator(_present)] = None
    maximize: Annotated[bool | None, BeforeValidator(_present)] = None


def _default_weight_decay(earlier: dict[str, Any]) -> float:
    return 0.01 if earlier.get("name") == "adamw" else 0.0


class Settings(_Strict):
    """The settings of a session; the defaults are torch's."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Number = 0.001
    betas: Betas = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = Field(default_factory=_default_weight_decay)
    amsgrad: bool = False
    maximize: bool = False
    groups: Annotated[tuple[Group, ...], BeforeValidator(_listed)] = ()


class Hyper(NamedTuple):
    """What counts for one tensor. decoupled: weight decay acts on the parameter (AdamW), not on the gradient."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    maximize: bool
    decoupled: bool


def parse_settings(raw: object) -> Settings:
    """Settings from decoded JSON. Raises SettingsError at the first thing that is wrong."""
    _require_object(raw)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    # An unknown key is told first: its cause (a misspelling) often explains the other complaints.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    raise _explain(first["loc"], first["type"], first["input"])


def merge_settings(current: Settings, patch: object) -> Settings:
    """`current` with the keys of `patch` replaced (`groups` as a whole). An empty patch changes nothing.

    Raises SettingsError for what parse_settings refuses, and for another name or amsgrad: they decide which arrays the
    state has.
    """
    _require_object(patch)
    assert isinstance(patch, dict)
    merged = parse_settings({**to_json(current), **patch})
    if merged.name != current.name:
        raise SettingsError(
            "name", f"name is {_shown(merged.name)}; this session runs {current.name}, fixed when it was created"
        )
    if merged.amsgrad != current.amsgrad:
        wanted = str(current.amsgrad).lower()
        raise SettingsError(
            "amsgrad", f"amsgrad is {_shown(merged.amsgrad)}; this session has {wanted}, fixed when it was created"
        )
    return merged


def check_groups(settings: Settings, names: Sequence[str]) -> None:
    """Raise SettingsError where a group names a tensor that is not in `names`, or that another group (or the same) has
    named.
    """
    known = frozenset(names)
    taken: dict[str, str] = {}
    for index, group in enumerate(settings.groups):
        if not group.tensors:  # any number of them would fit into a head that is written with every step
            raise SettingsError(
                f"groups[{index}].tensors", f"groups[{index}].tensors is empty; wanted at least one tensor name"
            )
        for place, tensor in enumerate(group.tensors):
            path = f"groups[{index}].tensors[{place}]"
            if tensor not in known:
                nearest = difflib.get_close_matches(tensor[:256], names[:1000], n=1)
                hint = (
                    f"did you mean {_shown(nearest[0])}?"
                    if nearest
                    else f"wanted one of the layout's {len(known)} tensors"
                )
                raise SettingsError(path, f"{path} is {_shown(tensor)}, which the layout does not have; {hint}")
            if tensor in taken:
                raise SettingsError(
                    path,
                    f"{path} is {_shown(tensor)}, already at {taken[tensor]}; wanted each tensor in one group at most",
                )
            taken[tensor] = path


def resolve(settings: Settings, tensor: str) -> Hyper:
    """What counts for `tensor`: its group's overrides, else the session's settings."""
    return resolve_group(settings, next((group for group in settings.groups if tensor in group.tensors), None))


def resolve_group(settings: Settings, group: Group | None) -> Hyper:
    """What counts for the tensors of `group`, or of no group (None)."""
    over = {name: value for name in Hyper._fields if (value := getattr(group, name, None)) is not None}
    base = {name: getattr(settings, name) for name in Hyper._fields if name != "decoupled"}
    return Hyper(**{**base, **over}, decoupled=settings.name == "adamw")


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, complete: parse_settings(to_json(s)) == s."""
    return settings.model_dump(mode="json", exclude_none=True)


def _require_object(raw: object) -> None:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise _explain((), "object", raw)


def _explain(place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    path = _path(place)
    in_group = len(place) > 1 and place[0] == "groups"
    if kind == "extra_forbidden":
        return SettingsError(path, f"unknown setting {path}; {_nearest(str(place[-1]), in_group)}")
    if kind == "missing" and isinstance(place[-1], int):  # a list that is too short: told as a whole
        return _explain(place[:-1], "too_short", came)
    if kind == "missing":
        return SettingsError(path, f"{path} is missing; wanted {WANTED[str(place[-1])]}")
    subject = f"{path} is" if path else "the settings are"
    return SettingsError(path, f"{subject} {_shown(came)}; wanted {_wanted(place)}")


def _wanted(place: tuple[int | str, ...]) -> str:
    match place:
        case ():
            return 'an object such as {"name": "adam", "lr": 0.001}'
        case (*_, "betas", int()):
            return BETA
        case (*_, "tensors", int()):
            return "a tensor name"
        case ("groups", int()):
            return 'an object such as {"tensors": ["w"], "lr": 0.01}'
    return WANTED.get(str(place[-1]), "an object whose keys are names")


def _nearest(key: str, in_group: bool) -> str:
    """What an unknown key probably meant. Keys of the other level are told apart from unknown ones."""
    known = list(Group.model_fields if in_group else Settings.model_fields)
    if in_group and key in Settings.model_fields:
        return f"{key} is for the whole session, outside the groups"
    guess = ALIASES.get(key.lower().replace("_", "").replace("-", ""))
    if guess not in known:
        guess = next(iter(difflib.get_close_matches(key.lower()[:64], known, n=1)), None)
    return f"did you mean {guess}?" if guess else f"known are {', '.join(known)}"


def _path(place: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in place]
    # A lone surrogate, which JSON can spell, could not be written into the answer.
    return "".join(parts).removeprefix(".").encode(errors="backslashreplace").decode()


def _shown(value: object) -> str:
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
