"""The optimizers that there are. Each is one module: its text, its scalars, its record."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adamd_service.optim.family.adam import ADAM, ADAMW
from adamd_service.optim.family.optimizer import Hyper, Optimizer, Scalar

FAMILY: Final[Mapping[str, Optimizer]] = MappingProxyType({one.name: one for one in (ADAM, ADAMW)})

__all__ = ["FAMILY", "Hyper", "Optimizer", "Scalar"]
