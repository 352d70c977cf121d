"""Engines in this process on a real store: two of them are two replicas."""

import asyncio
import contextlib
import inspect
import json
import time

import numpy as np
import pytest

from adamd.wire import layout
from adamd_service.engine import CreateCall, Engine, Limits, RequestBody, StepCall
from adamd_service.optim import Cpu, FusedKernel, State, apply, merge_settings, parse_settings, plan
from adamd_service.store import RedisStore, serialization
from servers import Store

MIB = 1 << 20
LIMITS = {
    "body": 64 * MIB,
    "in_flight": 256 * MIB,
    "hot": 256 * MIB,
    "memory_sessions": 64 * MIB,
    "idle_buffers": 64 * MIB,
    "upload_gap": 5.0,
    "threads": 8,
    "kernels": 2,
    "snapshot_ratio": 4.0,
    "snapshot_records": 1024,
    "snapshot_pace": 1e12,
}


@pytest.fixture(scope="session")
def valkey():
    running = Store(appendfsync="everysec").start()
    yield running
    running.stop()


class OffTheLoop(RedisStore):
    """A store that sees whoever waits for it on the event loop, where everybody else would wait too."""


def off_the_loop(name, method):
    def called(*args, **more):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return method(*args, **more)
        raise AssertionError(f"{name} waits for the store on the event loop")

    return called


ASKS_NOBODY = ("close", "stage", "commit_soon", "require_kept")
for name, method in vars(RedisStore).items():
    if inspect.isfunction(method) and not name.startswith("_") and name not in ASKS_NOBODY:
        setattr(OffTheLoop, name, off_the_loop(name, method))


@pytest.fixture
def replica(valkey):
    """Make engines: ``async with replica(kernel_or_device, **limits) as engine``; without one, the CPU's own kernel."""

    @contextlib.asynccontextmanager
    async def make(kernel=None, url=None, timeout=10.0, **limits):
        store = OffTheLoop.connect(url or valkey.url, timeout=timeout)
        device = kernel if kernel is None or hasattr(kernel, "apply") else Cpu(kernel)
        engine = Engine(store, Limits(**{**LIMITS, **limits}), f"r{id(store):x}", device)
        try:
            yield engine
        finally:
            await engine.close()

    return make


def run(coroutine):
    return asyncio.run(coroutine)


def body_of(data, piece=65_536):
    async def chunks():
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    return RequestBody(len(data), chunks())


def create_call(parameters, optimizer=None, **more):
    parameters = np.asarray(parameters)
    return CreateCall(
        layout=layout.vector_layout(parameters.shape),
        dtype=str(parameters.dtype),
        optimizer=optimizer or {"lr": 0.01},
        parameters=parameters.reshape(-1),
        **more,
    )


def step_call(ref, number, gradient, **more):
    return StepCall(ref=ref, number=number, body=body_of(np.ascontiguousarray(gradient).tobytes()), **more)


def resummed(text):
    """A text of the store that was changed by someone who makes its sum agree: other guards have to see it."""
    value = json.loads(text)
    value.pop("sum", None)
    return serialization.summed(value)


async def bodies_left(engine, session):
    """The keys of logged bodies that are still there when a refusal's clearing up, in the background, had its time."""
    deadline = time.monotonic() + 20
    while True:
        found = await asyncio.to_thread(
            lambda: list(engine.store._client.scan_iter(match=f"*{session}*:body:*", count=1000))
        )
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.02)


def fold(parameters, gradients, settings=None, changes=None):
    """What the acknowledged gradients make of the parameters, without any server. ``changes``: step to settings."""
    settings = parse_settings(settings or {"lr": 0.01})
    parameters = np.asarray(parameters)
    state = State.fresh(parameters.reshape(-1), 1, settings)
    for number, gradient in enumerate(gradients, 1):
        if changes and number in changes:
            settings = merge_settings(settings, changes[number])
        updates = plan(settings, ["parameters"], state.counts, [True], parameters.dtype)
        apply(state, np.asarray(gradient), updates, [0, parameters.size], None, FusedKernel())
    return state.params.tobytes()
