"""adamd: Adam as a daemon.

import adamd

with adamd.connect("http://localhost:8000") as client:
    session = client.create({"w": w, "b": b}, lr=1e-3)
    for batch in data:
        params = session.step(gradient(params, batch), loss=loss)
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from adamd.client import Client, connect
from adamd.errors import (
    AdamdError,
    BadGradient,
    Diverged,
    HistoryLost,
    RequestError,
    RetriesExhausted,
    SessionError,
    SessionExists,
    StepConflict,
    StepSuperseded,
    TransportError,
    Unavailable,
    UnknownSession,
    WrongDtype,
    WrongLayout,
)
from adamd.federation import FederatedRun, Federation, Task
from adamd.sansio.gradient_encoding import Sparse, TopK
from adamd.sansio.retry import Timeout
from adamd.sansio.tracking import StallWarning
from adamd.session import Session

if TYPE_CHECKING:
    from types import ModuleType

__version__ = _version("adamd")
__all__ = [
    "AdamdError",
    "BadGradient",
    "Client",
    "Diverged",
    "FederatedRun",
    "Federation",
    "HistoryLost",
    "RequestError",
    "RetriesExhausted",
    "Session",
    "SessionError",
    "SessionExists",
    "Sparse",
    "StallWarning",
    "StepConflict",
    "StepSuperseded",
    "Task",
    "Timeout",
    "TopK",
    "TransportError",
    "Unavailable",
    "UnknownSession",
    "WrongDtype",
    "WrongLayout",
    "__version__",
    "connect",
]


_LATER = ("aio", "checkpoints", "fed", "optax", "torch")


def __getattr__(name: str) -> ModuleType:
    """Import these when they are used: torch and JAX are extras, and asyncio is not for everybody."""
    if name not in _LATER:
        raise AttributeError(f"module 'adamd' has no attribute {name!r}")
    import importlib

    return importlib.import_module(f"adamd.{name}")
