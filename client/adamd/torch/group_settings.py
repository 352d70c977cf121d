"""Converts a torch optimizer's ``param_groups`` to a session's settings, and back."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adamd.errors import InvalidRequest, InvalidSettings
from adamd.torch.kinds import Kind, kind_of
from adamd.torch.parameters import ParameterPlace
from adamd.wire import patterns

Groups = Sequence[Mapping[str, Any]]


def check_as_torch(kind: Kind, decoupled: bool | None, defaults: Mapping[str, Any]) -> None:
    """Check settings as torch's own optimizer does, and name the one that is refused.

    Raises:
        InvalidSettings: a setting is out of range.
        RuntimeError: two settings do not go together.

    """
    optimizer = getattr(torch.optim, "AdamW" if decoupled else kind.torch)
    accepted = inspect.signature(optimizer.__init__).parameters
    settings = {key: value for key, value in defaults.items() if key in accepted and key != "params"}
    for key in kind.changing:
        if key != "betas" and not isinstance(kind.changing[key], bool) and not isinstance(settings[key], torch.Tensor):
            _number(key, settings[key])

    def make(options: Mapping[str, Any]) -> None:
        optimizer([torch.nn.Parameter(torch.zeros(1))], **options)

    try:
        make(settings)
    except (ValueError, TypeError) as error:
        for key in settings:
            try:
                make({key: settings[key]})
            except (ValueError, TypeError) as cause:
                raise InvalidSettings(f"{key} is {settings[key]!r:.80}: {cause}", path=key) from error
        raise InvalidSettings(str(error)) from error


def fixed(groups: Groups) -> dict[str, Any]:
    """Return the settings that a session has for good: its name, amsgrad, ….

    Raises:
        InvalidRequest: the groups differ in one, or need what a remote step cannot do.

    """
    kind = kind_of(groups)
    settled = [{"name": kind.name(group), **kind.fixed_settings(group)} for group in groups]
    if any(other != settled[0] for other in settled):
        raise InvalidRequest(
            f"param groups differ in {' or '.join(sorted(kind.fixed))}, which a session has for all of its tensors; "
            "give each kind an optimizer of its own"
        )
    if any(group.get("differentiable") for group in groups):
        raise InvalidRequest("differentiable=True: a step at a server cannot be differentiated through")
    return settled[0]


@dataclass(frozen=True, slots=True)
class Members:
    """The names in each group, and the base group, whose settings are the session's own.

    The other groups are overrides. The group with the longest names is the base, so they need not be sent.
    """

    base: int
    names: dict[int, list[str]]


def members(places: Sequence[ParameterPlace]) -> Members:
    """Return the names in each group."""
    weights, names = Counter[int](), defaultdict[int, list[str]](list)
    for place in places:
        weights[place.group] += len(place.name) + 4
        names[place.group].append(place.name)
    return Members(max(names, key=lambda index: (weights[index], -index)), dict(sorted(names.items())))


def settings(groups: Groups, grouped: Members) -> dict[str, Any]:
    """Return all settings of these groups, in the form of a session's document."""
    kind, session_wide = kind_of(groups), fixed(groups)
    values, base = [_values(group, kind) for group in groups], grouped.base
    overrides = []
    for index, names in grouped.names.items():
        own = {key: value for key, value in values[index].items() if value != values[base][key]}
        if own:
            overrides.append({"tensors": names, **own})
    return {**session_wide, **values[base], "groups": overrides}


def needs_momentum_buffer(groups: Groups) -> bool:
    """Say whether a step with these groups needs a momentum buffer."""
    return any(_number("momentum", group.get("momentum", 0)) for group in groups)


