"""The state and the one function that changes it."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, check_state, parse_settings, plan

from .parity import hard_gradients, hard_parameters

F32, F64 = np.dtype("float32"), np.dtype("float64")
KERNELS = [ReferenceKernel(), FusedKernel()]
NAMES, BOUNDS = ["a", "empty", "b", "c"], [0, 5, 5, 12, 20]


def state_of(amsgrad=False, dtype=F32):
    return State.fresh(np.linspace(-1, 1, 20).astype(dtype), 4, parse_settings({"amsgrad": amsgrad}))


def everything(state):
    return {name: array.tobytes() for name, array in state.arrays.items()}, list(state.counts)


def updates(state, present=(True, True, True, True), raw=None):
    return plan(
        parse_settings(raw or {"amsgrad": "max_exp_avg_sq" in state.slots}),
        NAMES,
        state.counts,
        list(present),
        state.params.dtype,
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=["reference", "fused"])
@pytest.mark.parametrize(
    ("dtype", "wire"),
    [*((dtype, wire) for dtype in (F32, F64) for wire in ("float16", "uint16", "float32")), (F64, "float64")],
)
def test_bits_do_not_depend_on_the_slice_size(dtype, wire, kernel):
    rng = np.random.default_rng(0)
    size = 1003
    start = State.fresh(hard_parameters(rng, size, dtype), 3, parse_settings({"amsgrad": True}))
    bounds = [0, 400, 401, size]
    settings = parse_settings({"amsgrad": True, "weight_decay": 0.1})
    results = set()
    for slice_size in (1, 7, 64, 1000, 1003, 65_536):
        state, out = start.copy(), np.empty(size, dtype)
        source = np.random.default_rng(1)
        for wide, present in zip(
            hard_gradients(source, size, 3, dtype), [(1, 1, 1), (1, 0, 1), (0, 1, 1)], strict=True
        ):
            gradient = (
                wide if wire == "float64" else wide.clip(-100, 100).astype("float16" if wire == "uint16" else wire)
            )
            gradient = gradient.view(np.uint16) & 0xBFFF if wire == "uint16" else gradient
            plans = plan(settings, ["a", "b", "c"], state.counts, present, dtype)
            apply(state, gradient, plans, bounds, out, kernel, slice_size=slice_size)
            assert out.tobytes() == state.params.tobytes()
        results.add(str(everything(state)))
    assert len(results) == 1


@pytest.mark.parametrize("kernel", KERNELS, ids=["reference", "fused"])
def test_tensors_left_out_are_not_touched_and_do_not_count(kernel):
    state, before = state_of(True), state_of(True)
    full = np.arange(1, 21, dtype=np.float32)
    full[5:12] = 99
    out = np.full(20, np.nan, np.float32)
    joined = np.concatenate([full[0:5], full[12:20]])
    assert apply(state, joined, updates(state, (True, True, False, True)), BOUNDS, out, kernel) is False
    assert state.counts == [1, 1, 0, 1]
    assert state.params[5:12].tobytes() == before.params[5:12].tobytes()
    assert not state.slots["exp_avg"][5:12].any()
    assert (state.params[:5] != before.params[:5]).all() and (state.params[12:] != before.params[12:]).all()
    assert out.tobytes() == state.params.tobytes()
    other = state_of(True)
    apply(other, full, updates(other, (True, True, False, True)), BOUNDS, None, kernel)
    assert everything(other) == everything(state)


@pytest.mark.parametrize("kernel", KERNELS, ids=["reference", "fused"])
@pytest.mark.parametrize("wire", [np.float16, np.uint16, np.float32])
def test_nothing_at_all(kernel, wire):
    empty = State.fresh(np.empty(0, np.float32), 0, parse_settings({}))
    assert apply(empty, np.empty(0, wire), (), [0], np.empty(0, np.float32), kernel) is False
    scalar_free = State.fresh(np.empty(0, np.float32), 2, parse_settings({"amsgrad": True}))
    plans = plan(parse_settings({"amsgrad": True}), ["a", "b"], [0, 0], [True, True], F32)
    assert apply(scalar_free, np.empty(0, wire), plans, [0, 0, 0], None, kernel) is False
    assert scalar_free.counts == [1, 1]
    state = state_of()
    before = everything(state)
    out = np.empty(20, np.float32)
    assert apply(state, np.empty(0, wire), (), BOUNDS, out, kernel) is False
    assert everything(state) == before and out.tobytes() == state.params.tobytes()


def test_a_gradient_in_received_bytes_is_read_in_place():
    state = state_of()
    gradient = np.frombuffer(np.ones(20, np.float32).tobytes(), np.float32)
    assert not gradient.flags.writeable
    assert apply(state, gradient, updates(state), BOUNDS, None, FusedKernel()) is False


def unaligned():
    return np.frombuffer(bytes(81), np.float32, 20, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": np.ones(19, np.float32)}, "a gradient of 19 elements; wanted 20"),
        ({"gradient": np.ones(20)}, "would be rounded"),
        ({"gradient": np.ones(20, np.int32)}, "gradient dtype 'int32'"),
        ({"gradient": unaligned()}, "aligned"),
        ({"gradient": np.ones(40, np.float32)[::2]}, "contiguous"),
        ({"bounds": [0, 5, 12, 20]}, "bounds of 3 tensors"),
        ({"bounds": [0, 5, 4, 12, 20]}, "in order"),
        ({"bounds": [0, 5, 5, 12, 21]}, "cover 20"),
        ({"out": np.ones(19, np.float32)}, "out is"),
        ({"out": np.ones(20)}, "out is"),
        ({"out": np.ones(40, np.float32)[::2]}, "out is"),
        ({"updates": updates(state_of())[::-1] + updates(state_of())}, "an update of tensors"),
        ({"updates": [updates(state_of())[0]._replace(last=5)]}, "an update of tensors 0..5"),
        ({"updates": [updates(state_of())[0]._replace(first=-1)]}, "an update of tensors"),
        ({"updates": updates(state_of(dtype=F64))}, "not rounded to float32"),
    ],
)
def test_what_does_not_fit_changes_nothing(change, message):
    state = state_of()
    before = everything(state)
    given = {
        "gradient": np.ones(20, np.float32),
        "updates": updates(state),
        "bounds": BOUNDS,
        "out": None,
        "kernel": FusedKernel(),
    }
    with pytest.raises(ValueError, match=message):
        apply(state, **{**given, **change})
    assert everything(state) == before


def test_fresh_copy_and_size():
    parameters = np.ones(3, np.float32)
    state = State.fresh(parameters, 2, parse_settings({"amsgrad": True}))
    twin = state.copy()
    state.params[0] = state.slots["exp_avg"][0] = state.slots["exp_avg_sq"][0] = state.slots["max_exp_avg_sq"][
        0
    ] = state.counts[0] = 7
    assert parameters[0] == 1
    assert [array[0] for array in twin.arrays.values()] == [1, 0, 0, 0] and twin.counts == [0, 0]
    assert state.nbytes == 4 * 12 + 16
    assert State.fresh(parameters, 1, parse_settings({})).nbytes == 3 * 12 + 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for value in (np.nan, np.inf, -np.inf, -1.0)
    ],
)
@pytest.mark.parametrize("index", [0, 65_536, 70_000])
def test_check_state(name, value, index):
    state = State.fresh(np.zeros(70_001, np.float32), 1, parse_settings({"amsgrad": True}))
    check_state(state)
    state.arrays[name][index] = value
    if value == -1 and name in ("params", "exp_avg"):
        check_state(state)
        return
    with pytest.raises(ValueError, match=rf"^{name}\[{index}\] is .*wanted a finite number"):
        check_state(state)


def test_check_state_sees_shapes_dtypes_and_counts():
    for count in (-1, True, 1.0):
        state = state_of()
        state.counts[2] = count
        with pytest.raises(ValueError, match=r"counts\[2\]"):
            check_state(state)
    for array in (np.zeros(19, np.float32), np.zeros(20), np.zeros((4, 5), np.float32)):
        state = state_of()
        state.slots["exp_avg_sq"] = array
        with pytest.raises(ValueError, match="exp_avg_sq is"):
            check_state(state)
    with pytest.raises(ValueError, match="wanted float32 or float64"):
        check_state(State.fresh(np.zeros(2, np.float16), 1, parse_settings({})))
