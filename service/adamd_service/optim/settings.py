"""An optimizer's settings: parsed strictly by what that optimizer has, merged, resolved for one tensor.

Every refusal is a SettingsError that names the place (`groups[0].lr`), what came and what is wanted, so that transports
only pass it on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, ValidationError, create_model

from adamd.wire import patterns, setting_aliases
from adamd.wire.patterns import GroupsError, Places, places
from adamd.wire.setting_aliases import AliasError
from adamd_service.optim.family import FAMILY, Hyper, Optimizer
from adamd_service.optim.monitoring.stop_rules import Stop, parse_stop
from adamd_service.optim.recurrence import wrapping
from adamd_service.optim.schedules import Constant, Schedule, parse_schedule
from adamd_service.optim.validation import (
    ALIASES,
    SettingsError,
    Strict,
    alias_of,
    first_error,
    not_null,
    number,
    one_of,
    path_of,
    shown,
    suggestion,
    whole,
)

NUMBER = "a finite number, 0 or more"
BETA = "a finite number, 0 or more and below 1"
SWITCH = "true or false"
WHOLE = "a whole number, 0 or more"
BOUND = "a finite number, null (none), or at creation one for each element, by tensor"


def _bound(value: object) -> object:
    """No number means "off" here, as 0 does for a clip: JSON has no infinity, and JavaScript writes it as null."""
    return value if value is None or value == wrapping.ARRAY else number(value)


def _schedule(value: object) -> Schedule | None:
    made = parse_schedule(value)
    return None if made == Constant() else made


def _listed(value: object) -> object:
    """JSON has lists where the frozen models have tuples; nothing else is let through."""
    return tuple(value) if isinstance(value, list) else value


Number: TypeAlias = Annotated[float, BeforeValidator(number), Field(ge=0)]
Beta: TypeAlias = Annotated[float, BeforeValidator(number), Field(ge=0, lt=1)]
Count: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=2**53)]
Bound: TypeAlias = Annotated[float | Literal["array"] | None, BeforeValidator(_bound)]
Betas: TypeAlias = Annotated[tuple[Beta, Beta], BeforeValidator(_listed)]


# What each setting of the family may be: its type, and the words for it.
KINDS: Final[Mapping[str, tuple[Any, str]]] = {
    "lr": (Number, NUMBER),
    "betas": (Betas, f"a list of two numbers, each {BETA}"),
    "eps": (Number, NUMBER),
    "weight_decay": (Number, NUMBER),
    "decoupled_weight_decay": (bool, SWITCH),
    "amsgrad": (bool, SWITCH),
    "eps_form": (Literal["outside", "hat"], '"outside" (torch, optax) or "hat" (Keras, TensorFlow)'),
    "bias_correction": (bool, SWITCH),
    "form": (Literal["paper", "torch", "flower"], '"paper", "torch" or "flower", whose arithmetic it is'),
    "momentum": (Number, NUMBER),
    "momentum_buffer": (bool, SWITCH),
    "dampening": (Number, NUMBER),
    "nesterov": (bool, SWITCH),
    "alpha": (Beta, BETA),
    "centered": (bool, SWITCH),
    "momentum_decay": (Number, NUMBER),
    "lr_decay": (Number, NUMBER),
    "initial_accumulator_value": (Number, NUMBER),
    "warmup_steps": (Count, WHOLE),
    "r": (Number, NUMBER),
    "weight_lr_power": (Number, NUMBER),
    "maximize": (bool, SWITCH),
    "schedule": (Annotated[Any, PlainValidator(_schedule)], 'an object such as {"name": "cosine", …}'),
    "gradient_scale": (Annotated[Number, Field(gt=0)], "a finite number above 0"),
    "clip_norm": (Number, f"{NUMBER}; 0 is off"),
    "clip_value": (Number, f"{NUMBER}; 0 is off"),
    "ema_decay": (Beta, f"{BETA}; 0 is off"),
    "lower": (Bound, BOUND),
    "upper": (Bound, BOUND),
}
WANTED: Final[Mapping[str, str]] = {
    **{name: wanted for name, (_, wanted) in KINDS.items()},
    "groups": 'a list of objects such as {"tensors": ["w"], "lr": 0.01}',
    "tensors": "a list of tensor names, or patterns of them",
    "keep_best": SWITCH,
    "stop": 'an object such as {"max_steps": 1000}',
}
BUFFER: Final = "momentum_buffer"  # there is this array: if left out, where a momentum is above 0 at the creation
COMMON: Final[Mapping[str, Any]] = {"lr": 0.001}  # the default of every optimizer that says no other
# For the session as a whole: its arrays and its bits depend on them.
SESSION: Final = {
    *("name", "groups", "amsgrad", "centered", "form", "initial_accumulator_value", BUFFER),
    *wrapping.SESSION,
}
GROUPED: Final = frozenset(KINDS) - SESSION  # what a group may have of its own
# adamd's own, beside torch's: told only where they are not as torch would have it.
QUIET: Final = {"eps_form", "bias_correction", *wrapping.SETTINGS} - {"maximize"}


# What every session has beside its updates; told only where it is not so.
BESIDE: Final[Mapping[str, Any]] = {"stop": Stop(), "keep_best": False}


@dataclass(frozen=True, slots=True)
class Group:
    """Some tensors with settings of their own."""

    tensors: tuple[str, ...]
    hyper: Hyper


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a session. Two are equal where their documents are.

    document: as JSON values, complete (what is not in it is at its default). hyper: what counts for tensors of no
    group. arrays: the state arrays of such a session, in the state's order. places: which group a tensor is in.
    stop, keep_best: see `stopping` and `progress`; no update depends on them.
    """

    optimizer: Optimizer = field(compare=False)
    document: Mapping[str, Any]
    hyper: Hyper = field(compare=False)
    groups: tuple[Group, ...] = field(compare=False)
    arrays: tuple[str, ...] = field(compare=False)
    places: Places = field(compare=False)
    stop: Stop = field(default=Stop(), compare=False)
    keep_best: bool = field(default=False, compare=False)

    @property
    def of_loss(self) -> bool:
        """The losses that steps tell are kept."""
        return self.keep_best or self.stop.of_loss

    def begin(self, array: str) -> str | float:
        """What a state array begins as: "params", or the number in each of its elements."""
        begins = {**self.optimizer.begins, **wrapping.BEGINS}.get(array)
        if begins is None:
            return 0.0
        return begins if begins == "params" else float(getattr(self.hyper, begins))


def settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """The settings that an optimizer has for a tensor, with their defaults, in the documents' order."""
    return {**COMMON, **optimizer.settings, **wrapping.SETTINGS}


@cache
def _model(name: str) -> type[BaseModel]:
    """What one optimizer's settings have to be."""
    had = settings_of(FAMILY[name])
    group: dict[str, Any] = {
        setting: (Annotated[KINDS[setting][0] | None, BeforeValidator(not_null)], None)
        for setting in had
        if setting not in SESSION
    }
    tensors = Annotated[tuple[str, ...], BeforeValidator(_listed)]
    over = create_model("Group", __base__=Strict, tensors=(tensors, ...), **group)
    fields: dict[str, Any] = {setting: (KINDS[setting][0], default) for setting, default in had.items()}
    groups = Annotated[tuple[over, ...], BeforeValidator(_listed)]  # type: ignore[valid-type]  # made just now
    stop = Annotated[Any, PlainValidator(parse_stop)]
    beside: dict[str, Any] = {"stop": (stop, BESIDE["stop"]), "keep_best": (bool, BESIDE["keep_best"])}
    fields |= {BUFFER: (Annotated[bool | None, BeforeValidator(not_null)], None)} if BUFFER in had else {}
    fields = {"name": (Literal[name], name), **fields, **beside, "groups": (groups, ())}
    return create_model("Settings", __base__=Strict, **fields)


def parse_settings(raw: object) -> Settings:
    """Settings from decoded JSON. Raises SettingsError at the first thing that is wrong."""
    _require_object(raw)
    assert isinstance(raw, dict)
    name = raw.get("name", "adam")
    if not isinstance(name, str) or name not in FAMILY:
        raise SettingsError("name", f"optimizer {one_of(name, FAMILY)}")  # as the SDK calls it
    optimizer = FAMILY[name]
    own_names = _own_names(optimizer, raw, settings_of(optimizer))
    try:
        return _made(optimizer, _model(name).model_validate(own_names))
    except ValidationError as error:
        raise _explain(optimizer, *first_error(error)) from None


