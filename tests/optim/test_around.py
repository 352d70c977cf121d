"""Options around the update: plain numbers for each, equal kernels, and replay from the record alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.errors import BadGradient
from adamd_service.optim import (
    FAMILY,
    FusedKernel,
    Raw,
    ReferenceKernel,
    SettingsError,
    State,
    apply,
    at_step,
    check_scalars,
    merge_settings,
    parse_settings,
    plan,
    to_json,
    updates_from_json,
    updates_to_json,
)
from adamd_service.optim.gradients.norm import gradient_norm
from adamd_service.optim.recurrence.wrapping import AtStep

from .parity import DTYPES, covering, differing, hard_gradients, hard_parameters

F32, F64 = np.dtype("float32"), np.dtype("float64")
REFERENCE, FUSED = ReferenceKernel(), FusedKernel()
COSINE = {"name": "cosine", "total_steps": 10, "warmup_steps": 2}
AROUND = {
    "scale": {"gradient_scale": 0.37, "maximize": True},
    "value": {"clip_value": 0.01},
    "norm": {"clip_norm": 0.5, "gradient_scale": 3.0},
    "norm and value": {"clip_norm": 100.0, "clip_value": 1e-3},
    "schedule": {"schedule": COSINE},
    "bounds": {"lower": -0.25, "upper": 0.5},
    "lower": {"lower": 0.0},
    "ema": {"ema_decay": 0.9},
    "all": {"schedule": COSINE, "gradient_scale": 0.5, "clip_norm": 10.0, "clip_value": 0.1, "lower": -1, "upper": 1,
            "ema_decay": 0.99},
}  # fmt: skip
EACH = {f"{name}-{around}": (name, around)
        for name, around in [*(("adam", one) for one in AROUND), *((name, "all") for name in FAMILY)]}  # fmt: skip


def step(state, parsed, gradient, number, kernel, out=None):
    at = at_step(parsed, number, Raw.of(gradient, state.params.dtype), state.params.dtype)
    updates = plan(parsed, ["w"], state.counts, [True], state.params.dtype, state.carried, at)
    return updates, apply(state, gradient, updates, [0, len(gradient)], out, kernel)


@covering(EACH, both=("adam-all",))
def test_the_kernels_agree_and_a_record_replays(case, dtype):
    """Reference, fused kernel, and the fused kernel from the record's JSON alone: the same bits, whichever optimizer is in the middle."""
    optimizer, around = EACH[case]
    asked = {"name": optimizer, **AROUND[around]}
    if FAMILY[optimizer].average is not None:
        asked = {name: value for name, value in asked.items() if name not in ("lower", "upper")}
    parsed = parse_settings(asked)
    rng = np.random.default_rng(7)
    one = State.fresh(np.clip(hard_parameters(rng, 517, dtype), -0.25, 0.5) * (around != "lower"), 1, parsed)
    other, replayed = one.copy(), one.copy()
    out = np.empty_like(one.params)
    for number, gradient in enumerate(hard_gradients(rng, 517, 12, dtype), 1):
        gradient = gradient.clip(-1e6, 1e6)
        updates, diverged = step(one, parsed, gradient, number, REFERENCE)
        assert step(other, parsed, gradient, number, FUSED, out) == (updates, diverged)
        raw = json.loads(json.dumps(updates_to_json(updates)))
        read = updates_from_json(raw, parsed.optimizer, parsed.arrays, dtype)
        assert apply(replayed, gradient, read, [0, 517], None, FUSED) == diverged
        for name, array in one.arrays.items():
            assert differing(array, other.arrays[name]) == 0, (number, name)
            assert differing(array, replayed.arrays[name]) == 0, (number, name)
        assert differing(one.params, out) == 0
    assert one.counts == other.counts == replayed.counts == [12]
    assert (one.carried, other.carried) == (replayed.carried, replayed.carried)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [REFERENCE, FUSED], ids=["reference", "fused"])
