"""The parts of the engine that its rounds use."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from adamd.wire.buffers import BufferPool
from adamd_service.engine.admission import Budget
from adamd_service.engine.cache import Hot, HotSessions
from adamd_service.engine.rebuilding import Rebuilder
from adamd_service.engine.step import Stepper
from adamd_service.engine.uploads import Uploads
from adamd_service.engine.watching import Watchers
from adamd_service.engine.workers import Workers
from adamd_service.optim import Device
from adamd_service.store import RedisStore


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the engine that its rounds use.

    Attributes:
        lanes: threads that may aggregate one round at once.
        locked: `Engine._locked`: runs work in a thread under a session's lock.
        stepped: is told that a session made a step: a snapshot may be due.
        draining: whether the server goes down.
        refuse_when_draining: raises ShuttingDown then.

    """

    store: RedisStore
    replica: str
    workers: Workers
    hot: HotSessions
    pool: BufferPool
    in_flight: Budget
    device: Device
    rebuilder: Rebuilder
    stepper: Stepper
    uploads: Uploads
    watchers: Watchers
    lanes: int
    locked: Callable[..., Coroutine[Any, Any, Any]]
    stepped: Callable[[Hot], None]
    draining: Callable[[], bool]
    refuse_when_draining: Callable[[], None]
