"""A session's exported state as a torch optimizer's ``optimizer.state``, and back.

torch keeps for each parameter that was ever updated ``{"step": float32 scalar, "exp_avg", "exp_avg_sq", …}``, the
arrays in the parameter's own dtype, device and memory format. Of a bfloat16 or float16 parameter they are float32, and
so is its master, "master_param", which there is too where an ``answer_dtype`` rounds what the model gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from adamd.errors import InvalidState
from adamd.torch.kinds import BUFFER, Kind, buffered
from adamd.torch.parameters import BY_NAME, NARROW, Place
from adamd.wire import export_format
from adamd.wire.export_format import PARAMETERS, Draft, ExportedState

MASTER = "master_param"  # as transformer_engine's FusedAdam calls it
EMA = "ema"  # the parameters' moving average, which torch takes no notice of in a state
AROUND = "lower", "upper", "best"  # what adamd keeps around any optimizer besides: no part of torch's state
ASKED = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}  # by which setting
NONNEGATIVE = "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum"
MOST = 2**53  # a float64 counts so far
State = dict[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An export: at which step of which history it was taken, and the state in torch's layout."""

    step: int
    chain: str
    state: State


def unpack(export: bytes, places: Sequence[Place], kind: Kind, *, rounded: bool) -> Unpacked:
    """Read an export: an entry for each parameter, also for those that were never updated."""
    found = export_format.read(export)
    state = laid_out(found, places, kind, rounded=rounded, ema=True, every=True)
    return Unpacked(found.step, found.chain, state)


def laid_out(
    found: ExportedState,
    places: Sequence[Place],
    kind: Kind,
    *,
    rounded: bool = False,
    ema: bool = False,
    every: bool = False,
) -> State:
    """Return the state in torch's layout, in memory of its own.

    Args:
        found: what a session exported.
        places: all parameters.
        kind: what the session is.
        rounded: the model has rounded parameters, so their masters travel.
        ema: so does their moving average.
        every: there is an entry also for parameters that were never updated: what the first update would begin with.

    """
    left = AROUND if ema else (*AROUND, EMA)
    state: State = {}
    for place in places:
        count = found.counts[place.name]
        narrow = place.tensor.dtype in NARROW
        if not count and not kind.always and not every:
            continue
        mine = {"step": _number(count)} if kind.counts else {}
        for number in kind.numbers:
            mine[number] = _number(found.carried[number][place.name])
        for array, values in found.arrays.items():
            if array in left or (array == PARAMETERS and not (narrow or rounded)):
                continue
            dtype = torch.float32 if narrow else place.tensor.dtype
            held = torch.empty_like(place.tensor, dtype=dtype, requires_grad=False)
            mine[MASTER if array == PARAMETERS else array] = held.copy_(torch.from_numpy(values[place.name]))
        if mine or every:
            state[place.tensor] = mine
    return state


def begun(place: Place, group: Mapping[str, Any], kind: Kind) -> dict[str, torch.Tensor]:
    """Return the entry of a parameter before its first update."""
    narrow = place.tensor.dtype in NARROW
    dtype = torch.float32 if narrow else place.tensor.dtype
    first = float(group.get("initial_accumulator_value", 0.0))
    made = ({"step": _number(0)} if kind.counts else {}) | {number: _number(1.0) for number in kind.numbers}
    made |= {array: torch.full_like(place.tensor.detach(), first, dtype=dtype) for array in kind.arrays(group)}
    return made | ({MASTER: place.tensor.detach().to(dtype).clone()} if narrow and made else {})


def is_begun(entry: Any, kind: Kind) -> bool:
    """Say whether an entry tells of an update: torch has none of parameters that never had one."""
    if not isinstance(entry, Mapping) or not entry:
        return False
    if kind.counts:
        return bool(kind.always or float(entry.get("step", 1)) > 0)
    return any(isinstance(value, torch.Tensor) and bool(value.any()) for value in entry.values())