def test_what_each_part_does(kernel, dtype):
    """SGD without momentum shows the gradient that it was given: p = p - lr g."""
    sgd = {"name": "sgd", "lr": 1.0}
    if "sgd" not in FAMILY:
        pytest.fail("SGD is the optimizer that shows its gradient")

    def after(around, gradient, parameters=None, number=1):
        parsed = parse_settings({**sgd, **around})
        start = np.zeros(len(gradient), dtype) if parameters is None else np.array(parameters, dtype)
        state = State.fresh(start, 1, parsed)
        step(state, parsed, np.array(gradient, dtype), number, kernel)
        return state

    gradient = [3.0, -4.0, 0.0, -0.0]
    assert after({}, gradient).params.tolist() == [-3.0, 4.0, 0.0, 0.0]
    assert after({"gradient_scale": 0.5, "maximize": True}, gradient).params.tolist() == [1.5, -2.0, 0.0, 0.0]
    assert after({"clip_value": 3.5}, gradient).params.tolist() == [-3.0, 3.5, 0.0, 0.0]
    assert after({"clip_value": 1.0, "gradient_scale": 0.3}, gradient).params[1] == 1.0  # the scale comes first
    factor = dtype.type(2.5 / (5.0 + 1e-6))
    assert after({"clip_norm": 2.5}, gradient).params.tolist() == [-(3 * factor), 4 * factor, 0.0, 0.0]
    assert after({"clip_norm": 6.0}, gradient).params.tolist() == [-3.0, 4.0, 0.0, 0.0]
    scaled = dtype.type(2.0 * (2.5 / (10.0 + 1e-6)))  # it is the scaled gradient whose norm counts
    assert after({"clip_norm": 2.5, "gradient_scale": 2.0}, gradient).params.tolist() == [
        -(3 * scaled), 4 * scaled, 0.0, 0.0,
    ]  # fmt: skip
    assert after({"clip_norm": 2.5, "clip_value": 1.75}, gradient).params[1] == 1.75  # the norm, then the value
    assert after({"lower": -2.0, "upper": 3}, gradient).params.tolist() == [-2.0, 3.0, 0.0, 0.0]
    schedule = {"schedule": {"name": "linear", "total_steps": 4, "start_factor": 0.5}}
    assert after(schedule, gradient).params.tolist() == [-1.5, 2.0, 0.0, 0.0]
    assert after(schedule, gradient, number=3).params.tolist() == [-2.25, 3.0, 0.0, 0.0]
    averaged = after({"ema_decay": 0.75}, gradient, [1.0, 2.0, 3.0, 4.0])
    assert averaged.params.tolist() == [-2.0, 6.0, 3.0, 4.0]
    assert averaged.slots["ema"].tolist() == [0.25, 3.0, 3.0, 4.0]  # 0.75 of the first, 0.25 of what came


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_for_each_element(dtype):
    parsed = parse_settings({"name": "adam", "lr": 1.0, "lower": "array", "upper": "array"})
    rng = np.random.default_rng(2)
    states = [State.fresh(np.zeros(40, dtype), 1, parsed) for _ in range(2)]
    for state in states:
        state.slots["lower"][:] = np.r_[np.full(10, -np.inf), np.full(30, -0.5)]
        state.slots["upper"][:] = np.r_[np.full(30, 0.25), np.full(10, np.inf)]
    before = [array.copy() for array in (states[0].slots["lower"], states[0].slots["upper"])]
    for number in range(1, 6):
        gradient = rng.standard_normal(40).astype(dtype)
        for state, kernel in zip(states, [REFERENCE, FUSED], strict=True):
            step(state, parsed, gradient, number, kernel)
            assert (state.params >= before[0]).all() and (state.params <= before[1]).all()
        assert differing(states[0].params, states[1].params) == 0
    assert (states[0].params[:10] < -0.5).any() and (states[0].params[30:] > 0.25).any()  # where nothing bounds them
    for state in states:  # they never change
        assert state.slots["lower"].tobytes() == before[0].tobytes()
        assert state.slots["upper"].tobytes() == before[1].tobytes()


