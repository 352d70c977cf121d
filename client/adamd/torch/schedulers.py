"""Gives torch's schedulers what they need when a session is resumed by its name.

A scheduler keeps its base in the groups ("initial_lr", …), where ``state_dict()`` has it. A session has no such
settings; so the steps of a scheduled optimizer carry them as metrics, and who resumes the session finds them there.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, MultiplicativeLR, ReduceLROnPlateau

SCHEDULED = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")
MOST = 32  # numbers that a step carries besides; a session takes 64 metrics
OURS = str(Path(__file__).parent), str(Path(torch.__file__).parent)
Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A session as it was found, until the first step.

    Attributes:
        who: it, in words.
        step: where it was.
        rates: the lr of each group, as its last step had it.
        bases: the lr from which a scheduler came there; None where there was none.

    """

    who: str
    step: int
    rates: tuple[float, ...]
    bases: tuple[float | None, ...]


def remembered(groups: Groups) -> dict[str, float] | None:
    """Return what schedulers have left in the groups, as metrics."""
    found = {
        _metric(key, index, groups): float(group[key])
        for index, group in enumerate(groups)
        for key in SCHEDULED
        if key in group and _is_number(group[key])
    }
    return found if 0 < len(found) <= MOST else None


def recalled(metrics: Mapping[str, Any], groups: Groups) -> list[dict[str, float]]:
    """Return by group what `remembered` had written into the last step's metrics."""
    return [
        {key: metrics[name] for key in SCHEDULED if _is_number(metrics.get(name := _metric(key, index, groups)))}
        for index in range(len(groups))
    ]


def settle(optimizer: Any, resumed: Resumed) -> None:
    """Before the first step: follow a scheduler that goes on, and warn of one that begins anew, or is missing."""
    made = _schedulers(optimizer) if hasattr(optimizer.step, "_wrapped_by_lr_sched") else []
    if any(_epoch(one) > 0 for one in made):
        if len(made) == 1:
            _follow(made[0], optimizer.param_groups, resumed.rates)
        return
    rows = zip(optimizer.param_groups, resumed.bases, resumed.rates, strict=False)
    moved = [
        (base, rate)
        for group, base, rate in rows
        if base is not None and (made or (base != rate and _number(group["lr"]) == rate))
    ]
    if not moved:
        return
    base, rate = moved[0]
    what = (
        f"a torch scheduler begins anew on it, though one had brought lr from {base:g} to {rate:g}"
        if made
        else f"no torch scheduler is here, though one had brought lr from {base:g} to {rate:g}, where it stays now"
    )
    _warn(f"{resumed.who} is resumed at step {resumed.step}, and {what}. {how_to_go_on(resumed.step)}")


def how_to_go_on(step: int) -> str:
    """Say how a scheduler goes on."""
    return (
        f"To go on with a schedule, make the scheduler with last_epoch={max(step - 1, 0)} (how often it was stepped, "
        "less one: optimizer.session.step_number - 1, where that is with every batch), or load its own state_dict()"
    )


def _follow(scheduler: Any, groups: Groups, rates: Sequence[float]) -> None:
    """Set lr to what a scheduler that goes on has for the next step: the session knows that of its last one only.

    Where the scheduler's state was loaded, it has the rates. Where it was made with ``last_epoch``, it takes those in
    the groups for its own; whether they are one step behind, its closed form tells.
    """
    last, now = _numbers(scheduler.get_last_lr()), _numbers(group["lr"] for group in groups)
    # CosineAnnealingWarmRestarts does not count its steps, and has its rate either way.
    if getattr(scheduler, "_step_count", 2) > 1 or isinstance(scheduler, CosineAnnealingWarmRestarts):
        wanted = last
        if getattr(scheduler, "cycle_momentum", False):
            _computed(scheduler)  # it has no momentum in its state, and sets it in the groups
    elif (closed := _closed_form(scheduler)) is not None:
        if any(_near(rate, exact) or had != rate for had, rate, exact in zip(now, rates, closed, strict=True)):
            return
        wanted = _computed(scheduler)
        if not all(_near(rate, exact) for rate, exact in zip(wanted, closed, strict=True)):
            return
        scheduler._last_lr = list(wanted)
    else:
        return
    for group, rate in zip(groups, wanted, strict=False):
        if rate != _number(group["lr"]):
            _set(group, rate)


def _computed(scheduler: Any) -> list[float]:
    """Return the rates that a scheduler computes from those in the groups."""
    scheduler._get_lr_called_within_step = True
    try:
        return _numbers(scheduler.get_lr())
    finally:
        scheduler._get_lr_called_within_step = False


def _closed_form(scheduler: Any) -> list[float] | None:
    """Return the rates at a scheduler's epoch, computed from where it began; None where that is not known."""
    if isinstance(scheduler, MultiplicativeLR):
        epochs = range(1, scheduler.last_epoch + 1)
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [_number(base) * math.prod(factor(epoch) for epoch in epochs) for base, factor in pairs]
    return _numbers(scheduler._get_closed_form_lr()) if hasattr(scheduler, "_get_closed_form_lr") else None


def _near(rate: float, exact: float) -> bool:
    """Say whether a rate is what a closed form has for it, but for the roundings of many steps."""
    return math.isclose(rate, exact, rel_tol=1e-6, abs_tol=1e-15)


def _epoch(scheduler: Any) -> int:
    inner = getattr(scheduler, "_schedulers", ())
    return max([getattr(scheduler, "last_epoch", 0), *(_epoch(one) for one in inner)])


def tell_overruled(who: str, step: int, found: Sequence[str], how: str) -> None:
    """Warn of settings that were given, and are not the session's: it keeps its own, as a loaded state would."""
    if found:
        _warn(
            f"{who} is resumed at step {step} with its own settings, as load_state_dict() would: {'; '.join(found)}. "
            f"Give those of the session, or leave them out; to go on with others, {how}"
        )


def tell_doubt(who: str, tensors: int) -> None:
    """Warn of tensors that may stand in another order than the session's."""
    if tensors:
        _warn(
            f"{who} knows its tensors by their position only, and {tensors} of them have the shape of another: nothing "
            "in their values tells whether they are given in the order in which it was made. If they are not, layers "
            "have changed places. A session that is made with model.named_parameters() knows them by name"
        )


def _warn(said: str) -> None:
    """Warn, at the line of the program that called."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(said, UserWarning, stacklevel=level)


def _schedulers(optimizer: Any) -> list[Any]:
    """Return the schedulers of an optimizer, without those that others have within them; it does not know them."""
    found = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), LRScheduler)
        and not isinstance(one, ReduceLROnPlateau)
        and one.__dict__.get("optimizer") is optimizer
    ]
    within = {id(inner) for one in found for inner in getattr(one, "_schedulers", ())}
    return [one for one in found if id(one) not in within]


def _metric(key: str, index: int, groups: Groups) -> str:
    return key if len(groups) == 1 else f"{key}.{index}"


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.numel() == 1)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value.detach().item() if isinstance(value, torch.Tensor) else value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [_number(value) for value in values]


def _set(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
