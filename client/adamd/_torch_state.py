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

from adamd import _export
from adamd._export import PARAMETERS, Draft, Export
from adamd._torch_kinds import Kind
from adamd._torch_layout import BY_NAME, NARROW, Place
from adamd.errors import InvalidState

MASTER = "master_param"  # as transformer_engine's FusedAdam calls it
EMA = "ema"  # the parameters' moving average, which torch takes no notice of in a state
AROUND = "lower", "upper", "best"  # what adamd keeps around any optimizer besides: no part of torch's state
ASKED = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}  # by which setting
MOST = 2**53  # a float64 counts so far
State = dict[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An export: at which step of which history it was taken, and the state in torch's layout."""

    step: int
    chain: str
    state: State


def unpack(export: bytes, places: Sequence[Place], kind: Kind, *, rounded: bool) -> Unpacked:
    """Read an export. Parameters that were never updated have no state, as in torch."""
    found = _export.read(export)
    return Unpacked(found.step, found.chain, laid_out(found, places, kind, rounded=rounded, ema=True))


def laid_out(found: Export, places: Sequence[Place], kind: Kind, *, rounded: bool = False, ema: bool = False) -> State:
    """Return the state in torch's layout, in memory of its own.

    ``rounded``: the model has rounded parameters, so their masters travel. ``ema``: so does their moving average.
    """
    left = AROUND if ema else (*AROUND, EMA)
    state: State = {}
    for place in places:
        count = found.counts[place.name]
        narrow = place.tensor.dtype in NARROW
        if not count and not kind.always:
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
        if mine:
            state[place.tensor] = mine
    return state


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
    """Return how often a parameter was updated. SGD tells only whether, by its buffer."""
    if kind.counts:
        return int(mine.get("step", 0))
    return int(any(mine.get(array) is not None for array in names))


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


def check(places: Sequence[Place], state: Mapping[Any, Any], settings: Mapping[str, Any], kind: Kind) -> None:
    """Check a loaded state against the parameters.

    Raises:
        InvalidState: an entry is missing, or of another shape, or none that an optimizer could have.

    """
    arrays = kind.arrays(settings)
    for place in places:
        mine = state.get(place.tensor)
        if not mine:
            continue
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
        for array in (*arrays, *(own for own in (MASTER, EMA) if own in mine)):
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
