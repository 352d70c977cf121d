"""Strategies: the optimizers that a server steps with, as settings of a session.

Each takes the pseudo-gradient g = -Delta, where Delta is the aggregate of what the clients' training changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

Form: TypeAlias = Literal["paper", "torch", "flower"]


class Strategy(Protocol):
    """An optimizer of the server."""

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings: its name, lr, …."""


@dataclass(frozen=True, slots=True)
class FedAdam:
    """FedAdam: Reddi et al. 2021, "Adaptive Federated Optimization", arXiv:2003.00295, algorithm 2.

    Attributes:
        eta: the server's learning rate.
        beta_1: decay rate of the first moment, in [0, 1).
        beta_2: decay rate of the second moment, in [0, 1).
        tau: added to the root of the second moment: the degree of adaptivity.
        form: "paper" has no bias correction, and v_0 = tau^2; "torch" is Adam's; "flower" is what Flower 1.42 computes.

    """

    eta: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    form: Form = "paper"

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return _fedopt("fedadam", self, beta_2=self.beta_2)


@dataclass(frozen=True, slots=True)
class FedYogi:
    """FedYogi: as `FedAdam`, with Yogi's second moment, which shrinks slowly: the same paper and algorithm."""

    eta: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    form: Form = "paper"

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return _fedopt("fedyogi", self, beta_2=self.beta_2)


@dataclass(frozen=True, slots=True)
class FedAdagrad:
    """FedAdagrad: as `FedAdam`, with the sum of squares in the second moment's place: the same paper and algorithm."""

    eta: float = 0.1
    beta_1: float = 0.0
    tau: float = 1e-3
    form: Form = "paper"

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return _fedopt("fedadagrad", self, beta_2=0.0)


def _fedopt(name: str, its: FedAdam | FedYogi | FedAdagrad, beta_2: float) -> dict[str, Any]:
    return {"name": name, "lr": its.eta, "betas": [its.beta_1, beta_2], "eps": its.tau, "form": its.form}


@dataclass(frozen=True, slots=True)
class FedAvg:
    """FedAvg: p <- p + eta Delta. McMahan et al. 2017, arXiv:1602.05629, has ``eta`` = 1: the clients' mean itself."""

    eta: float = 1.0

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return {"name": "sgd", "lr": self.eta}


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """FedAvg with server momentum: v <- momentum v - Delta, p <- p - eta v. Hsu et al. 2019, arXiv:1909.06335."""

    eta: float = 1.0
    momentum: float = 0.9

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return {"name": "sgd", "lr": self.eta, "momentum": self.momentum}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Any other optimizer of adamd, and what surrounds an update: ``Optimizer("lion", {"lr": 1e-3, "schedule": …})``.

    Attributes:
        name: as `adamd.Client.create` takes it.
        settings: its settings, by the names that `adamd.Client.create` has for them.

    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the session's optimizer settings."""
        return {**self.settings, "name": self.name}