def pack(
    places: Sequence[Place],
    state: Mapping[torch.Tensor, Any],
    settings: Mapping[str, Any],
    kind: Kind,
    step: int = 0,
    bounds: Mapping[str, Mapping[str, Any]] | None = None,
    answer: str | None = None,
) -> memoryview:
    """Write the export of a session with the parameters as they are now and this state.

    Args:
        places: all parameters, as `_torch_layout.check` wants them.
        state: in torch's layout, checked by `check`.
        settings: the whole of them, with the name.
        kind: what the state is of.
        step: the session's, where it is more than the largest count.
        bounds: numbers or arrays by tensor, for "lower" or "upper" where that is "array"; without one there is none.
        answer: the dtype that the model's parameters were rounded to on their way; None: to their own.

    """
    bounds = bounds or {}
    wide = any(place.tensor.dtype == torch.float64 for place in places)
    names = kind.arrays(settings)
    kept = {place.name: state.get(place.tensor) or {} for place in places}
    body, views = Draft(
        dtype="float64" if wide else "float32",
        shapes={place.name: tuple(place.tensor.shape) for place in places},
        settings=settings,
        names=(*names, *bounds, *((EMA,) if settings.get("ema_decay") else ())),
        counts={name: _count(mine, kind, names) for name, mine in kept.items()},
        carried={number: {n: float(mine.get(number, 1.0)) for n, mine in kept.items()} for number in kind.numbers},
        step=step,
    ).laid_out()
    for place in places:
        _fill(views[PARAMETERS][place.name], _parameter(place, state, answer))
        for array in names:
            _fill(views[array][place.name], kept[place.name].get(array))
        for side, given in bounds.items():
            views[side][place.name][...] = given.get(place.name, -math.inf if side == "lower" else math.inf)
        if EMA in views:  # an average begins as the parameters
            _fill(views[EMA][place.name], kept[place.name].get(EMA, _parameter(place, state, answer)))
    return body


def _count(mine: Mapping[str, Any], kind: Kind, names: Iterable[str]) -> int:
    """Return how often a parameter was updated. SGD tells only whether, by its buffer: one of zeros has not begun."""
    if kind.counts:
        return int(mine.get("step", 0))
    return int(any(mine.get(array) is not None and bool(mine[array].any()) for array in names))


def with_buffer(
    settings: Mapping[str, Any], entries: Iterable[Any], kind: Kind, *, had: bool = False
) -> dict[str, Any]:
    """Say in the settings that the session has a momentum buffer, where it ``had`` one, or the state has some.

    Else a momentum that is 0 now would lose the velocity.
    """
    there = had or any(isinstance(entry, Mapping) and entry.get(BUFFER) is not None for entry in entries)
    return {**settings, BUFFER: True} if kind.heavy and there and not buffered(settings) else dict(settings)


def _parameter(place: Place, state: Mapping[torch.Tensor, Any], answer: str | None) -> torch.Tensor:
    """Return a parameter's master, if the model has not been given another value since."""
    tensor = place.tensor.detach()
    master = state.get(place.tensor, {}).get(MASTER)
    if master is None:
        return tensor
    seen = master if answer is None else master.to(BY_NAME[answer])
    return master if torch.equal(seen.to(tensor), tensor) else tensor


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
    held = torch.from_numpy(target)
    if source is None:  # never updated
        held.zero_()
    else:
        held.copy_(source)