@settings(deadline=None, max_examples=60)
@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_parameters_stay_within_bounds_and_what_was_between_takes_the_same_step(a, b, seed, dtype):
    low, high = min(a, b), max(a, b)
    bounded, free = parse_settings({"lr": 0.3, "lower": low, "upper": high}), parse_settings({"lr": 0.3})
    rng = np.random.default_rng(seed)
    start = rng.uniform(low, high, 50).astype(dtype).clip(dtype.type(low), dtype.type(high))
    gradient = rng.standard_normal(50).astype(dtype)
    one, other = State.fresh(start, 1, bounded), State.fresh(start, 1, free)
    step(one, bounded, gradient, 1, FUSED)
    step(other, free, gradient, 1, FUSED)
    low, high = dtype.type(low), dtype.type(high)
    assert one.params.tolist() == np.clip(other.params, low, high).tolist()
    assert one.slots["exp_avg"].tobytes() == other.slots["exp_avg"].tobytes()


def test_without_them_nothing_changes():
    """The kernel of a session that asks for none of this is the bare one, and so are its settings and records."""
    plain = parse_settings({})
    spelled = parse_settings({
        "gradient_scale": 1, "clip_norm": 0, "clip_value": 0.0, "ema_decay": 0, "schedule": {"name": "constant"},
    })  # fmt: skip
    assert plain == spelled
    assert not set(to_json(plain)) & {"gradient_scale", "clip_norm", "schedule", "lower", "ema_decay"}
    first = plan(plain, ["w"], [0], [True], F32)[0].scalars
    assert first.rule.recurrence.name == "scale_adam"
    assert set(first.named) == {
        "sign", "b1", "one_minus_b1", "b2", "one_minus_b2", "wd", "decay", "step_size", "sqrt_bc2", "eps",
    }  # fmt: skip
    changed = plan(parse_settings({"clip_norm": 1, "gradient_scale": 2}), ["w"], [0], [True], F32)[0].scalars
    assert changed.rule is first.rule  # they are folded into the sign


@pytest.mark.parametrize("name", FAMILY)
def test_a_rate_of_0_moves_nothing(name):
    """Where a schedule's factor is 0 (a warm-up's first update, a decay's end) every optimizer has to stand it."""
    parsed = parse_settings({"name": name, "weight_decay": 0, "schedule": {"name": "constant", "warmup_steps": 3}}
                            if "weight_decay" in FAMILY[name].settings
                            else {"name": name, "schedule": {"name": "constant", "warmup_steps": 3}})  # fmt: skip
    state = State.fresh(np.array([1.0, -2.0], F32), 1, parsed)
    _, diverged = step(state, parsed, np.array([0.5, -3.0], F32), 1, FUSED)
    assert not diverged and state.params.tolist() == [1.0, -2.0]
    for number in (2, 3, 4, 5):
        _, diverged = step(state, parsed, np.array([0.5, -3.0], F32), number, FUSED)
        assert not diverged
    assert state.params[0] < 1.0 and state.params[1] > -2.0


