"""The device's tests and the laws on a real GPU, through CuPy. ``make gpu`` runs them."""

import gc

import numpy as np
import pytest

from adamd_service.device.cupy_runtime import found
from adamd_service.device.gpu import Gpu
from adamd_service.device.runtime import OutOfMemory
from adamd_service.optim import State, parse_settings, plan

from . import test_device, test_laws_on_a_device
from .test_device import (  # noqa: F401 - the tests themselves, on another device
    test_divergence_is_told_from_whichever_piece,
    test_encoded_gradients,
    test_every_optimizer_gives_the_bits_of_the_cpu,
    test_groups_and_absent_tensors_lie_at_every_alignment,
    test_more_sessions_than_the_device_holds,
    test_reads_between_steps_leave_the_state_where_it_is,
    test_the_least_recently_used_leaves,
    test_what_does_not_fit_together_changes_nothing,
)
from .test_laws_on_a_device import (  # noqa: F401 - the laws too
    replica,
    test_a_memory_session_outlives_its_eviction,
    test_a_session_goes_from_a_cpu_to_a_gpu_and_back,
    test_law_1_state_is_the_fold_of_the_log,
    valkey,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def device():
    made = []

    def make(limit=32 << 20, capacity=test_device.SMALL, slots=3):
        made.append(Gpu(found()[0], limit, pytest.fail, slots=slots, capacity=capacity))
        return made[-1]

    yield make
    for one in made:
        one.close()
    gc.collect()


@pytest.fixture
def devices():
    made = []

    def make(limit=8 << 20):
        made.append(test_laws_on_a_device.Scrambling(found()[0], limit, pytest.fail, slots=2, capacity=256 * 1024))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_12_bytes_a_parameter_and_the_staging(device):
    runtime = found()[0]
    gpu = device(limit=2 << 30, capacity=8 << 20, slots=4)
    settings, size, dtype = parse_settings({}), 50_000_000, np.dtype("float32")
    before = runtime.free()
    state = State.fresh(np.ones(size, dtype), 1, settings)
    gpu.prepare(settings, dtype)
    gpu.apply(state, np.ones(size, dtype), plan(settings, ["w"], [0], [True], dtype), [0, size], None)
    assert before - runtime.free() <= 12 * size + (64 << 20)


def test_a_real_lack_of_memory_is_no_lost_device():
    runtime = found()[0]
    with pytest.raises(OutOfMemory):
        runtime.allocate(2 * runtime.total)
    runtime.release(runtime.allocate(1 << 20))
