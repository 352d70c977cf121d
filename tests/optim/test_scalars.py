"""Scalars: float64 on the host, rounded once; plans; and records that the store may have spoilt."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd_service.optim import (
    FAMILY,
    SettingsError,
    Update,
    check_scalars,
    parse_settings,
    plan,
    settings_of,
    updates_from_json,
    updates_to_json,
)

F32, F64 = np.dtype("float32"), np.dtype("float64")


def scalars(raw, t=1, dtype=F64):
    return plan(parse_settings(raw), ["w"], [t - 1], [True], dtype)[0].scalars


def read(raw, dtype=F32):
    return updates_from_json(raw, FAMILY["adam"], ("exp_avg", "exp_avg_sq"), dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("t", [1, 2, 1000, 10**9])
def test_rounded_once_from_float64(t, dtype):
    def once(value):
        return float(dtype.type(value))

    expected = {
        "sign": -1.0, "b1": once(0.9), "one_minus_b1": once(1 - 0.9), "b2": once(0.999),
        "one_minus_b2": once(1 - 0.999), "wd": once(0.1), "decay": 1.0, "step_size": once(0.02 / (1 - 0.9**t)),
        "sqrt_bc2": once(math.sqrt(1 - 0.999**t)), "eps": once(1e-8),
    }  # fmt: skip
    assert scalars({"lr": 0.02, "weight_decay": 0.1, "maximize": True}, t, dtype).named == expected
    assert expected["one_minus_b2"] != once(1) - once(0.999) or dtype == F64  # the mistake that the law names
    decoupled = scalars({"name": "adamw", "lr": 0.02, "weight_decay": 0.1}, t, dtype).named
    assert (decoupled["wd"], decoupled["decay"]) == (0.0, once(1 - 0.02 * 0.1))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"eps": 1e-46}, "eps"),
        ({"eps": 1e-39}, "eps"),
        ({"lr": 1e39}, "lr"),
        ({"lr": 1e38, "betas": [0.99, 0.9]}, "lr"),
        ({"weight_decay": 1e39}, "weight_decay"),
        ({"name": "adamw", "lr": 1e20, "weight_decay": 1e20}, "weight_decay"),
        ({"groups": [{"tensors": ["w"]}, {"tensors": ["b"], "eps": 1e-40}]}, "groups[1].eps"),
        # Not held by a later update only: such a session would come to a stop at it.
        ({"lr": 1e39, "eps_form": "hat"}, "lr"),
        ({"name": "yogi", "lr": 1e40, "betas": [0.5, 0.9999999], "eps_form": "hat"}, "lr"),
        ({"name": "nadam", "lr": 1e39, "eps_form": "hat"}, "lr"),
        ({"name": "sgd", "momentum": 0.9, "dampening": 1e39}, "dampening"),
        ({"name": "schedule_free_adamw", "lr": 1e40, "warmup_steps": 10**6}, "lr"),
        ({"name": "fedadam", "form": "flower", "lr": 1e39, "betas": [0, 0.9999999]}, "lr"),
        # What a state array begins as: an infinity would be there before the first step.
        ({"name": "adagrad", "initial_accumulator_value": 1e39}, "initial_accumulator_value"),
        ({"name": "yogi", "initial_accumulator_value": 1e39}, "initial_accumulator_value"),
        ({"name": "fedyogi", "tau": 1e20}, "initial_accumulator_value"),
    ],
)
def test_what_float32_cannot_hold_is_refused(raw, path):
    settings = parse_settings(raw)
    with pytest.raises(SettingsError) as caught:
        check_scalars(settings, ["w", "b"], F32)
    assert caught.value.path == path
    check_scalars(settings, ["w", "b"], F64)


def test_settings_that_no_tensor_uses_are_not_checked():
    raw = {"eps": 1e-40, "groups": [{"tensors": ["w"], "eps": 0}]}
    check_scalars(parse_settings(raw), ["w"], F32)
    with pytest.raises(SettingsError):
        check_scalars(parse_settings(raw), ["w", "b"], F32)


@settings(deadline=None)
@given(
    lr=st.floats(0, 1e300),
    b1=st.floats(0, 1, exclude_max=True),
    b2=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from([name for name in FAMILY if not FAMILY[name].carried]),
    hat=st.booleans(),
    form=st.sampled_from(["paper", "torch", "flower"]),
    t=st.integers(1, 2**53),
)
def test_a_check_at_a_few_updates_holds_for_all(lr, b1, b2, name, hat, form, t):
    had = {
        "form": form,
        "betas": [b1, 0 if name == "fedadagrad" else b2],
        "eps_form": "hat" if hat else "outside",
        "dampening": lr,
        "lr_decay": lr,
        "alpha": b1,
    }
    raw = {"name": name, "lr": lr, **{key: value for key, value in had.items() if key in settings_of(FAMILY[name])}}
    settings = parse_settings(raw)
    for dtype in (F32, F64):
        try:
            check_scalars(settings, ["w"], dtype)
        except SettingsError:
            continue
        made = plan(settings, ["w"], [t - 1], [True], dtype)
        assert updates_from_json(updates_to_json(made), settings.optimizer, settings.arrays, dtype) == made


def test_plan_merges_neighbours():
    settings = parse_settings({"groups": [{"tensors": ["c"], "lr": 1}, {"tensors": ["e"], "lr": 0.001}]})
    names = list("abcdefg")

    def runs(counts, present):
        return [(update.first, update.last) for update in plan(settings, names, counts, present, F32)]

    everyone = [True] * 7
    assert runs([0] * 7, everyone) == [(0, 2), (2, 3), (3, 7)]  # e's override changes nothing
    assert runs([0, 1, 1, 1, 1, 1, 1], everyone) == [(0, 1), (1, 2), (2, 3), (3, 7)]
    assert runs([0] * 7, [True, False, True, True, True, False, True]) == [(0, 1), (2, 3), (3, 5), (6, 7)]
    assert runs([0] * 7, [False] * 7) == []
    assert plan(settings, [], [], [], F32) == ()
    with pytest.raises(ValueError, match="7 names, 1 counts"):
        plan(settings, names, [0], everyone, F32)


def test_records_round_trip_every_bit():
    settings = parse_settings({"lr": 1 / 3, "groups": [{"tensors": ["b"], "maximize": True, "eps": 0}]})
    for dtype in (F32, F64):
        made = plan(settings, ["a", "b", "c"], [5, 6, 10**6], [True] * 3, dtype)
        assert read(json.loads(json.dumps(updates_to_json(made))), dtype) == made


GOOD = updates_to_json(plan(parse_settings({}), ["a", "b"], [0, 1], [True, True], F32))


def test_the_good_record_is_good():
    assert read(GOOD) == (Update(0, 1, scalars({}, 1, F32)), Update(1, 2, scalars({}, 2, F32)))
    assert read([]) == ()


@pytest.mark.parametrize(
    "spoilt",
    [
        None, {}, "x", [1], [[]], [{}], [GOOD[1], GOOD[0]], [GOOD[0], GOOD[0]], [{**GOOD[0], "more": 1}],
        [{key: value for key, value in GOOD[0].items() if key != "b1"}],
        *([{**GOOD[0], **change}] for change in [
            {"first": -1}, {"first": 0.0}, {"first": True, "last": 2}, {"last": 0}, {"first": "0"}, {"last": None},
            {"b1": float("nan")}, {"b1": "0.9"}, {"b1": None}, {"b1": True}, {"b1": 1.5}, {"b1": -0.1}, {"b2": 2},
            {"one_minus_b1": 0.0}, {"one_minus_b2": -1.0}, {"sqrt_bc2": 0.0}, {"sqrt_bc2": 1.1}, {"sign": 0.0}, {"sign": "1"}, {"clip": 0.0},
            {"ema_decay": 1.5}, {"one_minus_ema": 0}, {"lower": float("nan")}, {"upper": None},
            {"wd": -1}, {"decay": float("inf")}, {"step_size": float("-inf")}, {"step_size": -1.0}, {"eps": -1e-8}, {"eps": []},
        ]),
    ],
)  # fmt: skip
def test_a_spoilt_record_is_refused(spoilt):
    with pytest.raises(ValueError):
        read(spoilt)
