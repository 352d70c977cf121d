"""A torch optimizer's ``param_groups`` as a session's settings, and back."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adamd.errors import InvalidRequest, InvalidSettings
from adamd.torch.kinds import Kind, kind_of
from adamd.torch.parameters import Place
from adamd.wire import patterns

Groups = Sequence[Mapping[str, Any]]


def as_torch(kind: Kind, decoupled: bool | None, defaults: Mapping[str, Any]) -> None:
    """Raise what torch's own optimizer would raise of these settings, and say of which.

    Raises:
        InvalidSettings: one is out of range.
        RuntimeError: two do not go together.

    """
    made = getattr(torch.optim, "AdamW" if decoupled else kind.torch)
    known = inspect.signature(made.__init__).parameters
    given = {key: value for key, value in defaults.items() if key in known and key != "params"}
    for key in kind.changing:
        if key != "betas" and not isinstance(kind.changing[key], bool) and not isinstance(given[key], torch.Tensor):
            _number(key, given[key])

    def make(settings: Mapping[str, Any]) -> None:
        made([torch.nn.Parameter(torch.zeros(1))], **settings)

    try:
        make(given)
    except (ValueError, TypeError) as error:
        for key in given:
            try:
                make({key: given[key]})
            except (ValueError, TypeError) as own:
                raise InvalidSettings(f"{key} is {given[key]!r:.80}: {own}", path=key) from error
        raise InvalidSettings(str(error)) from error


def fixed(groups: Groups) -> dict[str, Any]:
    """Return what a session is made with for good: its name, whether it is amsgrad, ….

    Raises:
        InvalidRequest: the groups disagree, or want something that a remote step cannot do.

    """
    kind = kind_of(groups)
    found = [{"name": kind.name(group), **kind.settled(group)} for group in groups]
    if any(other != found[0] for other in found):
        raise InvalidRequest(
            f"param groups differ in {' or '.join(sorted(kind.fixed))}, which a session has for all of its tensors; "
            "give each kind an optimizer of its own"
        )
    if any(group.get("differentiable") for group in groups):
        raise InvalidRequest("differentiable=True: a step at a server cannot be differentiated through")
    return found[0]


@dataclass(frozen=True, slots=True)
class Members:
    """The names in each group, and which group is the session's own: the one whose names are longest together.

    The others are overrides of what they have otherwise: so an lr that is the same everywhere travels without a name.
    """

    base: int
    names: dict[int, list[str]]


def members(places: Sequence[Place]) -> Members:
    """Return the names in each group."""
    weights, names = Counter[int](), defaultdict[int, list[str]](list)
    for place in places:
        weights[place.group] += len(place.name) + 4
        names[place.group].append(place.name)
    return Members(max(names, key=lambda index: (weights[index], -index)), dict(sorted(names.items())))


def settings(groups: Groups, given: Members) -> dict[str, Any]:
    """Return the whole settings that these groups mean, as a session's document has them."""
    kind, once = kind_of(groups), fixed(groups)
    values, base = [_values(group, kind) for group in groups], given.base
    overrides = []
    for index, names in given.names.items():
        over = {key: value for key, value in values[index].items() if value != values[base][key]}
        if over:
            overrides.append({"tensors": names, **over})
    return {**once, **values[base], "groups": overrides}


def heavy(groups: Groups) -> bool:
    """Say whether a step with these groups needs a momentum buffer."""
    return any(_number("momentum", group.get("momentum", 0)) for group in groups)


def named(function: Callable[..., Any], given: Sequence[Any], others: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the arguments that a call of a method gives; none where it is no call of it."""
    try:
        bound = inspect.signature(function).bind_partial(None, *given, **others).arguments
    except TypeError:  # the call itself will say so
        return frozenset()
    return frozenset(others).union(bound)


def values(groups: Groups) -> list[dict[str, Any]]:
    """Return the settings of each group that may change between steps."""
    kind = kind_of(groups)
    return [_values(group, kind) for group in groups]


def overruled(
    before: Sequence[Mapping[str, Any]],
    groups: Groups,
    own: Sequence[Collection[str]],
    recalled: Sequence[Mapping[str, float]],
) -> list[str]:
    """Return in words which settings of each group's ``own`` are no longer as they were ``before``.

    ``recalled``: what a scheduler had left in each group. What it changed, from where the script has it, is no wonder.
    """
    found = []
    for index, (had, has) in enumerate(zip(before, values(groups), strict=True)):
        where = f" in param group {index}" if len(groups) > 1 else ""
        changed = [key for key in has if key in own[index] and had[key] != has[key]]
        if recalled[index].get("initial_lr") == had.get("lr") or "max_lr" in recalled[index]:
            changed = [key for key in changed if key != "lr"]
        if "max_momentum" in recalled[index]:  # a scheduler that cycles it, and lr
            changed = [key for key in changed if key not in ("momentum", "betas", "lr")]
        found += [f"{key} is {has[key]} there and {had[key]} here{where}" for key in changed]
    return found


def adopt(groups: Sequence[dict[str, Any]], places: Sequence[Place], known: Mapping[str, Any]) -> None:
    """Write a session's settings into the groups.

    Raises:
        InvalidSettings: it has different ones for tensors of one group, or is of another kind; nothing was written.

    """
    kind = kind_of(groups)
    check_kind(groups, known)
    over = known.get("groups", ())
    placed = patterns.places([group["tensors"] for group in over])
    found: dict[int, dict[str, Any]] = {}
    for place in places:
        index = placed.of(place.name)
        own = {} if index is None else over[index]
        resolved = {key: own.get(key, known[key]) for key in kind.changing}
        if found.setdefault(place.group, resolved) != resolved:
            raise InvalidSettings(
                f"{place} has other settings in the session than the rest of param group {place.group}; give the "
                "parameters in the groups that the session was made with"
            )
    for index, resolved in found.items():
        _write(groups[index], resolved, kind)


def check_kind(groups: Groups, known: Mapping[str, Any]) -> None:
    """Compare a session's settings with the groups in what is fixed.

    Raises:
        InvalidSettings: it is of another kind.

    """
    mine = fixed(groups)
    theirs = {key: known.get(key) for key in mine}
    if mine != theirs:
        differ = [key for key in mine if mine[key] != theirs[key]]
        raise InvalidSettings(
            f"the session is {_told(theirs, differ)}, this optimizer {_told(mine, differ)}; make it as adamd.torch."
            f"{_class(str(theirs['name']))}(…{''.join(f', {key}={theirs[key]}' for key in differ if key != 'name')})"
        )


def _told(found: Mapping[str, Any], differ: Sequence[str]) -> str:
    said = [f"{key}={found[key]}" for key in differ if key != "name"]
    return str(found["name"]) + (f" with {', '.join(said)}" if said else "")


def _class(name: str) -> str:
    known = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop", "sgd": "SGD"}
    return known.get(name, name.capitalize())


def _values(group: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, default in kind.changing.items():
        if isinstance(default, bool):
            found[key] = bool(group[key])
        elif isinstance(default, tuple):
            found[key] = [_number(key, value) for value in group[key]]
        else:
            found[key] = _number(key, group[key])
    return found


def _write(group: dict[str, Any], resolved: Mapping[str, Any], kind: Kind) -> None:
    mine = _values(group, kind)
    for key, value in resolved.items():
        if value == mine[key]:
            continue
        if isinstance(group[key], torch.Tensor):  # who gave a tensor may hold on to it, as a scheduler does
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
