"""Learning-rate schedules: a factor of lr as a pure function of the session's step, in float64.

    lr_n = lr factor(n - 1),        n = 1, 2, … the number of the step (PUT …/steps/{n})

So the first update uses factor(0), as a torch scheduler that is stepped after each update has it, and as optax's
schedules, whose count begins at 0. Every factor lies in 0…1: lr is the largest rate that a schedule reaches. What was
resolved is recorded with the step's scalars, so a replay needs no schedule and no `cos`.

Every schedule but `linear` and `one_cycle`, which have their own, may begin with a linear warm-up (Goyal et al. 2017,
arXiv:1706.02677, section 2.2), W = warmup_steps, from init_factor; its own curve then begins at W, as in torch's
SequentialLR and optax's join_schedules:

    factor(k) = init_factor + (1 - init_factor) k / W   for k < W,      curve(k - W) from there on
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError

from adamd_service.optim.validation import SettingsError, Strict, first_error, number, one_of, shown, suggestion, whole

LONGEST: Final = 2**53
FRACTION = "a finite number from 0 to 1"
COUNT = "a whole number of steps, 1 or more"
WANTED: Final = {
    "warmup_steps": "a whole number of steps, 0 or more, and below total_steps where there is one",
    "stable_steps": "a whole number of steps, 0 or more",
    "total_steps": COUNT,
    "decay_steps": COUNT,
    "step_size": COUNT,
    "init_factor": FRACTION,
    "start_factor": FRACTION,
    "end_factor": FRACTION,
    "gamma": FRACTION,
    "pct_start": "a finite number, 0 or more and below 1",
    "power": "a finite number above 0",
    "div_factor": "a finite number, 1 or more",
    "final_div_factor": "a finite number, 1 or more",
    "anneal_strategy": '"cos" or "linear"',
    "decay_type": '"linear", "cosine" or "1-sqrt"',
}
# What the same thing is called elsewhere (torch, optax, Keras, transformers); compared without case, "_" and "-".
ALIASES: Final = {
    "tmax": "total_steps",
    "totaliters": "total_steps",
    "transitionsteps": "total_steps",
    "numtrainingsteps": "total_steps",
    "numwarmupsteps": "warmup_steps",
    "numstablesteps": "stable_steps",
    "numdecaysteps": "decay_steps",
    "alpha": "end_factor",
    "etamin": "end_factor",
    "endvalue": "end_factor",
    "minlrratio": "end_factor",
    "initvalue": "init_factor",
    "decayrate": "gamma",
    "exponent": "power",
}


Number: TypeAlias = Annotated[float, BeforeValidator(number)]
Fraction: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
Divisor: TypeAlias = Annotated[Number, Field(ge=1)]
Count: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=1, le=LONGEST)]
Length: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=LONGEST)]


class Constant(Strict):
    r"""lr itself, after a warm-up if wanted: curve(k) = 1."""

    name: Literal["constant"] = "constant"
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


class Linear(Strict):
    r"""A straight line, up (a warm-up) or down, then its end: torch's LinearLR, optax's linear_schedule.

    curve(k) = start_factor + (end_factor - start_factor) min(k, total_steps) / total_steps
    """

    name: Literal["linear"] = "linear"
    total_steps: Count
    start_factor: Fraction = 0.0
    end_factor: Fraction = 1.0


class Cosine(Strict):
    r"""Half a period of a cosine, then its end: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without
    restarts; torch's CosineAnnealingLR (T_max = total_steps, eta_min = lr end_factor), optax's
    warmup_cosine_decay_schedule (decay_steps = total_steps, which has the warm-up in it).

    curve(k) = end_factor + (1 - end_factor) (1 + cos(pi min(k, T) / T)) / 2,     T = total_steps - warmup_steps
    """

    name: Literal["cosine"] = "cosine"
    total_steps: Count
    end_factor: Fraction = 0.0
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


class Exponential(Strict):
    r"""A constant ratio from step to step: torch's ExponentialLR; optax's exponential_decay with transition_steps = 1.

    curve(k) = max(gamma^k, end_factor)
    """

    name: Literal["exponential"] = "exponential"
    gamma: Fraction
    end_factor: Fraction = 0.0
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


class StepDecay(Strict):
    r"""A drop every step_size steps: torch's StepLR; optax's exponential_decay with staircase.

    curve(k) = max(gamma^floor(k / step_size), end_factor)
    """

    name: Literal["step"] = "step"
    step_size: Count
    gamma: Fraction = 0.1
    end_factor: Fraction = 0.0
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


class Polynomial(Strict):
    r"""torch's PolynomialLR, optax's polynomial_schedule.

    curve(k) = end_factor + (1 - end_factor) (1 - min(k, T) / T)^power,     T = total_steps - warmup_steps
    """

    name: Literal["polynomial"] = "polynomial"
    total_steps: Count
    power: Annotated[Number, Field(gt=0)] = 1.0
    end_factor: Fraction = 0.0
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


class OneCycle(Strict):
    r"""Up to lr and far down again: Smith & Topin 2017, arXiv:1708.07120; torch's OneCycleLR (max_lr = lr, two phases).

    a = 1 / div_factor,     z = a / final_div_factor,     r = pct_start total_steps - 1,     e = total_steps - 1
    curve(k) = a + (1 - a) u(k / r)  for k <= r,      1 + (z - 1) u((min(k, e) - r) / (e - r))  beyond
    u(x) = (1 - cos(pi x)) / 2, or x where anneal_strategy is "linear"
    """

    name: Literal["one_cycle"] = "one_cycle"
    total_steps: Count
    pct_start: Annotated[Number, Field(ge=0, lt=1)] = 0.3
    div_factor: Divisor = 25.0
    final_div_factor: Divisor = 1e4
    anneal_strategy: Literal["cos", "linear"] = "cos"


class WarmupStableDecay(Strict):
    r"""Warm-up, a plateau, a decay, then its end: Hu et al. 2024, arXiv:2404.06395, section 4.2 (WSD); the decay
    1 - sqrt of Hägele et al. 2024, arXiv:2405.18392, equation 1; transformers' get_wsd_schedule.

    curve(k) = 1  for k < stable_steps,      end_factor + (1 - end_factor) f(x)  beyond
    x = min(k - stable_steps, decay_steps) / decay_steps
    f(x) = 1 - x (linear), (1 + cos(pi x)) / 2 (cosine), 1 - sqrt(x) (1-sqrt)
    """

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    stable_steps: Length
    decay_steps: Count
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    end_factor: Fraction = 0.0
    warmup_steps: Length = 0
    init_factor: Fraction = 0.0


Schedule: TypeAlias = Constant | Linear | Cosine | Exponential | StepDecay | Polynomial | OneCycle | WarmupStableDecay
SCHEDULES: Final[Mapping[str, type[Schedule]]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "step": StepDecay,
    "polynomial": Polynomial,
    "one_cycle": OneCycle,
    "warmup_stable_decay": WarmupStableDecay,
}


def factor(schedule: Schedule, n: int) -> float:
    """What lr is multiplied by in update n (from 1): in 0…1, float64. Raises ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"step {n}; the first update is 1")
    k = n - 1
    if not isinstance(schedule, Linear | OneCycle):
        if k < schedule.warmup_steps:
            return _between(schedule.init_factor, 1.0, k / schedule.warmup_steps)
        k -= schedule.warmup_steps
    return min(1.0, max(0.0, _curve(schedule, k)))  # a rounding may lead beyond


