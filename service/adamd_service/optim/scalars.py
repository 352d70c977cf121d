"""Every scalar that an update uses: computed once on the host in float64, rounded once to the session's dtype, kept in
the record.

So a replay needs no `pow`, and two machines whose `pow` differ in the last bit still replay the same bits.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from adamd_service.optim.settings import Group, Hyper, Settings, SettingsError, resolve_group

NUMERICS_ID = "adamd-1"
MEANING = {"wd": "the weight decay", "decay": "1 - lr*weight_decay", "step_size": "lr/(1 - beta1^t)", "eps": "eps"}


class Scalars(NamedTuple):
    """The scalars of one update, as Python floats that the session's dtype holds exactly. t is the tensor's own count,
    this update included.
    """

    sign: float  # -1 where the objective is maximized, else 1
    b1: float
    one_minus_b1: float
    b2: float
    one_minus_b2: float
    wd: float  # coupled weight decay (Adam); 0 for AdamW
    decay: float  # 1 - lr*weight_decay (AdamW); 1 for Adam
    step_size: float  # lr / (1 - b1^t)
    sqrt_bc2: float  # sqrt(1 - b2^t)
    eps: float


class Update(NamedTuple):
    """The tensors first..last-1 of the layout, neighbours, take one update with the same scalars."""

    first: int
    last: int
    scalars: Scalars


def plan(
    settings: Settings, names: Sequence[str], counts: Sequence[int], present: Sequence[bool], dtype: np.dtype[Any]
) -> tuple[Update, ...]:
    """The updates of one step: neighbouring present tensors with the same scalars merged into runs, in layout order.

    names, counts (updates so far) and present are by tensor. Raises SettingsError as check_scalars does, ValueError for
    unequal lengths.
    """
    if not len(names) == len(counts) == len(present):
        raise ValueError(f"{len(names)} names, {len(counts)} counts and {len(present)} presences")
    group_of = {tensor: index for index, group in enumerate(settings.groups) for tensor in group.tensors}
    made: dict[tuple[int | None, int], Scalars] = {}
    runs: list[tuple[int, int, Scalars]] = []
    for index, name in enumerate(names):
        if not present[index]:
            continue
        key = group_of.get(name), counts[index] + 1
        if key not in made:
            made[key] = _of_group(settings, *key, dtype)
        scalars = made[key]
        if runs and runs[-1][1] == index and (runs[-1][2] is scalars or runs[-1][2] == scalars):
            runs[-1] = runs[-1][0], index + 1, scalars
        else:
            runs.append((index, index + 1, scalars))
    return tuple(Update(*run) for run in runs)


def check_scalars(settings: Settings, names: Sequence[str], dtype: np.dtype[Any]) -> None:
    """Raise SettingsError where a scalar of the session or of a group would not survive rounding to `dtype`.

    t = 1 is the worst case (step_size only falls with t, sqrt_bc2 only grows), so a plan cannot fail later. The
    session's own settings are left out where every tensor of `names` is in a group.
    """
    grouped = {tensor for group in settings.groups for tensor in group.tensors}
    if not names or not grouped.issuperset(names):
        _of_group(settings, None, 1, dtype)
    for index in range(len(settings.groups)):
        _of_group(settings, index, 1, dtype)


def scalars_at(hyper: Hyper, t: int, dtype: np.dtype[Any], path: str = "") -> Scalars:
    """The scalars of a tensor's update number t (from 1), rounded to `dtype` (float32 or float64).

    Raises SettingsError (at `path` + the setting to blame) where one becomes infinite, or a nonzero eps subnormal or 0.
    """
    b1, b2 = hyper.betas
    exact = Scalars(
        sign=-1.0 if hyper.maximize else 1.0,
        b1=b1,
        one_minus_b1=1.0 - b1,
        b2=b2,
        one_minus_b2=1.0 - b2,
        wd=0.0 if hyper.decoupled else hyper.weight_decay,
        decay=1.0 - hyper.lr * hyper.weight_decay if hyper.decoupled else 1.0,
        step_size=hyper.lr / (1.0 - b1**t),
        sqrt_bc2=math.sqrt(1.0 - b2**t),
        eps=hyper.eps,
    )
    with np.errstate(over="ignore", under="ignore"):
        rounded = Scalars._make(np.array(exact, np.float64).astype(dtype).tolist())
    blame = {"wd": "weight_decay", "decay": "weight_decay", "step_size": "lr"}
    for name, value in zip(Scalars._fields, rounded, strict=True):
        if not math.isfinite(value):
            setting = path + blame.get(name, name)
            raise SettingsError(
                setting,
                f"{setting} makes {MEANING[name]} {getattr(exact, name):g}, more than {dtype} holds; wanted less",
            )
    if hyper.eps and rounded.eps < float(np.finfo(dtype).smallest_normal):
        least = float(np.finfo(dtype).smallest_normal)
        raise SettingsError(
            f"{path}eps",
            f"{path}eps is {hyper.eps!r}, below {dtype}'s smallest normal number; wanted 0, or {least:.8g} or more",
        )
    return rounded


@lru_cache(maxsize=256)  # a step asks for the same ones with every slice
def typed(scalars: Scalars, dtype: np.dtype[Any]) -> tuple[np.floating[Any], ...]:
    """The scalars as NumPy scalars of `dtype`: a Python float in their place would make a kernel compute in float64.

    Raises ValueError where `dtype` does not hold one exactly: they were rounded for another session.
    """
    with np.errstate(over="ignore", under="ignore"):
        values = np.array(scalars, np.float64).astype(dtype)
    if values.tolist() != list(scalars):  # both as Python's: NumPy would first round one to the other side's dtype
        raise ValueError(f"scalars that are not rounded to {dtype}: {scalars}")
    return tuple(values)


def updates_to_json(updates: Sequence[Update]) -> list[dict[str, Any]]:
    """The updates as JSON values; floats keep every bit, as JSON's shortest decimal does."""
    return [{"first": update.first, "last": update.last, **update.scalars._asdict()} for update in updates]


