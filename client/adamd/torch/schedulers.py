"""Gives torch's schedulers what they need when a session is resumed by its name.

A scheduler keeps its base values ("initial_lr", …) in the groups, where ``state_dict()`` saves them. A session has no
such settings. So the steps of a scheduled optimizer carry them as metrics, and a resumed optimizer reads them there.
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
MAX_METRICS = 32  # of schedulers; a session takes 64 in all
OURS = str(Path(__file__).parent), str(Path(torch.__file__).parent)
Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A resumed session, as it was before the first step.

    Attributes:
        who: the session, in words.
        step: its step.
        rates: the lr of each group in its last step.
        bases: the lr of each group at which a scheduler began; None where there was none.

    """

    who: str
    step: int
    rates: tuple[float, ...]
    bases: tuple[float | None, ...]


def as_metrics(groups: Groups) -> dict[str, float] | None:
    """Return as metrics what schedulers keep in the groups."""
    metrics = {
        _metric(key, index, groups): float(group[key])
        for index, group in enumerate(groups)
        for key in SCHEDULED
        if key in group and _is_number(group[key])
    }
    return metrics if 0 < len(metrics) <= MAX_METRICS else None


def from_metrics(metrics: Mapping[str, Any], groups: Groups) -> list[dict[str, float]]:
    """Return by group what `as_metrics` wrote into the last step's metrics."""
    return [
        {key: metrics[name] for key in SCHEDULED if _is_number(metrics.get(name := _metric(key, index, groups)))}
        for index in range(len(groups))
    ]


def resume_schedule(optimizer: Any, resumed: Resumed) -> None:
    """Set lr before the first step where a scheduler goes on; warn where it begins anew or is missing."""
    schedulers = _schedulers(optimizer) if hasattr(optimizer.step, "_wrapped_by_lr_sched") else []
    if any(_epoch(scheduler) > 0 for scheduler in schedulers):
        if len(schedulers) == 1:
            _advance_lr(schedulers[0], optimizer.param_groups, resumed.rates)
        return
    rows = zip(optimizer.param_groups, resumed.bases, resumed.rates, strict=False)
    moved = [
        (base, rate)
        for group, base, rate in rows
        if base is not None and (schedulers or (base != rate and _number(group["lr"]) == rate))
    ]
    if not moved:
        return
    base, rate = moved[0]
    what = (
        f"a torch scheduler begins anew on it, though one had brought lr from {base:g} to {rate:g}"
        if schedulers
        else f"no torch scheduler is here, though one had brought lr from {base:g} to {rate:g}, where it stays now"
    )
    _warn(f"{resumed.who} is resumed at step {resumed.step}, and {what}. {how_to_go_on(resumed.step)}")


def how_to_go_on(step: int) -> str:
    """Say how a scheduler goes on."""
    return (
        f"To go on with a schedule, make the scheduler with last_epoch={max(step - 1, 0)} (how often it was stepped, "
        "less one: optimizer.session.step_number - 1, where that is with every batch), or load its own state_dict()"
    )


def _advance_lr(scheduler: Any, groups: Groups, rates: Sequence[float]) -> None:
    """Set lr to the scheduler's value for the next step: the session has only that of its last step.

    A scheduler whose state was loaded has the value. One that was made with ``last_epoch`` took its rates from the
    groups; its closed form shows whether they are one step behind.
    """
    last_rates, current = _numbers(scheduler.get_last_lr()), _numbers(group["lr"] for group in groups)
    # CosineAnnealingWarmRestarts does not count its steps, and has its rate either way.
    if getattr(scheduler, "_step_count", 2) > 1 or isinstance(scheduler, CosineAnnealingWarmRestarts):
        new_rates = last_rates
        if getattr(scheduler, "cycle_momentum", False):
            _compute_rates(scheduler)  # its state has no momentum; computing sets it in the groups
    elif (closed := _closed_form(scheduler)) is not None:
        if any(_near(rate, exact) or now != rate for now, rate, exact in zip(current, rates, closed, strict=True)):
            return
        new_rates = _compute_rates(scheduler)
        if not all(_near(rate, exact) for rate, exact in zip(new_rates, closed, strict=True)):
            return
        scheduler._last_lr = list(new_rates)
    else:
        return
    for group, rate in zip(groups, new_rates, strict=False):
        if rate != _number(group["lr"]):
            _set(group, rate)


def _compute_rates(scheduler: Any) -> list[float]:
    """Return the rates that a scheduler computes from those in the groups."""
    scheduler._get_lr_called_within_step = True
    try:
        return _numbers(scheduler.get_lr())
    finally:
        scheduler._get_lr_called_within_step = False


def _closed_form(scheduler: Any) -> list[float] | None:
    """Return the rates at a scheduler's epoch by its closed form; None where it has none."""
    if isinstance(scheduler, MultiplicativeLR):
        epochs = range(1, scheduler.last_epoch + 1)
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [_number(base) * math.prod(factor(epoch) for epoch in epochs) for base, factor in pairs]
    return _numbers(scheduler._get_closed_form_lr()) if hasattr(scheduler, "_get_closed_form_lr") else None


def _near(rate: float, exact: float) -> bool:
    """Say whether a rate equals the closed form's, up to the roundings of many steps."""
    return math.isclose(rate, exact, rel_tol=1e-6, abs_tol=1e-15)


def _epoch(scheduler: Any) -> int:
    inner = getattr(scheduler, "_schedulers", ())
    return max([getattr(scheduler, "last_epoch", 0), *(_epoch(scheduler) for scheduler in inner)])


def warn_overruled(who: str, step: int, lines: Sequence[str], how: str) -> None:
    """Warn of settings in the script that the session overrules, as a loaded state would."""
    if lines:
        _warn(
            f"{who} is resumed at step {step} with its own settings, as load_state_dict() would: {'; '.join(lines)}. "
            f"Give those of the session, or leave them out; to go on with others, {how}"
        )


def warn_doubt(who: str, tensors: int) -> None:
    """Warn of tensors that may be in another order than the session's."""
    if tensors:
        _warn(
            f"{who} knows its tensors by their position only, and {tensors} of them have the shape of another: nothing "
            "in their values tells whether they are given in the order in which it was made. If they are not, layers "
            "have changed places. A session that is made with model.named_parameters() knows them by name"
        )


def _warn(message: str) -> None:
    """Warn at the line of the user's program that called."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _schedulers(optimizer: Any) -> list[Any]:
    """Search for an optimizer's schedulers, which it does not list; leave out those inside others."""
    schedulers = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), LRScheduler)
        and not isinstance(candidate, ReduceLROnPlateau)
        and candidate.__dict__.get("optimizer") is optimizer
    ]
    nested = {id(inner) for candidate in schedulers for inner in getattr(candidate, "_schedulers", ())}
    return [candidate for candidate in schedulers if id(candidate) not in nested]


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
