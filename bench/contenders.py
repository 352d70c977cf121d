"""What runs in the bench's own process: the socket's other end, the kernel alone, the product's bulk writer."""

from __future__ import annotations

import secrets

import numpy as np

from adamd_service.optim import FusedKernel, State, apply, parse_settings, plan
from adamd_service.records import BulkRef
from adamd_service.store import RedisStore
from bench.clock import Floats, timed
from bench.floor import Floor


class SocketFloor:
    """The bytes alone."""

    name = "floor"

    def __init__(self, port: int, gradient: Floats) -> None:
        self._floor = Floor(port, gradient.nbytes)
        self._up = memoryview(gradient).cast("B")
        self._down = memoryview(bytearray(gradient.nbytes))

    @timed
    def step(self) -> None:
        self._floor.exchange(self._up, self._down)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._floor.close()


class KernelAlone:
    """The fused kernel on one thread: 28 bytes a parameter, the answer's 4 more included."""

    name = "kernel"

    def __init__(self, parameters: Floats, gradient: Floats) -> None:
        self._state = State.fresh(parameters, 1, parse_settings({"name": "adam"}))
        self._gradient = gradient
        self._bounds = (0, len(parameters))
        self._out = np.empty_like(parameters)
        self._settings = parse_settings({"name": "adam"})
        self._kernel = FusedKernel()

    @timed
    def step(self) -> None:
        updates = plan(self._settings, ("vector",), self._state.counts, (True,), self._state.params.dtype)
        apply(self._state, self._gradient, updates, self._bounds, self._out, self._kernel)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


class BulkWriter:
    """The product's own way of writing a body into the store, with nothing around it."""

    def __init__(self, name: str, redis_url: str, gradient: Floats) -> None:
        self.name = name
        self._store = RedisStore.connect(redis_url, timeout=60.0)
        self._bytes = memoryview(gradient).cast("B")
        self._written: list[tuple[str, BulkRef]] = []

    @timed
    def step(self) -> None:
        attempt = secrets.token_hex(8)
        staging = self._store.stage("s_bench", attempt, self._bytes.nbytes)
        staging.write(self._bytes)
        self._written.append((attempt, staging.finish()))

    def settle(self) -> None:
        for attempt, ref in self._written:  # not sooner: the log does not write over its last record either
            self._store.discard("s_bench", attempt, ref)
        self._written.clear()

    def close(self) -> None:
        self.settle()
        self._store.close()
