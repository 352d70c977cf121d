"""The whole path of a GPU except the GPU, against the CPU's own kernel.

Ring, table, residence and eviction are the real ones; the CUDA source runs on this CPU.
"""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adamd.errors import DeviceFull, TooLarge
from adamd_service.device.gpu import Gpu, Step
from adamd_service.device.runtime import DeviceLost
from adamd_service.optim import FAMILY, FusedKernel, State, apply, encoded, parse_settings, plan
from optim.parity import covering, differing, hard_gradients, hard_parameters

from .host_runtime import HostRuntime

FUSED = FusedKernel()
SMALL = 64 * 1024  # a slot: so that a state of some thousand elements takes many
DTYPES = [np.dtype("float32"), np.dtype("float64")]


@pytest.fixture
def device():
    made = []

    def make(limit=32 << 20, lost=None, capacity=SMALL, slots=3, **runtime):
        one = Gpu(HostRuntime(**runtime), limit, lost or pytest.fail, slots=slots, capacity=capacity)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
        assert one.runtime.used == 0  # all of it was given back
    gc.collect()


def pair(settings, size, dtype, tensors=1, seed=0):
    rng = np.random.default_rng(seed)
    state = State.fresh(hard_parameters(rng, size, dtype), tensors, settings)
    return state, state.copy(), rng


def same(gpu, state, other):
    gpu.fetch(other)
    assert state.counts == other.counts
    assert state.carried == other.carried
    for name, array in state.arrays.items():
        assert differing(array, other.arrays[name]) == 0, name


