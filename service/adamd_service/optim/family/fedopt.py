"""FedOpt: the server's optimizers of federated learning, FedAdam, FedYogi and FedAdagrad.

All of them take the pseudo-gradient g = -Delta, where Delta is the mean of what the clients' training changed. Each has
three forms, which differ in where v begins and in how the bias of the moments is corrected:

    form      v_0      bias correction
    paper     tau^2    none: Reddi et al. 2021, "Adaptive Federated Optimization", arXiv:2003.00295, algorithm 2
    torch     0        of Adam, Yogi and Adagrad, eps beside the corrected root, by the exponent t
    flower    0        FedAdam: eps beside sqrt(v) itself, by the exponent t + 1; FedYogi and FedAdagrad: none

`flower` is what `flwr.serverapp.strategy` 1.42 computes. Its FedAdam has the exponent server_round + 1, where rounds
count from 1, and so do a tensor's updates here; a round that brings Flower no reply counts there, and not here.
`initial_accumulator_value` is v_0, eps is the paper's tau, and lr its eta. Defaults are Flower's.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from numpy import sqrt, where

from adamd_service.optim.family import adam, yogi
from adamd_service.optim.family.moments import averages, first_moment
from adamd_service.optim.recurrence.language import Operand
from adamd_service.optim.recurrence.optimizer import Hyper, Optimizer


def fedadagrad(
    p: Operand,
    g: Operand,
    m: Operand,
    s: Operand,
    /,
    b1: Operand,
    one_minus_b1: Operand,
    step_size: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
) -> tuple[Operand, ...]:
    r"""FedAdagrad: Adagrad with a first moment.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        s_t = s_{t-1} + g_t^2
        p_t = p_{t-1} - lr m_t / (sqrt(s_t) + eps)                   form "paper", "flower"
        p_t = p_{t-1} - lr / (1 - b1^t) * m_t / (sqrt(s_t) + eps)    form "torch"

    Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2, with its tau as eps and g = -Delta.

    Arrays: as `adam.adam`, s is the sum of squares, which stays as it is below `tiny`: see `adagrad.adagrad`. m below
    `tiny` becomes +0. Where d is 0 (eps may be) the quotient is 0. Returns the new (p, m, s).
    """
    m = b1 * m + one_minus_b1 * g
    m = where((-tiny < m) & (m < tiny), zero, m)
    s = s + g * g
    d = sqrt(s) + eps
    q = where(d == zero, zero, m / d)
    p = p - step_size * q
    return p, m, s


def first_square(hyper: Hyper) -> float:
    """The v_0 that a form has where `initial_accumulator_value` is left out: tau^2 in the paper's, else 0.

    Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2, which asks for v_{-1} >= tau^2.
    """
    return hyper.eps * hyper.eps if hyper.form == "paper" else 0.0


def _fedadam(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Those of Adam:

    step_size = lr,                                        sqrt_bc2 = 1                    form "paper"
    step_size = lr / (1 - b1^t),                           sqrt_bc2 = sqrt(1 - b2^t)       form "torch"
    step_size = lr sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)),    sqrt_bc2 = 1                    form "flower"
    """
    is_flower = hyper.form == "flower"
    same = hyper._replace(bias_correction=hyper.form != "paper", eps_form="hat" if is_flower else "outside")
    return adam.scalars(same, t + 1 if is_flower else t, decoupled=False), {}


def _fedyogi(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Those of Yogi, with its bias correction in form "torch" alone."""
    return yogi.scalars(hyper._replace(bias_correction=hyper.form == "torch"), t, carried)


def _fedadagrad(hyper: Hyper, t: int, carried: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    made = averages(hyper)
    corrected = first_moment(hyper, t) if hyper.form == "torch" else 1.0
    return {
        "b1": made["b1"],
        "one_minus_b1": made["one_minus_b1"],
        "step_size": hyper.lr / corrected,
        "eps": hyper.eps,
    }, {}


def _present(hyper: Hyper) -> tuple[str, ...]:
    return "exp_avg", "sum"


def _choices(scalars: Mapping[str, float], arrays: Collection[str]) -> dict[str, bool]:
    return {}


def _no_second_beta(hyper: Hyper) -> tuple[str, str] | None:
    """Refuse a number that no update would read."""
    if hyper.betas[1] != 0.0:
        return "betas", "fedadagrad sums the squares, and has no beta_2: wanted 0 as the second number"
    return None


TAU: Final = 1e-3
SETTINGS: Final[Mapping[str, Any]] = {
    "lr": 0.1,
    "betas": (0.9, 0.99),
    "eps": TAU,
    "form": "paper",
    "initial_accumulator_value": TAU * TAU,  # `first_square` of these
}
FEDADAM: Final = replace(
    adam.ADAM,
    name="fedadam",
    settings=SETTINGS,
    scalars=_fedadam,
    begins={"exp_avg_sq": "initial_accumulator_value"},
    derived={"initial_accumulator_value": first_square},
    fixed=frozenset({"form"}),
)
FEDYOGI: Final = replace(
    yogi.YOGI,
    name="fedyogi",
    settings={**SETTINGS, "lr": 0.01},
    scalars=_fedyogi,
    begins=FEDADAM.begins,
    derived=FEDADAM.derived,
    fixed=FEDADAM.fixed,
)
FEDADAGRAD: Final = Optimizer(
    name="fedadagrad",
    text=fedadagrad,
    arrays=(("m", "exp_avg"), ("s", "sum")),
    settings={**SETTINGS, "betas": (0.0, 0.0)},
    present=_present,
    scalars=_fedadagrad,
    choices=_choices,
    begins={"sum": "initial_accumulator_value"},
    nonnegative=("sum",),
    refuse=_no_second_beta,
    derived=FEDADAM.derived,
    fixed=FEDADAM.fixed,
)
