"""Every scalar that an update uses, computed once on the host and kept in the record.

Each is computed in float64 and rounded once to the session's dtype.

So a replay needs no `pow`, and two machines whose `pow` differ in the last bit still replay the same bits.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from adamd_service.optim.family import Hyper, Optimizer
from adamd_service.optim.recurrence import wrapping
from adamd_service.optim.recurrence.rule import Rule, required, rule_for, schema
from adamd_service.optim.recurrence.wrapping import AtStep
from adamd_service.optim.settings import Settings
from adamd_service.optim.validation import SettingsError

NUMERICS_ID = "adamd-1"
PLAIN: Final = AtStep()  # no schedule, nothing clipped
TIMES: Final = 1, 1000  # updates of a tensor by which every choice of a text has been taken
# Updates at which every scalar has been at its largest: Adam's step size in the first, that with eps "hat" or a warm-up
# in the last that there can be, SGD's 1 - dampening from the second on.
EXTREMES: Final = 1, 2, 2**53


class Scalars(NamedTuple):
    """The scalars of one update, and the variant of the optimizer that they are for.

    values: as Python floats that the session's dtype holds exactly, in `rule.scalars`' order. typed: the same as NumPy
    scalars of it, and its smallest normal number and 0: a Python float in their place would make a kernel compute in
    float64. dtype: the session's.
    """

    rule: Rule
    values: tuple[float, ...]
    typed: tuple[np.floating[Any], ...]
    dtype: np.dtype[Any]

    @property
    def named(self) -> dict[str, float]:
        """The values by name, in the records' order."""
        return dict(zip(self.rule.scalars, self.values, strict=True))


class Update(NamedTuple):
    """The tensors first..last-1 of the layout, neighbours, take one update with the same scalars. carried: what is then
    kept for each of them, in `Optimizer.carried`'s order.
    """

    first: int
    last: int
    scalars: Scalars
    carried: tuple[float, ...] = ()


def plan(
    settings: Settings,
    names: Sequence[str],
    counts: Sequence[int],
    present: Sequence[bool],
    dtype: np.dtype[Any],
    carried: Sequence[tuple[float, ...]] | None = None,
    at: AtStep = PLAIN,
) -> tuple[Update, ...]:
    """The updates of one step: neighbouring present tensors with the same scalars merged into runs, in layout order.

    names, counts (updates so far), present and carried (None where the optimizer carries nothing) are by tensor; `at`
    is what the step itself decides (`at_step`). Raises SettingsError as check_scalars does, ValueError for unequal
    lengths.
    """
    if not len(names) == len(counts) == len(present) == len(counts if carried is None else carried):
        raise ValueError(f"{len(names)} names, {len(counts)} counts and {len(present)} presences")
    if carried is None and settings.optimizer.carried:
        raise ValueError(f"{settings.optimizer.name} carries numbers along; wanted what each tensor carries")
    group_of = settings.places.of if settings.groups else None
    made: dict[tuple[int | None, int, tuple[float, ...]], tuple[Scalars, tuple[float, ...]]] = {}
    runs: list[Update] = []
    for index, name in enumerate(names):
        if not present[index]:
            continue
        key = None if group_of is None else group_of(name), counts[index] + 1, () if carried is None else carried[index]
        found = made.get(key)
        if found is None:
            found = made[key] = scalars_at(settings, *key, dtype, at)
        if runs and runs[-1].last == index and (runs[-1].scalars is found[0] or runs[-1][2:] == found):
            runs[-1] = runs[-1]._replace(last=index + 1)
        else:
            runs.append(Update(index, index + 1, *found))
    return tuple(runs)


def check_scalars(settings: Settings, names: Sequence[str], dtype: np.dtype[Any]) -> None:
    """Raise SettingsError where a scalar of the session or of a group, or what a state array begins as, would not
    survive rounding to `dtype`.

    Not only in its next update: a session that goes on until a later one would be refused every step from there on. Of
    `EXTREMES` the ones between are never beyond. The session's own settings are left out where every tensor of `names`
    is in a group.
    """
    for array in settings.arrays:
        first, most = settings.begin(array), float(np.finfo(dtype).max)
        if not isinstance(first, str) and first > most:
            setting = settings.optimizer.begins[array]
            raise SettingsError(setting, f"{setting} is {first!r}, more than {dtype} holds; wanted at most {most:.8g}")
    own = not names or any(settings.places.of(name) is None for name in names)
    for index in (*((None,) if own else ()), *range(len(settings.groups))):
        for t in EXTREMES:
            scalars_at(settings, index, t, _first(settings), dtype)


