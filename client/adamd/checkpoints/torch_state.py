"""Converts a local torch optimizer's ``state_dict()`` to a session's export, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this needs PyTorch: pip install 'adamd[torch]'", name="torch") from error

from adamd.errors import InvalidState, WrongLayout
from adamd.torch import group_settings, parameters, state_dicts
from adamd.torch.kinds import Kind, by_session, kind_of
from adamd.torch.parameters import ParameterPlace
from adamd.wire import export_format
from adamd.wire.export_format import PARAMETERS, ExportedState

# Settings that torch's optimizers do not have, with the values at which torch computes the same.
NOT_IN_TORCH = {"eps_form": "outside", "bias_correction": True}


def moved_in(state_dict: Mapping[str, Any], params: Iterable[Any], step: int) -> memoryview:
    """Return the export of a session with this optimizer's state.

    Raises:
        InvalidState, WrongDtype, WrongLayout, InvalidRequest: no session can have this state.

    """
    saved = _groups_of(state_dict)
    kind = kind_of(saved)
    passed = _grouped(params)
    _check_groups(saved, passed)
    groups = [
        {**kind.defaults, **old, "params": new["params"], "param_names": old.get("param_names") or new["param_names"]}
        for old, new in zip(saved, passed, strict=True)
    ]
    places = parameters.places(groups)
    parameters.check(places)
    settings = group_settings.settings(groups, group_settings.members(places))
    state = _state_of(state_dict, saved, groups)
    state_dicts.check(places, state, groups, kind)
    settings = state_dicts.with_buffer(settings, state.values(), kind)
    return state_dicts.pack(places, state, settings, kind, step)


def moved_out(export: bytes, params: Iterable[Any]) -> dict[str, Any]:
    """Copy an export's parameters into these, and return the state of torch's optimizer.

    Raises:
        InvalidState, InvalidSettings, WrongLayout, WrongDtype: the export and the parameters do not fit together;
            nothing was written.

    """
    exported = export_format.read(export)
    kind = _kind(exported)
    decoupled = {"decoupled_weight_decay": exported.settings["name"] == "adamw"} if kind.torch == "Adam" else {}
    own = {key: exported.settings[key] for key in kind.fixed if key in exported.settings}
    groups = [{**kind.defaults, **own, **decoupled, **group} for group in _grouped(params)]
    places = parameters.places(groups)
    _check_same(exported, places)
    # The session's settings first, as `adopt` needs momentum for the fixed ones; then `adopt` sets each group's own.
    for group in groups:
        group.update({key: _as_torch(exported.settings[key]) for key in kind.changing})
    group_settings.adopt(groups, places, exported.settings)
    state = state_dicts.torch_state(exported, places, kind)
    with torch.no_grad():
        for place in places:
            place.tensor.copy_(torch.from_numpy(exported.arrays[PARAMETERS][place.name]))
    return _as_dict(groups, state)


def _kind(exported: ExportedState) -> Kind:
    kind = by_session(str(exported.settings["name"]))
    for key, expected in NOT_IN_TORCH.items():
        if exported.settings.get(key, expected) != expected:
            raise InvalidState(
                f"the session has {key}={exported.settings[key]!r}, which torch.optim.{kind.torch} does not have: it "
                "would go on with another update"
            )
    return kind


def _grouped(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Read params as `torch.optim.Optimizer` does: tensors, (name, tensor) pairs, or dicts of these."""
    items = list(params)
    if not items:
        raise WrongLayout("no parameters are given; wanted model.named_parameters(), or the param groups")
    dicts = items if isinstance(items[0], Mapping) else [{"params": items}]
    groups = []
    for group in dicts:
        tensors = group["params"]
        members = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        pairs = [member if isinstance(member, tuple) else (None, member) for member in members]
        names = [name for name, _ in pairs]
        groups.append(
            {
                "params": [tensor for _, tensor in pairs],
                "param_names": group.get("param_names") or (None if None in names else names),
            }
        )
    return groups


def _groups_of(state_dict: Any) -> Sequence[Mapping[str, Any]]:
    state_dicts.check_document(state_dict)
    if not all(isinstance(entry, Mapping) for entry in state_dict["state"].values()):
        raise InvalidState("its 'state' is no dict of dicts")
    groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
    return groups


def _check_groups(saved: Sequence[Mapping[str, Any]], passed: Sequence[Mapping[str, Any]]) -> None:
    """Refuse other groups than were saved, as torch does."""
    if len(saved) != len(passed):
        raise InvalidState(f"the state has {len(saved)} param groups, {len(passed)} are given")
    for index, (old, new) in enumerate(zip(saved, passed, strict=True)):
        if len(old["params"]) != len(new["params"]):
            raise InvalidState(
                f"param group {index} has {len(old['params'])} parameters in the state, {len(new['params'])} are given"
            )
        if old.get("param_names") and new["param_names"] and list(old["param_names"]) != list(new["param_names"]):
            pairs = zip(old["param_names"], new["param_names"], strict=False)
            saved_as, given_as = next((a, b) for a, b in pairs if a != b)
            raise InvalidState(
                f"a parameter of group {index} is {str(saved_as)[:80]!r} in the state, {given_as!r} is given"
            )


def _state_of(
    state_dict: Mapping[str, Any], saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[torch.Tensor, Any]:
    keys = [key for group in saved for key in group["params"]]
    tensors = [tensor for group in groups for tensor in group["params"]]
    by_key = dict(zip(keys, tensors, strict=True))
    strangers = [key for key in state_dict["state"] if key not in by_key]
    if strangers:
        raise InvalidState(f"the state has an entry {str(strangers[0])[:40]!r} of no parameter in its groups")
    return {by_key[key]: entry for key, entry in state_dict["state"].items() if entry}


def _check_same(exported: ExportedState, places: Sequence[ParameterPlace]) -> None:
    session_shapes = {name: values.shape for name, values in exported.arrays[PARAMETERS].items()}
    shapes = {place.name: tuple(place.tensor.shape) for place in places}
    for name in sorted(session_shapes.keys() | shapes.keys()):
        if session_shapes.get(name) != shapes.get(name):
            raise WrongLayout(
                f"parameter {name!r} has shape {shapes.get(name)} here, {session_shapes.get(name)} in the session "
                "(None: it is not there); give the parameters under the session's names"
            )
    kind = parameters.check(places)
    if kind != exported.dtype:
        raise WrongLayout(f"the session is {exported.dtype}, these parameters are {kind}")


def _as_dict(groups: Sequence[Mapping[str, Any]], state: Mapping[torch.Tensor, Any]) -> dict[str, Any]:
    """Return what `torch.optim.Optimizer.state_dict` would: parameters by their number."""
    numbers: dict[torch.Tensor, int] = {}
    packed = []
    for group in groups:
        for tensor in group["params"]:
            numbers[tensor] = len(numbers)
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        names = {"param_names": list(group["param_names"])} if group.get("param_names") else {}
        packed.append({**settings, **names, "params": [numbers[tensor] for tensor in group["params"]]})
    return {"state": {numbers[tensor]: entry for tensor, entry in state.items()}, "param_groups": packed}


def _as_torch(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