def test_a_norm_of_named_tensors_is_theirs():
    parsed = parse_settings({"clip_norm": 1.0})
    joined = np.array([3.0, 4.0], F32)
    at = at_step(parsed, 1, Raw.of(joined, F32), F32)
    assert at == AtStep(1.0, 1.0 / (5.0 + 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scale_that_makes_a_square_overflow_is_told_with_the_index(dtype):
    edge = float(np.sqrt(np.finfo(dtype).max))
    parsed = parse_settings({"gradient_scale": 4.0})
    good = np.array([1.0, edge / 4.5, -edge / 4.5, 0.0], dtype)  # the norm is beyond the edge, no element is
    assert at_step(parsed, 1, Raw.of(good, dtype), dtype) == AtStep()
    bad = np.array([1.0, edge / 4.5, 2.0, -edge / 3.9], dtype)
    with pytest.raises(BadGradient, match="element 3 of the gradient is .*times 4 ") as caught:
        at_step(parsed, 1, Raw.of(bad, dtype), dtype)
    assert caught.value.extra["index"] == 3
    clipped = merge_settings(parsed, {"clip_norm": 1.0})
    if dtype == F32:  # clipped, nothing of it overflows
        assert at_step(clipped, 1, Raw.of(bad, dtype), dtype).clip_factor < 1e-18


def test_a_norm_that_no_number_holds_or_that_leaves_nothing():
    with pytest.raises(BadGradient, match="beyond float64"):
        at_step(parse_settings({"clip_norm": 1.0}), 1, Raw.of(np.full(9, 1e154), F64), F64)
    with pytest.raises(BadGradient, match="nothing is left of it"):
        at_step(parse_settings({"clip_norm": 1e-30}), 1, Raw.of(np.full(9, 1e18, F32), F32), F32)
    assert math.isfinite(gradient_norm(Raw.of(np.full(9, 1e153), F64), F64))


REFUSED = [
    ({"gradient_scale": 0}, "gradient_scale", "wanted a finite number above 0"),
    ({"gradient_scale": -1}, "gradient_scale", "wanted a finite number above 0"),
    ({"clip_norm": -1}, "clip_norm", "wanted a finite number, 0 or more; 0 is off"),
    ({"clip_value": None}, "clip_value", "is null"),
    ({"ema_decay": 1}, "ema_decay", "below 1"),
    ({"lower": True}, "lower", "is true; wanted a finite number"),
    ({"lower": "arrays"}, "lower", "is 'arrays'"),
    ({"lower": float("nan")}, "lower", "is nan"),
    ({"lower": 2, "upper": 1}, "lower", "lower is 2.0; wanted at most upper, which is 1.0"),
    ({"name": "schedule_free_adamw", "lower": 0}, "lower", "wanted no bounds with this optimizer"),
    ({"upper": 1, "groups": [{"tensors": ["b"], "lower": 2}]}, "groups[0].lower", "wanted at most upper"),
    ({"groups": [{"tensors": ["b"], "clip_norm": 2}]}, "groups[0].clip_norm", "for the whole session"),
    ({"groups": [{"tensors": ["b"], "schedule": {"name": "constant"}}]}, "groups[0].schedule", "for the whole session"),
    ({"groups": [{"tensors": ["b"], "ema_decay": 0.5}]}, "groups[0].ema_decay", "for the whole session"),
    ({"groups": [{"tensors": ["b"], "lower": "array"}]}, "groups[0].lower", "arrays that the other does not have"),
    ({"schedule": {"name": "cosine"}}, "schedule.total_steps", "schedule.total_steps is missing"),
    ({"schedule": "cosine"}, "schedule", "schedule is 'cosine'; wanted an object"),
    ({"schedule": None}, "schedule", "schedule is null"),
    ({"schedule": {"name": "step", "step_size": 3, "gama": 1}}, "schedule.gama", "did you mean gamma?"),
    ({"clip_grad_norm": 1}, "clip_grad_norm", "did you mean clip_norm?"),
    ({"ema": 0.9}, "ema", "did you mean ema_decay?"),
    ({"lr_scheduler": {}}, "lr_scheduler", "did you mean schedule?"),
    ({"min": 0}, "min", "did you mean lower?"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "path", "message"), REFUSED)
def test_refused(raw, path, message):
    with pytest.raises(SettingsError) as caught:
        parse_settings(raw)
    assert caught.value.path == path
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"gradient_scale": 1e-40}, "gradient_scale"),
        ({"gradient_scale": 1e39}, "gradient_scale"),
        ({"clip_value": 1e-45}, "clip_value"),
        ({"clip_value": 1e39}, "clip_value"),
        ({"lower": -1e39}, "lower"),
        ({"upper": 1e39}, "upper"),
        ({"groups": [{"tensors": ["w"], "upper": 1e39}]}, "groups[0].upper"),
    ],
)
def test_what_float32_does_not_hold(raw, path):
    parsed = parse_settings(raw)
    check_scalars(parsed, ["w"], F64)
    with pytest.raises(SettingsError) as caught:
        check_scalars(parsed, ["w"], F32)
    assert caught.value.path == path


def test_what_a_patch_may_change():
    current = parse_settings({"ema_decay": 0.9, "lower": 0, "schedule": COSINE, "clip_norm": 1})
    merged = merge_settings(current, {"ema_decay": 0.99, "lower": -1, "schedule": {"name": "constant"}, "clip_norm": 0})
    assert (merged.hyper.ema_decay, merged.hyper.lower, merged.hyper.clip_norm) == (0.99, -1.0, 0.0)
    assert "schedule" not in to_json(merged) and parse_settings(to_json(current)) == current
    for patch, path in [({"ema_decay": 0}, "ema_decay"), ({"upper": "array"}, "upper")]:
        with pytest.raises(SettingsError, match="fixed when it was created") as caught:
            merge_settings(current, patch)
        assert caught.value.path == path