def of_session(settings: Settings, dtype: np.dtype[Any]) -> Iterator[Scalars]:
    """Scalars of every variant that a session with these settings will run."""
    for index in (None, *range(len(settings.groups))):
        for t in TIMES:
            with suppress(SettingsError):  # of settings that no tensor may have
                yield scalars_at(settings, index, t, _first(settings), dtype)[0]


def _first(settings: Settings) -> tuple[float, ...]:
    return tuple(settings.optimizer.carried.values())


def scalars_at(
    settings: Settings,
    group: int | None,
    t: int,
    carried: tuple[float, ...],
    dtype: np.dtype[Any],
    at: AtStep = PLAIN,
) -> tuple[Scalars, tuple[float, ...]]:
    """The scalars of update number t (from 1) of a tensor of `group` (None: of none), rounded to `dtype` (float32 or
    float64), and what the tensor carries after it.

    Raises SettingsError (at the setting to blame) where one becomes infinite, or a nonzero eps, clip or scale subnormal
    or 0.
    """
    optimizer, hyper = settings.optimizer, settings.hyper if group is None else settings.groups[group].hyper
    exact, after = _exact(optimizer, hyper, t, carried, at)
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.array([*exact.values()], np.float64).astype(dtype)
    values = rounded.tolist()
    if not all(map(math.isfinite, (*values, *after))) or _too_small(exact, dtype):
        raise _not_held(optimizer, exact, values, dtype, "" if group is None else f"groups[{group}].")
    for (name, _), value in zip(exact.items(), values, strict=True):
        about = schema(optimizer)[name]
        if not about.least <= value <= about.most:  # no record that a replay would refuse
            raise _foreign(optimizer, carried)
    rule = rule_for(optimizer, dict(zip(exact, values, strict=True)), settings.arrays)
    return Scalars(rule, tuple(values), (*rounded, *constants(dtype)), dtype), after


def _exact(
    optimizer: Optimizer, hyper: Hyper, t: int, carried: tuple[float, ...], at: AtStep
) -> tuple[dict[str, float], tuple[float, ...]]:
    now = hyper if at.lr_factor == 1.0 else hyper._replace(lr=hyper.lr * at.lr_factor)
    try:
        own, after = optimizer.scalars(now, t, dict(zip(optimizer.carried, carried, strict=True)) if carried else {})
    except ArithmeticError:  # a division by 0, or a power beyond float64
        raise _foreign(optimizer, carried) from None
    made = wrapping.scalars(hyper, at.clip_factor) | own
    ordered = {name: made[name] for name in schema(optimizer) if name in made}
    return ordered, tuple([after[name] for name in optimizer.carried]) if carried else ()


def _foreign(optimizer: Optimizer, carried: tuple[float, ...]) -> SettingsError:
    told = ", ".join(f"{name} {value!r}" for name, value in zip(optimizer.carried, carried, strict=True))
    return SettingsError("", f"no update of {optimizer.name} follows from these settings{f' and {told}' * bool(told)}")


def _too_small(exact: Mapping[str, float], dtype: np.dtype[Any]) -> str | None:
    """The first scalar that may not be subnormal, but is."""
    least = _least(dtype)
    for name in wrapping.LEAST:
        if 0.0 < abs(exact.get(name, 0.0)) < least:
            return name
    return None


@cache
def _least(dtype: np.dtype[Any]) -> float:
    """`tiny` as Python's: a comparison with NumPy's costs as much as everything else here."""
    return float(constants(dtype)[0])


@cache
def constants(dtype: np.dtype[Any]) -> tuple[np.floating[Any], np.floating[Any]]:
    """`tiny`, the smallest normal number, and `zero`."""
    return np.finfo(dtype).smallest_normal, dtype.type(0)


