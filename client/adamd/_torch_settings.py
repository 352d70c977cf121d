"""A torch optimizer's ``param_groups`` as a session's settings, and back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adamd._torch_layout import Place
from adamd.errors import InvalidRequest, InvalidSettings

# Those that may differ between groups and change between steps.
CHANGING = ("lr", "betas", "eps", "weight_decay", "maximize")
# What else torch 2.13's Adam keeps in a group. They choose between its own implementations; here they only travel
# through state_dict(), so that it loads there unchanged.
PASSIVE = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


def kind(groups: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Return what a session is made with for good: "adam" or "adamw", and whether it is amsgrad.

    Raises:
        InvalidRequest: the groups disagree, or want something that a remote step cannot do.

    """
    found = {(bool(group["decoupled_weight_decay"]), bool(group["amsgrad"])) for group in groups}
    if len(found) > 1:
        raise InvalidRequest(
            "param groups differ in amsgrad or decoupled_weight_decay, which a session has for all of its tensors; "
            "give each kind an optimizer of its own"
        )
    if any(group["differentiable"] for group in groups):
        raise InvalidRequest("differentiable=True: a step at a server cannot be differentiated through")
    ((decoupled, amsgrad),) = found
    return "adamw" if decoupled else "adam", amsgrad


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


def settings(groups: Sequence[Mapping[str, Any]], given: Members) -> dict[str, Any]:
    """Return the whole settings that these groups mean, as a session's document has them."""
    values, base = [_values(group) for group in groups], given.base
    overrides = []
    for index, names in given.names.items():
        over = {key: value for key, value in values[index].items() if value != values[base][key]}
        if over:
            overrides.append({"tensors": names, **over})
    name, amsgrad = kind(groups)
    return {"name": name, "amsgrad": amsgrad, **values[base], "groups": overrides}


def adopt(groups: Sequence[dict[str, Any]], places: Sequence[Place], known: Mapping[str, Any]) -> None:
    """Write a session's settings into the groups.

    Raises:
        InvalidSettings: it has different ones for tensors of one group, or is of another kind; nothing was written.

    """
    mine, theirs = kind(groups), (known.get("name"), known.get("amsgrad"))
    if mine != theirs:
        raise InvalidSettings(
            f"the session is {theirs[0]} with amsgrad={theirs[1]}, this optimizer {mine[0]} with amsgrad={mine[1]}; "
            f"make it as adamd.torch.{'AdamW' if theirs[0] == 'adamw' else 'Adam'}(…, amsgrad={theirs[1]})"
        )
    over = {name: group for group in known.get("groups", ()) for name in group["tensors"]}
    found: dict[int, dict[str, Any]] = {}
    for place in places:
        resolved = {key: over.get(place.name, {}).get(key, known[key]) for key in CHANGING}
        if found.setdefault(place.group, resolved) != resolved:
            raise InvalidSettings(
                f"{place} has other settings in the session than the rest of param group {place.group}; give the "
                "parameters in the groups that the session was made with"
            )
    for index, resolved in found.items():
        _write(groups[index], resolved)


def _values(group: Mapping[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": _number(group["lr"]),
        "betas": [_number(beta1), _number(beta2)],
        "eps": _number(group["eps"]),
        "weight_decay": _number(group["weight_decay"]),
        "maximize": bool(group["maximize"]),
    }


def _write(group: dict[str, Any], resolved: Mapping[str, Any]) -> None:
    mine = _values(group)
    for key, value in resolved.items():
        if value == mine[key]:
            continue
        if isinstance(group[key], torch.Tensor):  # who gave a tensor may hold on to it, as a scheduler does
            group[key].fill_(value)
        else:
            group[key] = tuple(value) if key == "betas" else value


def _number(value: Any) -> float:
    return float(value.detach().item() if isinstance(value, torch.Tensor) else value)