@covering(FAMILY, both=("adam",))
def test_every_optimizer_gives_the_bits_of_the_cpu(device, case, dtype):
    gpu, size = device(), 30_011  # more than a slot in float32, three in float64
    settings = parse_settings({"name": case})
    gpu.prepare(settings, dtype)
    state, other, rng = pair(settings, size, dtype)
    out, mine = np.empty_like(state.params), np.empty_like(state.params)
    for gradient in hard_gradients(rng, size, 5, dtype):
        updates = plan(settings, ["w"], state.counts, [True], dtype, state.carried)
        told = apply(state, gradient, updates, [0, size], out, FUSED)
        assert gpu.apply(other, gradient, updates, [0, size], mine) == told
        assert differing(out, mine) == 0
    same(gpu, state, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_and_absent_tensors_lie_at_every_alignment(device, dtype):
    gpu = device()
    sizes = [1, 7, 0, 4000, 3, 21_000, 2, 5, 11]
    bounds = [0, *np.cumsum(sizes).tolist()]
    names = [f"t{i}" for i in range(len(sizes))]
    settings = parse_settings(
        {"name": "adamw", "amsgrad": True, "groups": [{"tensors": ["t1", "t4", "t7"], "lr": 0.5}]}
    )
    state, other, rng = pair(settings, bounds[-1], dtype, len(sizes))
    for step, gradient in enumerate(hard_gradients(rng, bounds[-1], 6, dtype)):
        present = [True] * len(sizes) if step == 0 else (rng.random(len(sizes)) < 0.6).tolist()
        updates = plan(settings, names, state.counts, present, dtype, state.carried)
        joined = np.concatenate(
            [gradient[:0], *(gradient[bounds[i] : bounds[i + 1]] for i in range(len(sizes)) if present[i])]
        )
        out, mine = (np.full_like(state.params, np.nan) for _ in range(2))
        assert apply(state, gradient, updates, bounds, out, FUSED) == gpu.apply(other, joined, updates, bounds, mine)
        assert differing(out, mine) == 0
    same(gpu, state, other)


@pytest.mark.parametrize("encoding", ["raw float16", "raw bfloat16", "int8", "sparse", "sparse-lazy"])
def test_encoded_gradients(device, encoding):
    from adamd.wire import encodings

    gpu, size, dtype = device(), 20_007, np.dtype("float32")
    settings = parse_settings({"name": "adam", "lr": 0.01})
    state, other, rng = pair(settings, size, dtype)
    for _ in range(3):
        dense = rng.standard_normal(size).astype(dtype)
        if encoding == "raw float16":
            gradient = dense.astype(np.float16)
        elif encoding == "raw bfloat16":
            gradient = (dense.view(np.uint32) >> 16).astype(np.uint16)
        elif encoding == "int8":
            quantized = rng.integers(-127, 128, size).astype(np.int8)
            scales = rng.random(encodings.scales_of(size)).astype("<f4")
            body = np.concatenate([scales.view(np.uint8), quantized.view(np.uint8)])
            gradient = encoded(encodings.INT8, "float32", body, size, dtype)
        else:
            index = np.sort(rng.choice(size, 9_000, replace=False)).astype("<u4")
            body = np.concatenate([index.view(np.uint8), dense[:9_000].view(np.uint8)])
            gradient = encoded(encodings.LAZY if "lazy" in encoding else encodings.SPARSE, "float32", body, size, dtype)
        updates = plan(settings, ["w"], state.counts, [True], dtype, state.carried)
        out, mine = np.empty_like(state.params), np.empty_like(state.params)
        assert apply(state, gradient, updates, [0, size], out, FUSED) == gpu.apply(
            other, gradient, updates, [0, size], mine
        )
        assert differing(out, mine) == 0
    same(gpu, state, other)


def test_divergence_is_told_from_whichever_piece(device):
    gpu, size, dtype = device(), 50_000, np.dtype("float32")
    settings = parse_settings({"name": "adam"})
    for place in (0, 16_000, 49_999):
        state = State.fresh(np.zeros(size, dtype), 1, settings)
        updates = plan(settings, ["w"], [0], [True], dtype)
        assert gpu.apply(state, np.ones(size, dtype), updates, [0, size], None) is False
        bad = State.fresh(np.zeros(size, dtype), 1, settings)
        bad.params[place] = np.inf
        assert gpu.apply(bad, np.ones(size, dtype), updates, [0, size], None) is True


def many(gpu, count, size, dtype, steps=3):
    """`count` sessions stepping at once, each in a thread of its own; the CPU's beside them."""
    settings = parse_settings({"name": "adam"})
    pairs = [pair(settings, size + index, dtype, seed=index)[:2] for index in range(count)]

    def train(index):
        state, other = pairs[index]
        rng = np.random.default_rng(100 + index)
        for gradient in hard_gradients(rng, size + index, steps, dtype):
            updates = plan(settings, ["w"], state.counts, [True], dtype, state.carried)
            mine, out = np.empty_like(state.params), np.empty_like(state.params)
            bounds = [0, size + index]
            apply(state, gradient, updates, bounds, out, FUSED)
            while True:
                try:
                    gpu.apply(other, gradient, updates, bounds, mine)
                    break
                except DeviceFull:
                    pass
            assert differing(out, mine) == 0
        return True

    with ThreadPoolExecutor(count) as threads:
        assert all(threads.map(train, range(count)))
    for state, other in pairs:
        same(gpu, state, other)


def test_small_sessions_share_a_launch(device):
    gpu = device(capacity=1 << 20, slots=2)
    many(gpu, 24, 1000, np.dtype("float32"), steps=4)
    launches = gpu.runtime.launches
    assert sum(rows for _, rows in launches) == 24 * 4
    assert len(launches) < 24 * 4
    assert max(rows for _, rows in launches) > 4


def test_more_sessions_than_the_device_holds(device):
    """They come and go while others step; each keeps its bits."""
    size = 4000
    gpu = device(limit=5 * 3 * 4 * (size + 100))
    many(gpu, 9, size, np.dtype("float32"))
    assert gpu.residences.evictions > 0
    assert gpu.residences.used <= gpu.residences.limit


def test_the_least_recently_used_leaves(device):
    size, dtype, settings = 1000, np.dtype("float32"), parse_settings({"name": "adam"})
    gpu = device(limit=3 * 3 * 4096)
    states = [State.fresh(np.ones(size, dtype), 1, settings) for _ in range(4)]

    def step(state):
        updates = plan(settings, ["w"], state.counts, [True], dtype, state.carried)
        gpu.apply(state, np.ones(size, dtype), updates, [0, size], None)

    for place in (0, 1, 2, 0, 3):
        step(states[place])
    assert [gpu.residences.knows(state) for state in states] == [True, False, True, True]
    expected = states[1].params[0]
    assert expected != 1  # it came home with what it had become


def test_what_a_state_held_comes_back_when_it_is_let_go(device):
    settings, dtype = parse_settings({"name": "adam"}), np.dtype("float32")
    gpu = device()
    before = gpu.runtime.used
    for _ in range(5):
        state = State.fresh(np.ones(1000, dtype), 1, settings)
        updates = plan(settings, ["w"], [0], [True], dtype)
        gpu.apply(state, np.ones(1000, dtype), updates, [0, 1000], None)
    assert gpu.runtime.most - before <= 2 * 3 * 4096
    assert 12 * 1000 <= gpu.residences.used <= 3 * 4096  # of the one that is left: 12 bytes a parameter for Adam


def test_a_state_that_got_the_id_of_one_that_is_gone_is_its_own(device):
    """Whoever loads a session right at its snapshot fetches a state that was never on the device."""
    gpu, settings, dtype = device(), parse_settings({"name": "adam"}), np.dtype("float32")
    gone, state = (State.fresh(np.full(500, value, dtype), 1, settings) for value in (3, 7))
    gpu.apply(gone, np.ones(500, dtype), plan(settings, ["w"], gone.counts, [True], dtype), [0, 500], None)
    homes = gpu.residences._homes
    homes[id(state)] = homes.pop(id(gone))  # as when Python makes one where the other was, sooner than it is let go
    del gone
    assert not gpu.residences.knows(state)
    gpu.fetch(state)
    assert (state.params == 7).all()


def test_out_of_memory_evicts_and_tries_again(device):
    settings, dtype, size = parse_settings({"name": "adam"}), np.dtype("float32"), 1000
    gpu = device()
    first, second = (State.fresh(np.ones(size, dtype), 1, settings) for _ in range(2))
    updates = plan(settings, ["w"], [0], [True], dtype)
    gpu.apply(first, np.ones(size, dtype), updates, [0, size], None)
    gpu.runtime.refuse = 1
    gpu.apply(second, np.ones(size, dtype), updates, [0, size], None)
    assert gpu.residences.evictions == 1
    assert not gpu.residences.knows(first)
    assert first.params.tobytes() != np.ones(size, dtype).tobytes()
    with gpu.ready(second):  # in use: there is nothing to evict
        gpu.runtime.refuse = 9
        with pytest.raises(DeviceFull, match="sessions in use") as full, gpu.ready(first):
            pass
        assert full.value.status == 503 and full.value.retry_after
    gpu.runtime.refuse = 0
    gpu.apply(first, np.ones(size, dtype), plan(settings, ["w"], first.counts, [True], dtype), [0, size], None)
    gpu.fetch(first)
    gpu.fetch(second)
    assert first.counts == [2]
    assert second.counts == [1]


def test_a_state_that_the_device_cannot_hold_is_refused(device):
    settings = parse_settings({"name": "adam"})
    gpu = device(limit=10_000)
    state = State.fresh(np.ones(1000, np.float32), 1, settings)
    with pytest.raises(TooLarge, match="12288 bytes; the device keeps at most 10000"), gpu.ready(state):
        pass


def test_what_does_not_fit_together_changes_nothing(device):
    settings, dtype = parse_settings({"name": "adam"}), np.dtype("float32")
    gpu = device()
    state = State.fresh(np.ones(10, dtype), 1, settings)
    updates = plan(settings, ["w"], [0], [True], dtype)
    with pytest.raises(ValueError, match="a gradient of 9 elements"):
        gpu.apply(state, np.ones(9, dtype), updates, [0, 10], None)
    assert state.counts == [0]
    assert not gpu.residences.knows(state)


def test_a_lost_device_fails_who_waits_and_is_told_once(device):
    settings, dtype, size = parse_settings({"name": "adam"}), np.dtype("float32"), 40_000
    told = []
    gpu = device(lost=told.append)
    state = State.fresh(np.ones(size, dtype), 1, settings)
    updates = plan(settings, ["w"], [0], [True], dtype)
    gpu.apply(state, np.ones(size, dtype), updates, [0, size], None)
    gpu.runtime.lost = "cudaErrorIllegalAddress"
    errors = []

    def step():
        try:
            gpu.apply(state, np.ones(size, dtype), updates, [0, size], None)
        except DeviceLost as error:
            errors.append(str(error))

    threads = [threading.Thread(target=step) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == ["cudaErrorIllegalAddress"] * 4
    assert [str(one) for one in told] == ["cudaErrorIllegalAddress"]
    with pytest.raises(DeviceLost):
        gpu.apply(state, np.ones(size, dtype), updates, [0, size], None)
    assert state.counts == [1]


def test_an_error_in_one_piece_is_its_callers_alone(device):
    """A gradient that cannot be read fails its own step; the ring serves the others."""
    settings, dtype, size = parse_settings({"name": "adam"}), np.dtype("float32"), 60_000

    class Broken:
        size, exact = 60_000, False

        def part(self, start, stop, into):
            if start > 20_000:
                raise OSError("unreadable")
            into[:] = 1
            return into

    gpu = device()
    state, other, _ = pair(settings, size, dtype)
    updates = plan(settings, ["w"], [0], [True], dtype)
    with pytest.raises(OSError, match="unreadable"):
        gpu.apply(other, Broken(), updates, [0, size], None)
    assert other.counts == [0]
    fresh = state.copy()
    gradient = np.ones(size, dtype)
    apply(state, gradient, updates, [0, size], None, FUSED)
    gpu.apply(fresh, gradient, updates, [0, size], None)
    same(gpu, state, fresh)


def test_reads_between_steps_leave_the_state_where_it_is(device):
    settings, dtype, size = parse_settings({"name": "adam"}), np.dtype("float32"), 20_000
    gpu = device()
    state, other, rng = pair(settings, size, dtype)
    for gradient in hard_gradients(rng, size, 4, dtype):
        updates = plan(settings, ["w"], state.counts, [True], dtype)
        apply(state, gradient, updates, [0, size], None, FUSED)
        gpu.apply(other, gradient, updates, [0, size], None)
        same(gpu, state, other)
        assert gpu.residences.knows(other)
    assert gpu.residences.evictions == 0


def test_many_steps_at_once(device):
    """As bench.gpu does it: sessions of several optimizers and dtypes in one call; one that does not fit together stops all."""
    gpu = device(capacity=1 << 20, slots=2)
    steps, others = [], []
    for index, (name, dtype) in enumerate([(name, dtype) for name in ("adam", "sgd", "lion") for dtype in DTYPES] * 5):
        settings = parse_settings({"name": name})
        state, other, rng = pair(settings, 100 + index, dtype, seed=index)
        if index == 7:
            state.params[3] = other.params[3] = np.inf
        gradient = rng.standard_normal(100 + index).astype(dtype)
        updates = plan(settings, ["w"], [0], [True], dtype, state.carried)
        steps.append(Step(other, gradient, updates, [0, 100 + index], np.empty_like(gradient)))
        others.append((state, apply(state, gradient, updates, [0, 100 + index], None, FUSED)))
    with pytest.raises(ValueError, match="a gradient of"):
        gpu.apply_all([*steps, steps[0]._replace(gradient=np.ones(3, np.float32))])
    told = gpu.apply_all(steps)
    assert told == [diverged for _, diverged in others]
    assert sum(told) == 1
    assert len(gpu.runtime.launches) <= 2 * 6
    for step, (state, _) in zip(steps, others, strict=True):
        same(gpu, state, step.state)
        assert differing(step.out, state.params) == 0


def test_the_bench_runs_and_writes_its_page(tmp_path):
    """Its numbers mean nothing here; its code is the one that a GPU will run."""
    from bench import gpu as bench

    page = tmp_path / "GPU.md"
    bench.main(
        ["--sizes", "1000", "50000", "1000000000", "--sessions", "20"],
        lambda: [HostRuntime(1 << 30, late=False, name="this CPU")],
        page,
    )
    told = page.read_text()
    assert "# adamd on this CPU" in told
    assert "| 50,000 |" in told
    assert "| 1,000,000,000 | does not fit |" in told
    assert "| 20 of 10,000 |" in told


AROUND = {"gradient_scale": 0.5, "clip_value": 0.25, "ema_decay": 0.9, "lower": -1.0, "upper": 1.5}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_surrounds_the_update_is_in_the_kernel(device, name, dtype):
    gpu, size = device(), 9_001
    settings = parse_settings({"name": name, **AROUND})
    state, other, rng = pair(settings, size, dtype)
    assert {"ema"} & set("_".join(state.slots).split("_"))
    for gradient in hard_gradients(rng, size, 4, dtype):
        updates = plan(settings, ["w"], state.counts, [True], dtype, state.carried)
        assert apply(state, gradient, updates, [0, size], None, FUSED) == gpu.apply(
            other, gradient, updates, [0, size], None
        )
    same(gpu, state, other)
    assert state.params.max() <= 1.5