def _not_held(
    optimizer: Optimizer, exact: Mapping[str, float], values: Sequence[float], dtype: np.dtype[Any], path: str
) -> SettingsError:
    for (name, value), rounded in zip(exact.items(), values, strict=True):
        about = schema(optimizer)[name]
        if not math.isfinite(rounded):
            setting = path + about.setting
            return SettingsError(
                setting, f"{setting} makes {about.meaning} {value:g}, more than {dtype} holds; wanted less"
            )
        if name == _too_small(exact, dtype):
            setting = path + about.setting
            return SettingsError(
                setting,
                f"{setting} is {abs(value)!r}, below {dtype}'s smallest normal number; wanted "
                f"{'' if name == 'sign' else '0, or '}{_least(dtype):.8g} or more",
            )
    return SettingsError(f"{path}lr", f"{path}lr makes what the optimizer carries along infinite; wanted less")


def typed(values: Sequence[float], dtype: np.dtype[Any]) -> tuple[np.floating[Any], ...]:
    """`Scalars.typed` of these values. Raises ValueError where `dtype` does not hold one exactly."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.array(values, np.float64).astype(dtype)
    if rounded.tolist() != list(values):  # both as Python's: NumPy would first round one to the other side's dtype
        raise ValueError(f"scalars that are not rounded to {dtype}: {list(values)}")
    return (*rounded, *constants(dtype))


def updates_to_json(updates: Sequence[Update]) -> list[dict[str, Any]]:
    """The updates as JSON values; floats keep every bit, as JSON's shortest decimal does."""
    made = []
    for update in updates:
        one: dict[str, Any] = {"first": update.first, "last": update.last, **update.scalars.named}
        if update.carried:
            one["carried"] = dict(zip(update.scalars.rule.optimizer.carried, update.carried, strict=True))
        made.append(one)
    return made


def updates_from_json(
    raw: object, optimizer: Optimizer, arrays: tuple[str, ...], dtype: np.dtype[Any]
) -> tuple[Update, ...]:
    """What updates_to_json wrote, of a session with these state arrays. The store is hostile until checked: raises
    ValueError for another shape, order or range, a number that is not finite, or not one of `dtype`.
    """
    if not isinstance(raw, list):
        raise ValueError(f"updates are a {type(raw).__name__}, not a list")
    updates = []
    last = 0
    for index, item in enumerate(raw):
        if not isinstance(item, dict):
            raise ValueError(f"update {index} is a {type(item).__name__}, not an object")
        rest = dict(item)
        first, end, kept = rest.pop("first", None), rest.pop("last", None), rest.pop("carried", {})
        if type(first) is not int or type(end) is not int or not last <= first < end:
            raise ValueError(
                f"update {index} covers {first!r}..{end!r} after {last}: wanted ascending ranges that are not empty"
            )
        last = end
        named = _named(index, rest, optimizer)
        values = tuple(named.values())
        scalars = Scalars(rule_for(optimizer, named, arrays), values, typed(values, dtype), dtype)
        updates.append(Update(first, end, scalars, carried_from_json(kept, optimizer, f"update {index}")))
    return tuple(updates)


def carried_from_json(raw: object, optimizer: Optimizer, where: str) -> tuple[float, ...]:
    """What a tensor carries, from {name: number}. Raises ValueError for anything else."""
    if not isinstance(raw, dict) or set(raw) != set(optimizer.carried):
        raise ValueError(f"{where} carries other numbers than {', '.join(optimizer.carried) or 'none'}")
    values = [raw[name] for name in optimizer.carried]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{where} carries something that is not a finite number")
    return tuple(float(value) for value in values)


def _named(index: int, item: dict[str, Any], optimizer: Optimizer) -> dict[str, float]:
    known = schema(optimizer)
    if not known.keys() >= item.keys() or not item.keys() >= set(required(optimizer)):
        raise ValueError(f"update {index} does not have the scalars {', '.join(required(optimizer))}")
    named = {}
    for name, about in known.items():
        if name not in item:
            continue
        value = item[name]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"update {index} has a scalar that is not a finite number: {name}")
        if not about.least <= value <= about.most or (name == "sign" and value == 0.0):
            raise ValueError(f"update {index} has a scalar out of range: {name} is {value!r}")
        named[name] = float(value) + 0.0  # -0 becomes +0
    return named