def explicit_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the arguments that a call passes to a method; none where the call is invalid."""
    try:
        bound = inspect.signature(function).bind_partial(None, *args, **kwargs).arguments
    except TypeError:  # the call itself raises it
        return frozenset()
    return frozenset(kwargs).union(bound)


def values(groups: Groups) -> list[dict[str, Any]]:
    """Return the settings of each group that may change between steps."""
    kind = kind_of(groups)
    return [_values(group, kind) for group in groups]


def overruled(
    before: Sequence[Mapping[str, Any]],
    groups: Groups,
    explicit: Sequence[Collection[str]],
    scheduler_values: Sequence[Mapping[str, float]],
) -> list[str]:
    """Return in words which ``explicit`` settings of each group differ from what the script had ``before``.

    ``scheduler_values`` is what a scheduler had left in each group. A setting that it changes, from the script's value
    on, is left out.
    """
    lines = []
    for index, (script, session) in enumerate(zip(before, values(groups), strict=True)):
        where = f" in param group {index}" if len(groups) > 1 else ""
        changed = [key for key in session if key in explicit[index] and script[key] != session[key]]
        if scheduler_values[index].get("initial_lr") == script.get("lr") or "max_lr" in scheduler_values[index]:
            changed = [key for key in changed if key != "lr"]
        if "max_momentum" in scheduler_values[index]:  # a scheduler that cycles it, and lr
            changed = [key for key in changed if key not in ("momentum", "betas", "lr")]
        lines += [f"{key} is {session[key]} there and {script[key]} here{where}" for key in changed]
    return lines


def adopt(groups: Sequence[dict[str, Any]], places: Sequence[ParameterPlace], settings: Mapping[str, Any]) -> None:
    """Write a session's settings into the groups.

    Raises:
        InvalidSettings: the session has different ones for tensors of one group, or is of another kind. Nothing was
            written.

    """
    kind = kind_of(groups)
    check_kind(groups, settings)
    overrides = settings.get("groups", ())
    placed = patterns.places([group["tensors"] for group in overrides])
    by_group: dict[int, dict[str, Any]] = {}
    for place in places:
        index = placed.of(place.name)
        own = {} if index is None else overrides[index]
        resolved = {key: own.get(key, settings[key]) for key in kind.changing}
        if by_group.setdefault(place.group, resolved) != resolved:
            raise InvalidSettings(
                f"{place} has other settings in the session than the rest of param group {place.group}; give the "
                "parameters in the groups that the session was made with"
            )
    for index, resolved in by_group.items():
        _write(groups[index], resolved, kind)


def check_kind(groups: Groups, settings: Mapping[str, Any]) -> None:
    """Compare a session's fixed settings with the groups'.

    Raises:
        InvalidSettings: the session is of another kind.

    """
    own = fixed(groups)
    existing = {key: settings.get(key) for key in own}
    if own != existing:
        differ = [key for key in own if own[key] != existing[key]]
        raise InvalidSettings(
            f"the session is {_describe(existing, differ)}, this optimizer {_describe(own, differ)}; make it as "
            f"adamd.torch.{_class(str(existing['name']))}(…"
            f"{''.join(f', {key}={existing[key]}' for key in differ if key != 'name')})"
        )


def _describe(settings: Mapping[str, Any], differ: Sequence[str]) -> str:
    options = [f"{key}={settings[key]}" for key in differ if key != "name"]
    return str(settings["name"]) + (f" with {', '.join(options)}" if options else "")


def _class(name: str) -> str:
    classes = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop", "sgd": "SGD"}
    return classes.get(name, name.capitalize())


def _values(group: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, default in kind.changing.items():
        if isinstance(default, bool):
            result[key] = bool(group[key])
        elif isinstance(default, tuple):
            result[key] = [_number(key, value) for value in group[key]]
        else:
            result[key] = _number(key, group[key])
    return result


def _write(group: dict[str, Any], resolved: Mapping[str, Any], kind: Kind) -> None:
    current = _values(group, kind)
    for key, value in resolved.items():
        if value == current[key]:
            continue
        if isinstance(group[key], torch.Tensor):  # the user or a scheduler may keep the tensor
            group[key].fill_(value)
        else:
            group[key] = tuple(value) if isinstance(value, list) else value


def _number(key: str, value: Any) -> float:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise InvalidSettings(f"{key} is a tensor of {value.numel()} elements; wanted one number", path=key)
        return float(value.detach().item())
    if isinstance(value, str | bytes):  # float() would read it
        raise InvalidSettings(f"{key} is {value!r:.40}, a text; wanted a number", path=key)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidSettings(f"{key} is {value!r:.40}; wanted a number", path=key) from None