def _curve(schedule: Schedule, k: int) -> float:
    """The schedule's own equation, k steps after its warm-up."""
    match schedule:
        case Constant():
            return 1.0
        case Linear(total_steps=total):
            return _between(schedule.start_factor, schedule.end_factor, min(k, total) / total)
        case Cosine(total_steps=total, warmup_steps=warmup, end_factor=end):
            return _between(1.0, end, _half_cosine(min(k, total - warmup) / (total - warmup)))
        case Exponential(gamma=gamma, end_factor=end):
            return max(_power(gamma, k), end)
        case StepDecay(gamma=gamma, end_factor=end, step_size=size):
            return max(_power(gamma, k // size), end)
        case Polynomial(total_steps=total, warmup_steps=warmup, end_factor=end):
            left = 1.0 - min(k, total - warmup) / (total - warmup)
            return _between(end, 1.0, _power(left, schedule.power))
        case OneCycle():
            return _one_cycle(schedule, k)
        case WarmupStableDecay(stable_steps=stable, decay_steps=decay, end_factor=end):
            return _between(1.0, end, _DECAYED[schedule.decay_type](min(max(k - stable, 0), decay) / decay))


def _one_cycle(schedule: OneCycle, k: int) -> float:
    low = 1.0 / schedule.div_factor
    rise, end = schedule.pct_start * schedule.total_steps - 1.0, schedule.total_steps - 1
    bent: Callable[[float], float] = _half_cosine if schedule.anneal_strategy == "cos" else _straight
    if rise > 0.0 and k <= rise:
        return _between(low, 1.0, bent(k / rise))
    fallen = (min(k, end) - rise) / (end - rise) if rise < end else 1.0
    return _between(1.0, low / schedule.final_div_factor, bent(fallen))


def _between(start: float, end: float, x: float) -> float:
    return end if x == 1.0 else start + (end - start) * x  # exactly its end at the end


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:  # an exponent that no float holds
        return 1.0 if base == 1.0 else 0.0


def _straight(x: float) -> float:
    return x


def _half_cosine(x: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * x))


_DECAYED: Final[Mapping[str, Callable[[float], float]]] = {
    "linear": _straight,
    "cosine": _half_cosine,
    "1-sqrt": math.sqrt,
}


def parse_schedule(raw: object) -> Schedule:
    """A schedule from decoded JSON. Raises SettingsError at the first thing that is wrong."""
    if not isinstance(raw, dict) or "name" not in raw:
        came = "an object without a name" if isinstance(raw, dict) else shown(raw)
        raise SettingsError("", f'is {came}; wanted an object such as {{"name": "cosine", "total_steps": 1000}}')
    model = SCHEDULES.get(raw["name"]) if isinstance(raw["name"], str) else None
    if model is None:
        raise SettingsError("name", one_of(raw["name"], SCHEDULES))
    try:
        schedule = model.model_validate(raw)
    except ValidationError as error:
        raise _explain(model, *first_error(error)) from None
    _check_lengths(schedule)
    return schedule


def _check_lengths(schedule: Schedule) -> None:
    if isinstance(schedule, Cosine | Polynomial) and schedule.warmup_steps >= schedule.total_steps:
        raise SettingsError(
            "warmup_steps",
            f"is {schedule.warmup_steps} of {schedule.total_steps} total_steps; wanted fewer, as they are among them",
        )


def _explain(model: type[Schedule], place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    key = str(place[0])[:64].encode(errors="backslashreplace").decode() if place else ""
    name = model.model_fields["name"].default
    if kind == "extra_forbidden":
        hint = suggestion(key, model.model_fields, ALIASES)
        return SettingsError(key, f"is unknown to the schedule {name}; {hint}")
    if kind == "missing":
        return SettingsError(key, f"is missing; wanted {WANTED[key]}")
    return SettingsError(key, f"is {shown(came)}; wanted {WANTED.get(key, 'an object whose keys are names')}")