def check_document(given: Any) -> None:
    """Check that this is a ``state_dict()``, before anything in it is looked for.

    Raises:
        InvalidState: it is none.

    """
    if not isinstance(given, Mapping) or not {"state", "param_groups"} <= given.keys():
        raise InvalidState("this is no optimizer's state: wanted a dict with 'state' and 'param_groups'")
    groups, state = given["param_groups"], given["state"]
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
    """Compare the names in a loaded state with those that there are. torch loads by position.

    Where the state has the same names in another order, and its keys are numbers, each would get another's arrays.
    Keys that are names (of `torch.distributed.checkpoint`) are in the right order already: the names here stay.

    Raises:
        InvalidState: they are in another order.

    """
    for old, group, mine in zip(saved, new, now, strict=True):
        theirs, ours = old.get("param_names"), mine.get("param_names")
        if not theirs or not ours or list(theirs) == list(ours) or sorted(theirs) != sorted(ours):
            continue
        if all(isinstance(key, int) for key in old["params"]):
            place = next(index for index, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
            raise InvalidState(
                f"the state has {theirs[place]!r} where this optimizer has {ours[place]!r}: the same parameters in "
                "another order, and torch loads by position. Give them in the order of then"
            )
        group["param_names"] = list(ours)


def check(places: Sequence[Place], state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]], kind: Kind) -> None:
    """Check a loaded state against the parameters: what the server would refuse is refused here, before it counts.

    Raises:
        InvalidState: an entry is missing, or of another shape, or none that an optimizer could have.

    """
    for place in places:
        if place.tensor not in state:
            continue
        mine = state[place.tensor]
        if not isinstance(mine, Mapping):
            raise InvalidState(f"the state of {place} is {mine!r:.40}; wanted a dict of {kind.torch}'s arrays")
        if not mine:
            continue
        arrays = kind.arrays(groups[place.group])
        if not kind.counts and all(mine.get(array) is None for array in arrays):
            continue  # SGD keeps None where there is no buffer yet
        wanted = (*(("step",) if kind.counts else ()), *kind.numbers, *arrays)
        for entry in wanted:
            if mine.get(entry) is None:
                hint = f"; it was saved without {ASKED[entry]}" if entry in ASKED else ""
                raise InvalidState(
                    f"the state of {place} has no {entry!r}{hint}; it has {_listed(mine)}, and {kind.torch} wants "
                    f"{_listed(wanted)}"
                )
        for array in (*arrays, *(own for own in (MASTER, EMA, BUFFER) if own in mine and own not in arrays)):
            if mine[array] is not None:
                _check_array(place, array, mine[array])
        _check_numbers(place, mine, kind)


def _check_array(place: Place, array: str, given: Any) -> None:
    if not isinstance(given, torch.Tensor) or given.is_complex() or not given.is_floating_point():
        kind = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
        raise InvalidState(f"{array} of {place} is {kind}; wanted a tensor of floats")
    if given.shape != place.tensor.shape:
        raise InvalidState(
            f"{array} of {place} has shape {list(given.shape)}, the parameter {list(place.tensor.shape)}"
        )
    dtype = torch.float64 if place.tensor.dtype == torch.float64 else torch.float32  # the session's
    held = given.detach().to(dtype)
    if not bool(torch.isfinite(held).all()):
        raise InvalidState(f"{array} of {place} has NaN or infinity; wanted finite numbers")
    if array in NONNEGATIVE and held.numel() and float(held.min()) < 0:
        raise InvalidState(f"{array} of {place} has elements below 0, which no update makes")


def _check_numbers(place: Place, mine: Mapping[str, Any], kind: Kind) -> None:
    if kind.counts:
        step = _float(place, "step", mine["step"])
        if not 0 <= step < MOST or step % 1:
            raise InvalidState(f"the step of {place} is {step!r}; wanted a count")
    for number in kind.numbers:
        value = _float(place, number, mine[number])
        if not math.isfinite(value):
            raise InvalidState(f"{number} of {place} is {value!r}; wanted a finite number")


def _float(place: Place, entry: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidState(
            f"{entry} of {place} is {type(value).__name__} {str(value)[:40]!r}; wanted a number"
        ) from None


def _listed(entries: Iterable[Any]) -> str:
    return ", ".join(str(entry)[:40] for entry in list(entries)[:12]) or "nothing"


def _number(value: float) -> torch.Tensor:
    """Return a number as torch keeps it: float32, float64 where that is the default dtype (or where it must be)."""
    wide = torch.get_default_dtype() == torch.float64 or value > 2**24
    return torch.tensor(float(value), dtype=torch.float64 if wide else torch.float32)
