"""A block on several threads: the same bits, the same signs of trouble, and nobody left writing."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adamd_service.optim import Block, FusedKernel, SlicedKernel, State, apply, parse_settings, plan

from .parity import DTYPES, hard_gradients, hard_parameters

SIZE = 1003
SETTINGS = parse_settings({"amsgrad": True, "weight_decay": 0.1})


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def trained(kernel, dtype, gradients):
    state = State.fresh(hard_parameters(np.random.default_rng(0), SIZE, dtype), 1, SETTINGS)
    out = np.empty(SIZE, dtype)
    for gradient in gradients:
        updates = plan(SETTINGS, ["w"], state.counts, [True], dtype)
        diverged = apply(state, gradient, updates, [0, SIZE], out, kernel)
    return [array.tobytes() for array in state.arrays.values()], out.tobytes(), diverged


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lanes", "size"), [(1, 10), (2, 64), (3, 7), (4, 1), (8, 1002), (2, 5000)])
def test_bits_depend_neither_on_the_lanes_nor_on_the_slices(threads, dtype, lanes, size):
    gradients = list(hard_gradients(np.random.default_rng(1), SIZE, 3, dtype))
    one, many = FusedKernel(), SlicedKernel(FusedKernel(), threads, lanes, least=2, size=size)
    assert trained(many, dtype, gradients) == trained(one, dtype, gradients)


@pytest.mark.parametrize("place", [0, 500, SIZE - 1])
def test_every_lane_sees_what_diverges(threads, place):
    gradient = np.full(SIZE, 1e-3)
    state = State.fresh(np.zeros(SIZE), 1, parse_settings({"lr": 1.0}))
    state.params[place] = np.inf
    updates = plan(parse_settings({"lr": 1.0}), ["w"], state.counts, [True], np.dtype("float64"))
    kernel = SlicedKernel(FusedKernel(), threads, 4, least=2, size=100)
    assert apply(state, gradient, updates, [0, SIZE], None, kernel) is True


def test_a_busy_pool_is_not_waited_for():
    """All of its threads belong to someone who waits for this very call."""
    done, seen = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(done.wait)
        gradients = list(hard_gradients(np.random.default_rng(1), SIZE, 1, DTYPES[0]))
        many = SlicedKernel(FusedKernel(), pool, 4, least=2, size=100)
        worker = threading.Thread(target=lambda: seen.append(trained(many, DTYPES[0], gradients)))
        worker.start()
        worker.join(30)
        done.set()
        assert seen == [trained(FusedKernel(), DTYPES[0], gradients)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_when_every_lane_has_ended(threads, failing):
    """Arrays that are dropped after an error go back to a pool: a lane that still wrote would write into another's."""
    begun, ended = set(), set()
    everyone = threading.Barrier(3)

    def kernel(block, scalars):
        lane = int(block.p[0])
        everyone.wait(20)
        begun.add(lane)
        if lane == failing:
            raise RuntimeError("this lane is broken")
        time.sleep(0.1)
        ended.add(lane)
        return False

    with pytest.raises(RuntimeError, match="this lane is broken"):
        SlicedKernel(kernel, threads, 3, least=2, size=64)(told_apart(3), None)
    assert begun == {0, 1, 2} and ended == begun - {failing}


class Short(ThreadPoolExecutor):
    """At its bound of threads: a lane is queued, and then there is no thread for it, as at a limit of processes."""

    def _adjust_thread_count(self):
        if self._threads:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()


@pytest.mark.parametrize("pool", ["short", "ended"])
def test_a_thread_that_cannot_be_had_changes_nothing(pool):
    """The step is committed already: it is taken on the threads that there are, and nobody comes after it."""
    gradients = list(hard_gradients(np.random.default_rng(1), SIZE, 3, DTYPES[0]))
    with Short(3) as threads:
        if pool == "ended":
            threads.shutdown()
        else:
            threads.submit(time.sleep, 0.05)  # its only thread, which then finds the lanes in the queue
        many = SlicedKernel(FusedKernel(), threads, 4, least=2, size=10)
        assert trained(many, DTYPES[0], gradients) == trained(FusedKernel(), DTYPES[0], gradients)


def test_a_lane_that_comes_late_and_was_queued_without_a_thread_writes_nothing():
    """The caller's own has failed, and the arrays are dropped: what it left is not taken by whoever comes then."""
    held, begun = threading.Event(), []

    def kernel(block, scalars):
        begun.append(threading.current_thread())
        raise ArithmeticError

    with Short(3) as threads:
        threads.submit(held.wait)
        try:
            with pytest.raises(ArithmeticError):
                SlicedKernel(kernel, threads, 4, least=2, size=64)(told_apart(3), None)
        finally:
            held.set()
        threads.shutdown(wait=True)
    assert begun == [threading.current_thread()]


def told_apart(lanes):
    """A block whose lanes can be told apart by their first parameter."""
    values = np.repeat(np.arange(lanes, dtype=np.float64), 64)
    return Block(values, values, (), None)
