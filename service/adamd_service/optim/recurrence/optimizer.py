"""The record of an optimizer: its recurrence, arrays, numbers and settings, and how settings become scalars."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from adamd_service.optim.recurrence.language import Text
from adamd_service.optim.schedules import Schedule


class Hyper(NamedTuple):
    """What counts for one tensor: every setting of the family, by torch's name. Each optimizer reads its own; the
    others have the values that switch them off.
    """

    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_form: str = "outside"  # of the square root's bias correction, as torch has it; "hat": on the uncorrected v
    bias_correction: bool = True
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    amsgrad: bool = False
    maximize: bool = False
    momentum: float = 0.0
    momentum_buffer: bool = False  # there is the array, whatever number momentum is now
    dampening: float = 0.0
    nesterov: bool = False
    alpha: float = 0.99
    centered: bool = False
    momentum_decay: float = 0.004
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    form: str = "paper"  # of FedOpt, see `fedopt`
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0
    # Around every optimizer (see `around`):
    schedule: Schedule | None = None
    gradient_scale: float = 1.0
    clip_norm: float = 0.0
    clip_value: float = 0.0
    ema_decay: float = 0.0
    lower: float | str | None = None
    upper: float | str | None = None


class Scalar(NamedTuple):
    """What a scalar may be (least <= it <= most; a record that says otherwise is damaged), and, for the error, which
    setting is to blame where the session's dtype does not hold it, and what it is.
    """

    least: float
    most: float
    setting: str
    meaning: str


INF: Final = float("inf")
ABOVE_0: Final = 5e-324  # the least float64 above 0
# Scalars of one name are the same in every text. 1 - b is never 0, b may be 1: 1 - 1e-9 rounded to float32.
KNOWN: Final[Mapping[str, Scalar]] = {
    "b1": Scalar(0.0, 1.0, "betas", "beta1"),
    "one_minus_b1": Scalar(ABOVE_0, 1.0, "betas", "1 - beta1"),
    "b2": Scalar(0.0, 1.0, "betas", "beta2"),
    "one_minus_b2": Scalar(ABOVE_0, 1.0, "betas", "1 - beta2"),
    "wd": Scalar(0.0, INF, "weight_decay", "the weight decay"),
    "decay": Scalar(-INF, INF, "weight_decay", "1 - lr*weight_decay"),
    "step_size": Scalar(0.0, INF, "lr", "the step size"),
    "sqrt_bc2": Scalar(ABOVE_0, 1.0, "betas", "sqrt(1 - beta2^t)"),
    "eps": Scalar(0.0, INF, "eps", "eps"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """Parameters to evaluate that are not those which gradients are taken at.

    text: a recurrence without choices; positional-only p, then state arrays by their own names; then the scalars. It
    returns (p,). scalars: what it needs, exact; raises ValueError, saying why, where these settings have no average.
    """

    text: Text
    scalars: Callable[[Hyper], dict[str, float]]


def _nothing_refused(hyper: Hyper) -> None:
    del hyper


@dataclass(frozen=True, slots=True, eq=False)
class Optimizer:
    """One member of the family.

    name: as `settings` have it. text: see `recurrence`; positional-only p, g, then the state arrays; then the scalars,
    `tiny` and `zero` among them where it reads them; then the choices, keyword-only. The g that it begins with is
    scaled already (maximize, gradient scale, clipping). It returns p, then the state arrays in the same order.
    arrays: (name in the text, name of the state array, torch's), in the text's order.
    settings: those that it has beside maximize and groups, with their defaults; torch's names. lr is 0.001 if left out.
    present: the state arrays, in `arrays`' order, of a session with these settings.
    scalars: (hyper, t, carried) -> (exact float64 scalars, all that the text names but tiny and zero; carried after).
    t is the tensor's own count, this update included, from 1.
    choices: of the text, from the recorded scalars and the state arrays there, so that a replay decides alike.
    begins: state arrays that do not begin as zeros: "params" (a copy of them), or the setting that each element begins
    with. carried: float64 numbers kept per tensor from update to update, with their first values.
    nonnegative: state arrays that are never below 0; they are watched for NaN and infinity, beside the parameters.
    schema: what KNOWN does not say about its scalars. refuse: of settings that do not fit together, which one, and what
    is wanted. derived: settings whose default follows from the others, and how. fixed: settings that never change,
    beside those that `present` and `begins` depend on. average: None where the parameters are those to evaluate.
    why_not_lazy: why an update of named elements alone (sparse-lazy) means nothing here; None: it does.
    """

    name: str
    text: Text
    arrays: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]
    present: Callable[[Hyper], tuple[str, ...]]
    scalars: Callable[[Hyper, int, Mapping[str, float]], tuple[dict[str, float], dict[str, float]]]
    choices: Callable[[Mapping[str, float], Collection[str]], dict[str, bool]]
    begins: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, float] = field(default_factory=dict)
    nonnegative: tuple[str, ...] = ()
    schema: Mapping[str, Scalar] = field(default_factory=dict)
    refuse: Callable[[Hyper], tuple[str, str] | None] = _nothing_refused
    derived: Mapping[str, Callable[[Hyper], float]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    average: Average | None = None
    why_not_lazy: str | None = None
