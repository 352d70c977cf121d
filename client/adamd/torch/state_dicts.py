"""Converts a session's exported state to a torch optimizer's ``optimizer.state``, and back.

torch keeps ``{"step": float32 scalar, "exp_avg", "exp_avg_sq", …}`` for each parameter that was ever updated. The
arrays have the parameter's dtype, device and memory format. For a bfloat16 or float16 parameter they are float32, and
the entry also has its float32 master, "master_param"; so it has where an ``answer_dtype`` rounds what the model gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from adamd.errors import InvalidState
from adamd.torch.kinds import BUFFER, Kind, has_momentum_buffer
from adamd.torch.parameters import BY_NAME, NARROW, ParameterPlace
from adamd.wire import export_format
from adamd.wire.export_format import PARAMETERS, Draft, ExportedState

MASTER = "master_param"  # as transformer_engine's FusedAdam calls it
EMA = "ema"  # the parameters' moving average; torch ignores it in a state
NOT_TORCHS = "lower", "upper", "best"  # arrays that adamd keeps for any optimizer; no part of torch's state
# The setting that gives a session the array.
SETTING_OF = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}
NONNEGATIVE = "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum"
MAX_STEP = 2**53  # the largest count that a float64 has exactly
State = dict[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An export's step and chain, and its state in torch's layout."""

    step: int
    chain: str
    state: State


def unpack(body: bytes, places: Sequence[ParameterPlace], kind: Kind, *, rounded: bool) -> Unpacked:
    """Read an export: an entry for each parameter, also for those that were never updated."""
    exported = export_format.read(body)
    state = torch_state(exported, places, kind, rounded=rounded, ema=True, untouched=True)
    return Unpacked(exported.step, exported.chain, state)


def torch_state(
    exported: ExportedState,
    places: Sequence[ParameterPlace],
    kind: Kind,
    *,
    rounded: bool = False,
    ema: bool = False,
    untouched: bool = False,
) -> State:
    """Return the state in torch's layout, in memory of its own.

    Args:
        exported: what a session exported.
        places: all parameters.
        kind: what the session is.
        rounded: the model has rounded parameters, so the state includes their masters.
        ema: include the parameters' moving average.
        untouched: include parameters that were never updated, with what their first update would begin with.

    """
    omitted = NOT_TORCHS if ema else (*NOT_TORCHS, EMA)
    state: State = {}
    for place in places:
        count = exported.counts[place.name]
        narrow = place.tensor.dtype in NARROW
        if not count and not kind.always and not untouched:
            continue
        entry = {"step": _number(count)} if kind.counts else {}
        for number in kind.numbers:
            entry[number] = _number(exported.carried[number][place.name])
        for array, values in exported.arrays.items():
            if array in omitted or (array == PARAMETERS and not (narrow or rounded)):
                continue
            dtype = torch.float32 if narrow else place.tensor.dtype
            tensor = torch.empty_like(place.tensor, dtype=dtype, requires_grad=False)
            entry[MASTER if array == PARAMETERS else array] = tensor.copy_(torch.from_numpy(values[place.name]))
        if entry or untouched:
            state[place.tensor] = entry
    return state


def initial_entry(place: ParameterPlace, group: Mapping[str, Any], kind: Kind) -> dict[str, torch.Tensor]:
    """Return the entry of a parameter before its first update."""
    narrow = place.tensor.dtype in NARROW
    dtype = torch.float32 if narrow else place.tensor.dtype
    first = float(group.get("initial_accumulator_value", 0.0))
    entry = ({"step": _number(0)} if kind.counts else {}) | {number: _number(1.0) for number in kind.numbers}
    entry |= {array: torch.full_like(place.tensor.detach(), first, dtype=dtype) for array in kind.arrays(group)}
    return entry | ({MASTER: place.tensor.detach().to(dtype).clone()} if narrow and entry else {})


def has_updates(entry: Any, kind: Kind) -> bool:
    """Say whether an entry is of a parameter that was updated: torch keeps no others."""
    if not isinstance(entry, Mapping) or not entry:
        return False
    if kind.counts:
        return bool(kind.always or float(entry.get("step", 1)) > 0)
    return any(isinstance(value, torch.Tensor) and bool(value.any()) for value in entry.values())


