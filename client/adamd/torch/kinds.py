"""Describes torch's optimizers that a session can be: the settings of their groups, and their state arrays.

A session's settings and state arrays have the names that `torch.optim` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adamd.errors import InvalidState

Group = Mapping[str, Any]
BUFFER = "momentum_buffer"  # a state array, and the setting that gives it to a session
IN_THE_NAME = ("Adam", "decoupled_weight_decay")  # a session's name says it: "adam" or "adamw"


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of `torch.optim`.

    Attributes:
        torch: its name there.
        marks: settings of a group by which the class is recognised, together with ``lacks``.
        lacks: settings of other classes with these marks.
        changing: settings that may differ between groups and change between steps, with torch's defaults.
        fixed: settings that a session has for all of its tensors and for good, with torch's defaults.
        passive: the other settings of a group in torch 2.13, which choose between its own implementations. They are
            kept for ``state_dict()``, so that it loads in torch unchanged.
        arrays: the state arrays that a session with a group's settings has.
        numbers: the numbers that torch keeps for a parameter besides arrays and "step"; a session carries them.
        counts: torch keeps "step". `torch.optim.SGD` does not; its buffer shows only whether there was a step.
        always: torch also keeps the state of parameters that were never updated.

    """

    torch: str
    marks: tuple[str, ...]
    changing: Mapping[str, Any]
    arrays: Callable[[Group], tuple[str, ...]]
    lacks: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    passive: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    counts: bool = True
    always: bool = False

    def name(self, group: Group) -> str:
        """Return the name of its sessions: "adam" or "adamw", "nadam", …."""
        if self.torch == "Adam":
            return "adamw" if group["decoupled_weight_decay"] else "adam"
        return self.torch.lower()

    def fixed_settings(self, group: Group) -> dict[str, Any]:
        """Return the fixed settings of a group, as a session has them."""
        own = {key: default for key, default in self.fixed.items() if (self.torch, key) != IN_THE_NAME}
        return {
            key: bool(group[key]) if isinstance(default, bool) else float(group[key]) for key, default in own.items()
        }

    @property
    def may_have_buffer(self) -> bool:
        """It may have a momentum buffer."""
        return "momentum" in self.changing

    @property
    def defaults(self) -> dict[str, Any]:
        """What a group of it has, beside its parameters."""
        return {**self.changing, **self.fixed, **self.passive}


def _moments(group: Group) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group.get("amsgrad") else ("exp_avg", "exp_avg_sq")


def has_momentum_buffer(settings: Group) -> bool:
    """Say whether a session with these settings has a momentum buffer, or a group of a torch optimizer needs one."""
    momenta = (group.get("momentum") for group in settings.get("groups", ()))
    return bool(settings.get(BUFFER) or settings.get("momentum") or any(momenta))


def _rmsprop(group: Group) -> tuple[str, ...]:
    return ("square_avg", *_sgd(group), *(("grad_avg",) if group["centered"] else ()))


def _sgd(group: Group) -> tuple[str, ...]:
    return (BUFFER,) if has_momentum_buffer(group) else ()


_PLAIN = {"foreach": None, "capturable": False, "differentiable": False}
_FUSED = {"foreach": None, "differentiable": False, "fused": None}
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "maximize": False}

ADAM = Kind(
    torch="Adam",
    marks=("betas", "amsgrad"),
    changing=_ADAM,
    fixed={"amsgrad": False, "decoupled_weight_decay": False},
    passive={**_PLAIN, "fused": None},
    arrays=_moments,
)
NADAM = Kind(
    torch="NAdam",
    marks=("betas", "momentum_decay"),
    changing={**_ADAM, "lr": 2e-3, "momentum_decay": 4e-3},
    fixed={"decoupled_weight_decay": False},
    passive=_PLAIN,
    arrays=_moments,
    numbers=("mu_product",),
)
RADAM = Kind(
    torch="RAdam",
    marks=("betas", "decoupled_weight_decay"),
    lacks=("amsgrad", "momentum_decay"),
    changing=_ADAM,
    fixed={"decoupled_weight_decay": False},
    passive=_PLAIN,
    arrays=_moments,
)
ADAMAX = Kind(
    torch="Adamax",
    marks=("betas",),
    lacks=("amsgrad", "momentum_decay", "decoupled_weight_decay"),
    changing={**_ADAM, "lr": 2e-3},
    passive=_PLAIN,
    arrays=lambda group: ("exp_avg", "exp_inf"),
)
ADAGRAD = Kind(
    torch="Adagrad",
    marks=("lr_decay",),
    changing={"lr": 1e-2, "lr_decay": 0, "eps": 1e-10, "weight_decay": 0, "maximize": False},
    fixed={"initial_accumulator_value": 0.0},
    passive=_FUSED,
    arrays=lambda group: ("sum",),
    always=True,
)
RMSPROP = Kind(
    torch="RMSprop",
    marks=("alpha", "centered"),
    changing={"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "maximize": False},
    fixed={"centered": False},
    passive=_PLAIN,
    arrays=_rmsprop,
)
SGD = Kind(
    torch="SGD",
    marks=("dampening", "nesterov"),
    changing={"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False},
    passive=_FUSED,
    arrays=_sgd,
    counts=False,
)
KINDS = (ADAM, NADAM, RADAM, ADAMAX, ADAGRAD, RMSPROP, SGD)


def kind_of(groups: Sequence[Group]) -> Kind:
    """Return the optimizer that the groups' settings belong to.

    Raises:
        InvalidState: they belong to none, or to several.

    """
    kinds = {_kind(group).torch: _kind(group) for group in groups}
    if len(kinds) != 1:
        raise InvalidState(
            f"the param groups are of {' and of '.join(sorted(kinds)) or 'nothing'}; wanted one optimizer"
        )
    return next(iter(kinds.values()))


def by_session(name: str) -> Kind:
    """Return the class of torch that a session of this name is.

    Raises:
        InvalidState: torch has none.

    """
    for kind in KINDS:
        if name in (kind.torch.lower(), *(("adamw",) if kind is ADAM else ())):
            return kind
    raise InvalidState(f"torch has no optimizer {name!r}; its state can travel for {', '.join(torch_names())}")


def torch_names() -> Iterable[str]:
    """Return torch's names of the optimizers that a session can be."""
    return (*(kind.torch for kind in KINDS[:1]), "AdamW", *(kind.torch for kind in KINDS[1:]))


def _kind(group: Group) -> Kind:
    for kind in KINDS:
        if all(key in group for key in kind.marks) and not any(key in group for key in kind.lacks):
            return kind
    keys = ", ".join(sorted(str(key) for key in group if key != "params")[:16])
    raise InvalidState(
        f"a param group with {keys or 'no settings'} is of no optimizer that a session can be: "
        f"wanted that of {', '.join(torch_names())}"
    )
