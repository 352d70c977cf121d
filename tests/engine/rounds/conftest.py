"""Sessions with rounds, and clients of them, on a real store."""

import asyncio
import json
import time

import numpy as np
import pytest

from adamd_service.engine.rounds import ContributeCall
from adamd_service.engine.rounds.closing import Closer

from ..conftest import body_of, create_call, replica, valkey  # noqa: F401 - the fixtures of the engine's tests

SIZE = 40


@pytest.fixture
def clients():
    """Pseudo-random deltas, by client."""

    def make(count, size=SIZE, dtype=np.float32, seed=0):
        rng = np.random.default_rng(seed)
        return {f"ward-{i}": rng.normal(size=size).astype(dtype) for i in range(count)}

    return make


@pytest.fixture
def nothing_closes(monkeypatch):
    """Keep every round open until the test closes it: ``allow()`` ends that."""
    begin = Closer.begin
    monkeypatch.setattr(Closer, "begin", lambda self, session_id: None)
    return lambda: monkeypatch.setattr(Closer, "begin", begin)


async def opened(engine, *, size=SIZE, dtype=np.float32, optimizer=None, start=None, **rounds):
    """Make a session with rounds; returns its id."""
    start = np.zeros(size, dtype) if start is None else start
    call = create_call(start, optimizer or {"name": "sgd", "lr": 1.0}, rounds={"quorum": 1, **rounds})
    return (await engine.create(call)).head.spec.id


def contribution(session, number, client, values, **more):
    return ContributeCall(
        session, number, client, body_of(np.ascontiguousarray(values).tobytes()), **{"dtype": str(values.dtype), **more}
    )


async def contribute(engine, session, number, client, values, **more):
    return await engine.rounds.contribute(contribution(session, number, client, values, **more))


async def stepped(engine, session, least, within=20.0):
    """Wait until the session has made a step; returns its parameters."""
    assert await engine.rounds.wait_for_step(session, least, within), f"step {least} did not come"
    return (await engine.parameters(session)).parameters


def keys_of(valkey, session):  # noqa: F811 - a store, not the fixture
    with valkey.client() as client:
        prefix = f"adamd:{{{session}}}:"
        return sorted(key.decode().removeprefix(prefix) for key in client.scan_iter(match=f"{prefix}*", count=1000))


async def settled_keys(valkey, session, gone, within=20.0):  # noqa: F811 - a store, not the fixture
    """Return the session's keys once those that begin with ``gone`` are unlinked."""
    deadline = time.monotonic() + within
    while True:
        keys = await asyncio.to_thread(keys_of, valkey, session)
        if not any(key.startswith(gone) for key in keys) or time.monotonic() > deadline:
            return keys
        await asyncio.sleep(0.02)


def shown(document):
    return json.dumps(document.to_json(), sort_keys=True)