def pack(
    places: Sequence[ParameterPlace],
    state: Mapping[torch.Tensor, Any],
    settings: Mapping[str, Any],
    kind: Kind,
    step: int = 0,
    bounds: Mapping[str, Mapping[str, Any]] | None = None,
    answer: str | None = None,
) -> memoryview:
    """Write the export of a session with the parameters as they are now and this state.

    Args:
        places: all parameters, checked by `parameters.check`.
        state: in torch's layout, checked by `check`.
        settings: all of the session's settings, with the name.
        kind: the optimizer that the state is of.
        step: the session's, where it is more than the largest count.
        bounds: numbers or arrays by tensor, for "lower" or "upper" where that is "array"; without one there is none.
        answer: the dtype that the model's parameters were rounded to on their way; None: to their own.

    """
    bounds = bounds or {}
    is_double = any(place.tensor.dtype == torch.float64 for place in places)
    names = kind.arrays(settings)
    entries = {place.name: state.get(place.tensor) or {} for place in places}
    body, views = Draft(
        dtype="float64" if is_double else "float32",
        shapes={place.name: tuple(place.tensor.shape) for place in places},
        settings=settings,
        names=(*names, *bounds, *((EMA,) if settings.get("ema_decay") else ())),
        counts={name: _count(entry, kind, names) for name, entry in entries.items()},
        carried={number: {n: float(entry.get(number, 1.0)) for n, entry in entries.items()} for number in kind.numbers},
        step=step,
    ).laid_out()
    for place in places:
        _fill(views[PARAMETERS][place.name], _parameter(place, state, answer))
        for array in names:
            _fill(views[array][place.name], entries[place.name].get(array))
        for side, given in bounds.items():
            views[side][place.name][...] = given.get(place.name, -math.inf if side == "lower" else math.inf)
        if EMA in views:  # an average begins as the parameters
            _fill(views[EMA][place.name], entries[place.name].get(EMA, _parameter(place, state, answer)))
    return body


def _count(entry: Mapping[str, Any], kind: Kind, names: Iterable[str]) -> int:
    """Return how often a parameter was updated. SGD keeps no count: 1 where its buffer is not zero."""
    if kind.counts:
        return int(entry.get("step", 0))
    return int(any(entry.get(array) is not None and bool(entry[array].any()) for array in names))


def with_buffer(
    settings: Mapping[str, Any], entries: Iterable[Any], kind: Kind, *, buffered: bool = False
) -> dict[str, Any]:
    """Add "momentum_buffer" to the settings where the session is ``buffered`` or the state has a buffer.

    Without it, a momentum that is 0 now would lose the velocity.
    """
    there = buffered or any(isinstance(entry, Mapping) and entry.get(BUFFER) is not None for entry in entries)
    missing = kind.may_have_buffer and there and not has_momentum_buffer(settings)
    return {**settings, BUFFER: True} if missing else dict(settings)


def _parameter(place: ParameterPlace, state: Mapping[torch.Tensor, Any], answer: str | None) -> torch.Tensor:
    """Return a parameter's master, unless the model has been given another value since."""
    tensor = place.tensor.detach()
    master = state.get(place.tensor, {}).get(MASTER)
    if master is None:
        return tensor
    rounded = master if answer is None else master.to(BY_NAME[answer])
    return master if torch.equal(rounded.to(tensor), tensor) else tensor


