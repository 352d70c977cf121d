"""The optimizers that there are. Each is one module: its text, its scalars, its record."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adamd_service.optim.family.adagrad import ADAGRAD
from adamd_service.optim.family.adam import ADAM, ADAMW
from adamd_service.optim.family.adamax import ADAMAX
from adamd_service.optim.family.fedopt import FEDADAGRAD, FEDADAM, FEDYOGI
from adamd_service.optim.family.lion import LION
from adamd_service.optim.family.nadam import NADAM
from adamd_service.optim.family.radam import RADAM
from adamd_service.optim.family.rmsprop import RMSPROP
from adamd_service.optim.family.schedule_free import SCHEDULE_FREE_ADAMW
from adamd_service.optim.family.sgd import SGD
from adamd_service.optim.family.yogi import YOGI
from adamd_service.optim.recurrence.optimizer import Average, Hyper, Optimizer, Scalar

EVERY = (
    *(ADAM, ADAMW, NADAM, RADAM, ADAMAX, YOGI, ADAGRAD, RMSPROP, SGD, LION, SCHEDULE_FREE_ADAMW),
    *(FEDADAM, FEDYOGI, FEDADAGRAD),
)
FAMILY: Final[Mapping[str, Optimizer]] = MappingProxyType({one.name: one for one in EVERY})

__all__ = ["FAMILY", "Average", "Hyper", "Optimizer", "Scalar"]
