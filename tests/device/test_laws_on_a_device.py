"""The laws with every state on a device.

After each update the host's arrays are filled with NaN: only the device's own are good.
"""

import contextlib

import numpy as np
import pytest

from adamd_service.device.gpu import Gpu
from adamd_service.engine import Engine, Limits
from adamd_service.optim import Cpu
from adamd_service.store import RedisStore
from engine.conftest import LIMITS, create_call, run, step_call, valkey  # noqa: F401 - a fixture
from engine.test_laws import *  # noqa: F403 - the tests themselves, on another device

from .host_runtime import HostRuntime

pytestmark = pytest.mark.slow  # tests/device/test_device.py and the laws themselves are in make test


class Scrambling(Gpu):
    """Leaves nothing on the host that could be read by mistake."""

    def apply(self, state, *arguments):
        try:
            return super().apply(state, *arguments)
        finally:
            if self.residences.knows(state):
                for array in state.arrays.values():
                    array.fill(np.nan)


@pytest.fixture
def devices():
    made = []

    def make(limit=8 << 20):
        made.append(Scrambling(HostRuntime(32 << 20, late=False), limit, pytest.fail, slots=2, capacity=256 * 1024))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def replica(valkey, devices):  # noqa: F811 - pytest fills in the fixture of that name
    @contextlib.asynccontextmanager
    async def make(kernel=None, url=None, timeout=10.0, device=None, **limits):
        store = RedisStore.connect(url or valkey.url, timeout=timeout)
        device = device or (devices() if kernel is None else Cpu(kernel))
        engine = Engine(store, Limits(**{**LIMITS, **limits}), f"r{id(store):x}", device)
        try:
            yield engine
        finally:
            await engine.close()

    return make


def test_a_session_goes_from_a_cpu_to_a_gpu_and_back(replica, devices):
    """Two replicas, one of each kind, take steps in turn: both always answer with the same bits as one CPU alone."""

    async def main():
        rng = np.random.default_rng(1)
        start = rng.standard_normal(30_000).astype(np.float32)
        async with replica() as gpu, replica(device=Cpu()) as cpu, replica(device=Cpu()) as alone:
            session = (await gpu.create(create_call(start))).head.spec.id
            other = (await alone.create(create_call(start))).head.spec.id
            for number in range(1, 9):
                gradient = rng.standard_normal(30_000).astype(np.float32)
                engine = gpu if number % 3 else cpu
                one = await engine.step(step_call(session, number, gradient))
                two = await alone.step(step_call(other, number, gradient))
                assert one.parameters.tobytes() == two.parameters.tobytes()
            for engine in (gpu, cpu):
                mine, wanted = await engine.export(session), await alone.export(other)
                assert {name: array.tobytes() for name, array in mine.arrays.items()} == {
                    name: array.tobytes() for name, array in wanted.arrays.items()
                }

    run(main())


def test_a_memory_session_outlives_its_eviction(replica, devices):
    """It lives nowhere else: the device may send it away, but not forget it."""

    async def main():
        async with replica(device=devices(limit=500_000)) as engine, replica(device=Cpu()) as alone:
            calls = [create_call(np.full(20_000, index, np.float32), durability="memory") for index in range(4)]
            mine = [(await engine.create(call)).head.spec.id for call in calls]
            wanted = [(await alone.create(call)).head.spec.id for call in calls]
            for number in range(1, 4):
                for one, two in zip(mine, wanted, strict=True):
                    gradient = np.full(20_000, number, np.float32)
                    left = await engine.step(step_call(one, number, gradient))
                    right = await alone.step(step_call(two, number, gradient))
                    assert left.parameters.tobytes() == right.parameters.tobytes()
            assert engine.device.residences.evictions > 3

    run(main())