def uncast(state: dict[Any, Any], groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Put back the float32 that `torch.optim.Optimizer.load_state_dict` has cast to a narrow parameter's dtype."""
    keys = chain.from_iterable(group["params"] for group in saved["param_groups"])
    tensors = chain.from_iterable(group["params"] for group in groups)
    for key, tensor in zip(keys, tensors, strict=True):
        if tensor.dtype in NARROW and key in saved["state"]:
            for name, value in saved["state"][key].items():
                if isinstance(value, torch.Tensor) and name != "step":
                    state[tensor][name] = value.to(tensor.device, torch.float32)


def _fill(target: Any, source: torch.Tensor | None) -> None:
    values = torch.from_numpy(target)
    if source is None:  # never updated
        values.zero_()
    else:
        values.copy_(source)


def check_document(document: Any) -> None:
    """Check that this is a ``state_dict()``, before anything in it is read.

    Raises:
        InvalidState: it is not one.

    """
    if not isinstance(document, Mapping) or not {"state", "param_groups"} <= document.keys():
        raise InvalidState("this is no optimizer's state: wanted a dict with 'state' and 'param_groups'")
    groups, state = document["param_groups"], document["state"]
    if not isinstance(groups, list | tuple) or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise InvalidState("its 'param_groups' are no list of dicts with 'params'")
    if not isinstance(state, Mapping):
        raise InvalidState("its 'state' is no dict of dicts")
    for entry in state.values():  # torch would drop their imaginary part
        for name, value in entry.items() if isinstance(entry, Mapping) else ():
            if isinstance(value, torch.Tensor) and value.is_complex():
                raise InvalidState(f"{name!s:.40} in its 'state' is {value.dtype}; wanted floats")


def check_names(
    saved: Sequence[Mapping[str, Any]], new: Sequence[dict[str, Any]], now: Sequence[Mapping[str, Any]]
) -> None:
    """Compare the names in a loaded state with this optimizer's. torch loads by position.

    Where the state has the same names in another order, and its keys are numbers, a parameter would get another's
    arrays. Keys that are names (of `torch.distributed.checkpoint`) are already in order; this optimizer's names stay.

    Raises:
        InvalidState: the names are in another order.

    """
    for old, group, current in zip(saved, new, now, strict=True):
        saved_names, names = old.get("param_names"), current.get("param_names")
        if not saved_names or not names or list(saved_names) == list(names) or sorted(saved_names) != sorted(names):
            continue
        if all(isinstance(key, int) for key in old["params"]):
            place = next(index for index, (a, b) in enumerate(zip(saved_names, names, strict=True)) if a != b)
            raise InvalidState(
                f"the state has {saved_names[place]!r} where this optimizer has {names[place]!r}: the same parameters "
                "in another order, and torch loads by position. Give them in the order of then"
            )
        group["param_names"] = list(names)


def check(
    places: Sequence[ParameterPlace], state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]], kind: Kind
) -> None:
    """Check a loaded state against the parameters, so that what the server would refuse changes nothing here.

    Raises:
        InvalidState: an entry is missing, or of another shape, or none that an optimizer could have.

    """
    for place in places:
        if place.tensor not in state:
            continue
        entry = state[place.tensor]
        if not isinstance(entry, Mapping):
            raise InvalidState(f"the state of {place} is {entry!r:.40}; wanted a dict of {kind.torch}'s arrays")
        if not entry:
            continue
        arrays = kind.arrays(groups[place.group])
        if not kind.counts and all(entry.get(array) is None for array in arrays):
            continue  # SGD keeps None where there is no buffer yet
        expected = (*(("step",) if kind.counts else ()), *kind.numbers, *arrays)
        for key in expected:
            if entry.get(key) is None:
                hint = f"; it was saved without {SETTING_OF[key]}" if key in SETTING_OF else ""
                raise InvalidState(
                    f"the state of {place} has no {key!r}{hint}; it has {_joined(entry)}, and {kind.torch} wants "
                    f"{_joined(expected)}"
                )
        for array in (*arrays, *(array for array in (MASTER, EMA, BUFFER) if array in entry and array not in arrays)):
            if entry[array] is not None:
                _check_array(place, array, entry[array])
        _check_numbers(place, entry, kind)


def _check_array(place: ParameterPlace, array: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.is_complex() or not value.is_floating_point():
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise InvalidState(f"{array} of {place} is {kind}; wanted a tensor of floats")
    if value.shape != place.tensor.shape:
        raise InvalidState(
            f"{array} of {place} has shape {list(value.shape)}, the parameter {list(place.tensor.shape)}"
        )
    dtype = torch.float64 if place.tensor.dtype == torch.float64 else torch.float32  # the session's
    values = value.detach().to(dtype)
    if not bool(torch.isfinite(values).all()):
        raise InvalidState(f"{array} of {place} has NaN or infinity; wanted finite numbers")
    if array in NONNEGATIVE and values.numel() and float(values.min()) < 0:
        raise InvalidState(f"{array} of {place} has elements below 0, which no update makes")


def _check_numbers(place: ParameterPlace, entry: Mapping[str, Any], kind: Kind) -> None:
    if kind.counts:
        step = _float(place, "step", entry["step"])
        if not 0 <= step < MAX_STEP or step % 1:
            raise InvalidState(f"the step of {place} is {step!r}; wanted a count")
    for number in kind.numbers:
        value = _float(place, number, entry[number])
        if not math.isfinite(value):
            raise InvalidState(f"{number} of {place} is {value!r}; wanted a finite number")


def _float(place: ParameterPlace, entry: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidState(
            f"{entry} of {place} is {type(value).__name__} {str(value)[:40]!r}; wanted a number"
        ) from None


def _joined(entries: Iterable[Any]) -> str:
    return ", ".join(str(entry)[:40] for entry in list(entries)[:12]) or "nothing"


def _number(value: float) -> torch.Tensor:
    """Return a number as torch keeps it: float32; float64 where that is the default dtype, or needed for exactness."""
    is_double = torch.get_default_dtype() == torch.float64 or value > 2**24
    return torch.tensor(float(value), dtype=torch.float64 if is_double else torch.float32)