def _own_names(optimizer: Optimizer, given: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without aliases. Raises SettingsError for one that is refused."""
    try:
        return setting_aliases.canonical(optimizer.name, given, current)
    except AliasError as error:
        raise SettingsError(error.path, error.message) from None


def _made(optimizer: Optimizer, model: BaseModel) -> Settings:
    had = settings_of(optimizer)
    own = {name: getattr(model, name) for name in had}
    derived = _derived(optimizer, model, Hyper(**own))
    hyper = Hyper(**own | derived | ({BUFFER: _buffered(model)} if BUFFER in had else {}))
    groups = []
    for index, group in enumerate(getattr(model, "groups")):  # noqa: B009 - a model that was made at run time
        over = {name: value for name in had if (value := getattr(group, name, None)) is not None}
        groups.append(Group(group.tensors, hyper._replace(**over)))
        _check_together(optimizer, groups[-1].hyper, f"groups[{index}].")
        if _arrays(optimizer, groups[-1].hyper) != _arrays(optimizer, hyper):
            blamed = _blamed(optimizer, hyper, groups[-1].hyper) or next(iter(over))
            raise SettingsError(
                f"groups[{index}].{blamed}",
                f"groups[{index}].{blamed} is {shown(getattr(groups[-1].hyper, blamed))}, the session's is "
                f"{shown(getattr(hyper, blamed))}: one of them needs arrays that the other does not have",
            )
    _check_together(optimizer, hyper, "")
    document = model.model_dump(mode="json", exclude_none=True) | derived
    quiet = {name for name in QUIET & had.keys() if getattr(model, name) == had[name]}
    document = {name: value for name, value in document.items() if name not in (*quiet, BUFFER)}
    if hyper.momentum_buffer and hyper.momentum == 0.0:  # else the momentum says it
        document[BUFFER] = True
    try:
        found = places([group.tensors for group in groups])
    except GroupsError as error:
        raise SettingsError(error.path, error.message) from None
    beside = {name: getattr(model, name) for name in BESIDE}
    for name, default in BESIDE.items():
        if beside[name] == default:
            del document[name]
    _check_loss(hyper, **beside)
    return Settings(optimizer, document, hyper, tuple(groups), _arrays(optimizer, hyper), found, **beside)


def _derived(optimizer: Optimizer, model: BaseModel, hyper: Hyper) -> dict[str, float]:
    """Return the defaults that follow from other settings. Raises SettingsError where one is beyond float64."""
    made = {name: of(hyper) for name, of in optimizer.derived.items() if name not in model.model_fields_set}
    for name, value in made.items():
        if not math.isfinite(value):
            said = f"{name} follows from the other settings, and would be {value}; give it, or smaller ones"
            raise SettingsError(name, said)
    return made


def _check_loss(hyper: Hyper, stop: Stop, keep_best: bool) -> None:
    """Raise SettingsError where low losses are wanted of a session that climbs."""
    if hyper.maximize and (keep_best or stop.of_loss):
        path = (
            "keep_best" if keep_best else "stop.target_loss" if stop.target_loss is not None else "stop.relative_loss"
        )
        raise SettingsError(
            path,
            f"{path} looks for the lowest loss, and maximize is true; send the negative gradient and the negative loss "
            "instead of maximize",
        )


def _buffered(model: BaseModel) -> bool:
    """Whether the session has a momentum buffer; raises SettingsError where none is wanted, and one is needed."""
    given: bool | None = getattr(model, BUFFER)
    groups = getattr(model, "groups")  # noqa: B009 - a model that was made at run time
    needed = any(one.momentum for one in (model, *groups))
    if given is False and needed:
        raise SettingsError(BUFFER, f"{BUFFER} is false; a momentum above 0 needs it: leave it out")
    return needed if given is None else given


def _arrays(optimizer: Optimizer, hyper: Hyper) -> tuple[str, ...]:
    return (*optimizer.present(hyper), *wrapping.present(hyper))


def _check_together(optimizer: Optimizer, hyper: Hyper, place: str) -> None:
    """Raise SettingsError where settings that are each in their range do not fit together."""
    refused = optimizer.refuse(hyper) or wrapping.refused(hyper, averaged=optimizer.average is not None)
    if refused is not None:
        setting, wanted = refused
        path = f"{place}{setting}"
        raise SettingsError(path, f"{path} is {shown(getattr(hyper, setting))}; {wanted}")


def _blamed(optimizer: Optimizer, before: Hyper, after: Hyper) -> str:
    """The setting whose change asks for other arrays, or for other ones to begin with; "" where none does."""
    for name in settings_of(optimizer):
        new = getattr(after, name)
        if new != getattr(before, name) and (
            name in optimizer.fixed
            or name in optimizer.begins.values()
            or _arrays(optimizer, before._replace(**{name: new})) != _arrays(optimizer, before)
        ):
            return name
    return ""


def merge_settings(current: Settings, patch: object) -> Settings:
    """`current` with the keys of `patch` replaced (`groups` as a whole). An empty patch changes nothing.

    Raises SettingsError for what parse_settings refuses, and for another name, and for what decides which arrays the
    state has or how they began.
    """
    _require_object(patch)
    assert isinstance(patch, dict)
    name = current.optimizer.name
    wanted = patch.get("name", name)
    if isinstance(wanted, str) and wanted in FAMILY and wanted != name:
        said = f"optimizer is {shown(wanted)}; this session's is {name}, fixed when it was created"
        raise SettingsError("name", said)
    there = {BUFFER: True} if current.hyper.momentum_buffer else {}
    changes = _own_names(current.optimizer, patch, current.document)
    merged = parse_settings({**current.document, **there, **changes})
    if merged.hyper.momentum_buffer and not there and BUFFER not in patch:
        raise SettingsError(
            "momentum",
            f"momentum is above 0; this session has no {BUFFER}, which was fixed when it was created: make one with "
            f"{BUFFER} true, or a momentum above 0",
        )
    if blamed := _blamed(current.optimizer, current.hyper, merged.hyper):
        had, came = (shown(getattr(hyper, blamed)) for hyper in (current.hyper, merged.hyper))
        raise SettingsError(blamed, f"{blamed} is {came}; this session has {had}, fixed when it was created")
    if merged.keep_best != current.keep_best:
        came, had = shown(merged.keep_best), shown(current.keep_best)
        raise SettingsError("keep_best", f"keep_best is {came}; this session has {had}, fixed when it was created")
    return merged


def check_groups(settings: Settings, names: Sequence[str]) -> None:
    """Raise SettingsError where a group names a tensor that is not in `names`, or that another group (or the same) has
    named, or a pattern that fits to none.
    """
    try:
        patterns.check([group.tensors for group in settings.groups], settings.places, names)
    except GroupsError as error:
        raise SettingsError(error.path, error.message) from None


def resolve(settings: Settings, tensor: str) -> Hyper:
    """What counts for `tensor`: its group's overrides, else the session's settings."""
    index = settings.places.of(tensor)
    return settings.hyper if index is None else settings.groups[index].hyper


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values: parse_settings(to_json(s)) == s. Not to be changed."""
    return settings.document  # type: ignore[return-value]  # a dictionary, but nobody's to change


def _require_object(raw: object) -> None:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise _explain(FAMILY["adam"], (), "object", raw)


def _explain(optimizer: Optimizer, place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    path = path_of(place)
    in_group = len(place) > 1 and place[0] == "groups"
    if kind == "extra_forbidden":
        return SettingsError(path, _unknown(optimizer, path, str(place[-1]), in_group))
    if kind == "missing" and isinstance(place[-1], int):  # a list that is too short: told as a whole
        return _explain(optimizer, place[:-1], "too_short", came)
    if kind == "missing":
        return SettingsError(path, f"{path} is missing; wanted {WANTED[str(place[-1])]}")
    if place and place[0] in _PARSERS:
        return _nested(str(place[0]), came)
    subject = f"{path} is" if path else "the settings are"
    return SettingsError(path, f"{subject} {shown(came)}; wanted {_wanted(place)}")


_PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {"schedule": parse_schedule, "stop": parse_stop}


def _nested(setting: str, value: object) -> SettingsError:
    """Return the error of a refused schedule or stop rules, its path within the settings."""
    try:
        _PARSERS[setting](value)
    except SettingsError as error:
        path = f"{setting}.{error.path}" if error.path else setting
        return SettingsError(path, f"{path} {error.message}")
    raise AssertionError(f"{setting} was refused, and is not refused again")


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


def _unknown(optimizer: Optimizer, path: str, key: str, in_group: bool) -> str:
    """What is said of a key that the optimizer does not have, or not there, and what it probably meant."""
    whole = ["name", *settings_of(optimizer), *BESIDE, "groups"]
    known = ["tensors", *(name for name in whole if name not in SESSION and name not in BESIDE)] if in_group else whole
    if in_group and key in whole:
        return f"unknown setting {path}; {key} is for the whole session, outside the groups"
    if alias_of(key, ALIASES) not in known and key in KINDS:
        return f"{optimizer.name} has no setting {path}; known are {', '.join(known)}"
    return f"unknown setting {path}; {suggestion(key, known, ALIASES, near_aliases=True)}"