def updates_from_json(raw: object) -> tuple[Update, ...]:
    """What updates_to_json wrote. The store is hostile until checked: raises ValueError for another shape, order or
    range, or a non-finite number.
    """
    if not isinstance(raw, list):
        raise ValueError(f"updates are a {type(raw).__name__}, not a list")
    updates = []
    last = 0
    for index, item in enumerate(raw):
        if not isinstance(item, dict) or set(item) != {"first", "last", *Scalars._fields}:
            raise ValueError(f"update {index} does not have the keys first, last, {', '.join(Scalars._fields)}")
        first, end = item["first"], item["last"]
        if type(first) is not int or type(end) is not int or not last <= first < end:
            raise ValueError(
                f"update {index} covers {first!r}..{end!r} after {last}: wanted ascending ranges that are not empty"
            )
        last = end
        updates.append(Update(first, end, _scalars_from_json(index, item)))
    return tuple(updates)


def _scalars_from_json(index: int, item: dict[str, Any]) -> Scalars:
    values = [item[name] for name in Scalars._fields]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"update {index} has a scalar that is not a finite number")
    scalars = Scalars._make(float(value) + 0.0 for value in values)  # -0 becomes +0
    in_range = (
        abs(scalars.sign) == 1.0
        and all(0.0 <= beta <= 1.0 for beta in (scalars.b1, scalars.b2))  # 1 where 1 - 1e-9 was rounded to float32
        and all(0.0 < part <= 1.0 for part in (scalars.one_minus_b1, scalars.one_minus_b2, scalars.sqrt_bc2))
        and all(value >= 0.0 for value in (scalars.wd, scalars.step_size, scalars.eps))
    )
    if not in_range:
        raise ValueError(f"update {index} has a scalar out of range: {scalars}")
    return scalars


def _of_group(settings: Settings, index: int | None, t: int, dtype: np.dtype[Any]) -> Scalars:
    group: Group | None = None if index is None else settings.groups[index]
    return scalars_at(resolve_group(settings, group), t, dtype, "" if index is None else f"groups[{index}].")
