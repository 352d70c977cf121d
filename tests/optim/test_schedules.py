"""Schedules: torch's and optax's whole curves, the ends, and that no factor leaves 0…1."""

import math
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adamd_service.optim import SettingsError
from adamd_service.optim.schedules import LONGEST, SCHEDULES, factor, parse_schedule

LENGTH = 120


def curve(raw, length=LENGTH):
    schedule = parse_schedule(raw)
    return [factor(schedule, n) for n in range(1, length + 1)]


def close(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs)
    for n, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        assert math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance / 1000), (n, one, other)


TORCH = {
    "constant": ({"name": "constant"}, lambda lr, o: lr.ConstantLR(o, factor=1.0)),
    "linear up": (
        {"name": "linear", "total_steps": 40, "start_factor": 0.25},
        lambda lr, o: lr.LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=40),
    ),
    "linear down": (
        {"name": "linear", "total_steps": 77, "start_factor": 1, "end_factor": 0.125},
        lambda lr, o: lr.LinearLR(o, start_factor=1.0, end_factor=0.125, total_iters=77),
    ),
    "cosine": (  # theirs rises again beyond T_max, ours ends
        {"name": "cosine", "total_steps": LENGTH, "end_factor": 0.1},
        lambda lr, o: lr.CosineAnnealingLR(o, T_max=LENGTH, eta_min=0.1),
    ),
    "warm-up and cosine": (
        {"name": "cosine", "total_steps": LENGTH, "warmup_steps": 20, "init_factor": 0.2},
        lambda lr, o: lr.SequentialLR(
            o, [lr.LinearLR(o, start_factor=0.2, total_iters=20), lr.CosineAnnealingLR(o, T_max=LENGTH - 20)], [20]
        ),
    ),
    "exponential": (
        {"name": "exponential", "gamma": 0.97},
        lambda lr, o: lr.ExponentialLR(o, gamma=0.97),
    ),
    "step": (
        {"name": "step", "step_size": 17, "gamma": 0.5},
        lambda lr, o: lr.StepLR(o, step_size=17, gamma=0.5),
    ),
    "step by default": ({"name": "step", "step_size": 30}, lambda lr, o: lr.StepLR(o, step_size=30)),
    "polynomial": (
        {"name": "polynomial", "total_steps": 90, "power": 1.7},
        lambda lr, o: lr.PolynomialLR(o, total_iters=90, power=1.7),
    ),
    "one cycle": (
        {"name": "one_cycle", "total_steps": LENGTH},
        lambda lr, o: lr.OneCycleLR(o, max_lr=1.0, total_steps=LENGTH),
    ),
    "one cycle, straight": (
        {"name": "one_cycle", "total_steps": LENGTH, "pct_start": 0.11, "div_factor": 10, "final_div_factor": 77,
         "anneal_strategy": "linear"},
        lambda lr, o: lr.OneCycleLR(
            o, max_lr=1.0, total_steps=LENGTH, pct_start=0.11, div_factor=10, final_div_factor=77,
            anneal_strategy="linear"
        ),
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("which", TORCH)
def test_torchs_curves(which):
    """lr in update n is the one that torch's optimizer has before its n-th step."""
    import torch

    raw, make = TORCH[which]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps its own schedulers in a way that it warns of
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        theirs = []
        for _ in range(LENGTH):
            theirs.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if len(theirs) < LENGTH:  # OneCycleLR refuses what is beyond its end
                scheduler.step()
    close(curve(raw), theirs, 1e-10)  # theirs goes on from the value before, and gathers roundings


OPTAX = {
    "linear": (
        {"name": "linear", "total_steps": 40, "start_factor": 0.25, "end_factor": 0.75},
        lambda o: o.linear_schedule(0.25, 0.75, 40),
    ),
    "cosine": (
        {"name": "cosine", "total_steps": 80, "end_factor": 0.1},
        lambda o: o.cosine_decay_schedule(1.0, 80, alpha=0.1),
    ),
    "warm-up and cosine": (
        {"name": "cosine", "total_steps": 100, "warmup_steps": 20, "init_factor": 0.05, "end_factor": 0.01},
        lambda o: o.warmup_cosine_decay_schedule(0.05, 1.0, 20, 100, end_value=0.01),
    ),
    "warm-up and constant": (
        {"name": "constant", "warmup_steps": 30},
        lambda o: o.warmup_constant_schedule(0.0, 1.0, 30),
    ),
    "exponential": (
        {"name": "exponential", "gamma": 0.93, "end_factor": 0.02},
        lambda o: o.exponential_decay(1.0, 1, 0.93, end_value=0.02),
    ),
    "warm-up and exponential": (
        {"name": "exponential", "gamma": 0.93, "warmup_steps": 15, "init_factor": 0.5},
        lambda o: o.warmup_exponential_decay_schedule(0.5, 1.0, 15, 1, 0.93),
    ),
    "step": (
        {"name": "step", "step_size": 17, "gamma": 0.5},
        lambda o: o.exponential_decay(1.0, 17, 0.5, staircase=True),
    ),
    "polynomial": (
        {"name": "polynomial", "total_steps": 90, "power": 1.7, "end_factor": 0.05},
        lambda o: o.polynomial_schedule(1.0, 0.05, 1.7, 90),
    ),
    "one cycle": (  # theirs ends a step later, and rises over whole steps: 31/101 of 101 is r = 30
        {"name": "one_cycle", "total_steps": 101, "pct_start": 31 / 101},
        lambda o: o.cosine_onecycle_schedule(100, 1.0, pct_start=0.3, div_factor=25.0, final_div_factor=1e4),
    ),
    "warm-up, stable, decay": (
        {"name": "warmup_stable_decay", "warmup_steps": 10, "stable_steps": 50, "decay_steps": 40, "end_factor": 0.1},
        lambda o: o.join_schedules(
            [o.linear_schedule(0.0, 1.0, 10), o.constant_schedule(1.0), o.linear_schedule(1.0, 0.1, 40)], [10, 60]
        ),
    ),
}


@pytest.mark.jax
@pytest.mark.parametrize("which", OPTAX)
def test_optaxs_curves(which):
    """lr in update n is optax's at count n-1."""
    import jax
    import optax

    raw, make = OPTAX[which]
    with jax.enable_x64(True):
        schedule = make(optax)
        theirs = [float(schedule(count)) for count in range(LENGTH)]
    close(curve(raw), theirs, 1e-6)  # some of theirs computes in float32 all the same


def test_by_hand():
    """The first update uses factor(0); the last of total_steps comes just before the end."""
    assert curve({"name": "constant"}, 3) == [1.0, 1.0, 1.0]
    assert curve({"name": "constant", "warmup_steps": 4}, 6) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert curve({"name": "linear", "total_steps": 2, "start_factor": 0.5}, 4) == [0.5, 0.75, 1.0, 1.0]
    assert curve({"name": "step", "step_size": 2, "gamma": 0.5}, 6) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert curve({"name": "polynomial", "total_steps": 4, "power": 2}, 5) == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    decay = {"name": "warmup_stable_decay", "warmup_steps": 1, "stable_steps": 2, "decay_steps": 4}
    assert curve(decay, 9) == [0.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert curve(decay | {"decay_type": "1-sqrt"}, 9)[4] == 0.5  # 1 - sqrt(1/4)
    assert curve(decay | {"decay_type": "cosine"}, 9)[5] == pytest.approx(0.5)
    cosine = curve({"name": "cosine", "total_steps": 4, "end_factor": 0.2}, 7)
    assert cosine[0] == 1.0 and cosine[2] == pytest.approx(0.6) and cosine[4:] == [0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="the first update is 1"):
        factor(parse_schedule({"name": "constant"}), 0)


fractions = st.floats(0, 1)
counts = st.one_of(st.integers(1, 300), st.integers(1, LONGEST))
lengths = st.one_of(st.integers(0, 300), st.integers(0, LONGEST))
divisors = st.floats(1, 1e300)
VALUES = {
    "warmup_steps": lengths, "stable_steps": lengths, "total_steps": counts, "decay_steps": counts, "step_size": counts,
    "init_factor": fractions, "start_factor": fractions, "end_factor": fractions, "gamma": fractions,
    "pct_start": st.floats(0, 1, exclude_max=True), "power": st.floats(0, 1e300, exclude_min=True),
    "div_factor": divisors, "final_div_factor": divisors, "anneal_strategy": st.sampled_from(["cos", "linear"]),
    "decay_type": st.sampled_from(["linear", "cosine", "1-sqrt"]),
}  # fmt: skip


@st.composite
def schedules(draw):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    raw = {"name": name}
    for key, field in SCHEDULES[name].model_fields.items():
        if key != "name" and (field.is_required() or draw(st.booleans())):
            raw[key] = draw(VALUES[key])
    if "total_steps" in raw and raw.get("warmup_steps", 0) >= raw["total_steps"]:
        raw["warmup_steps"] = raw["total_steps"] - 1
    return raw


@settings(deadline=None, max_examples=500)
@given(schedules(), st.one_of(st.integers(1, 400), st.integers(1, LONGEST)))
@example({"name": "one_cycle", "total_steps": 1}, 1)
@example({"name": "one_cycle", "total_steps": 10, "pct_start": 1 - 2**-53}, 10)
@example({"name": "one_cycle", "total_steps": 10, "pct_start": 0.1}, 1)
@example({"name": "exponential", "gamma": 0.0}, 1)
@example({"name": "exponential", "gamma": 1 - 2**-53}, LONGEST)
def test_every_factor_is_within_0_and_1(raw, n):
    schedule = parse_schedule(raw)
    value = factor(schedule, n)
    assert type(value) is float and 0.0 <= value <= 1.0  # NaN is neither
    assert parse_schedule(schedule.model_dump(mode="json")) == schedule


REFUSED = [
    (None, "", "is null; wanted an object"),
    ([1], "", "is a list of 1; wanted an object"),
    ({}, "", "is an object without a name; wanted an object"),
    ({"name": 3}, "name", "is 3; wanted one of"),
    ({"name": ["cosine"]}, "name", "is a list of 1; wanted one of"),
    ({"name": "cos"}, "name", 'is \'cos\'; did you mean cosine? wanted one of constant, linear, cosine, exponential, step'),
    ({"name": "cosine"}, "total_steps", "is missing; wanted a whole number of steps, 1 or more"),
    ({"name": "cosine", "total_steps": 0}, "total_steps", "is 0; wanted a whole number of steps, 1 or more"),
    ({"name": "cosine", "total_steps": 1.5}, "total_steps", "is 1.5; wanted a whole number"),
    ({"name": "cosine", "total_steps": True}, "total_steps", "is true; wanted a whole number"),
    ({"name": "cosine", "total_steps": 2**60}, "total_steps", "wanted a whole number"),
    ({"name": "cosine", "total_steps": 10**5000}, "total_steps", "is a number of more than 60 digits"),
    ({"name": "cosine", "total_steps": 9, "warmup_steps": 9}, "warmup_steps", "is 9 of 9 total_steps; wanted fewer"),
    ({"name": "cosine", "total_steps": 9, "end_factor": 1.1}, "end_factor", "is 1.1; wanted a finite number from 0"),
    ({"name": "cosine", "T_max": 9}, "T_max", "is unknown to the schedule cosine; did you mean total_steps?"),
    ({"name": "cosine", "total_steps": 9, "eta_min": 0}, "eta_min", "did you mean end_factor?"),
    ({"name": "step", "milestones": [9]}, "milestones", "known are name, step_size, gamma"),
    ({"name": "exponential", "gamma": 1.01}, "gamma", "is 1.01; wanted a finite number from 0 to 1"),
    ({"name": "exponential", "gamma": float("nan")}, "gamma", "is nan"),
    ({"name": "exponential", "gamma": "0.9"}, "gamma", "is '0.9'"),
    ({"name": "exponential", "gamma": None}, "gamma", "is null"),
    ({"name": "polynomial", "total_steps": 9, "power": 0}, "power", "is 0; wanted a finite number above 0"),
    ({"name": "one_cycle", "total_steps": 9, "div_factor": 0.5}, "div_factor", "wanted a finite number, 1 or more"),
    ({"name": "one_cycle", "total_steps": 9, "pct_start": 1}, "pct_start", "below 1"),
    ({"name": "one_cycle", "total_steps": 9, "anneal_strategy": "sin"}, "anneal_strategy", '"cos" or "linear"'),
    ({"name": "cosine", "total_steps": 9, "\ud800": 1}, None, ""),
    ({"name": "cosine", "total_steps": 9, 3: 1}, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "path", "message"), REFUSED)
def test_refused(raw, path, message):
    with pytest.raises(SettingsError) as caught:
        parse_schedule(raw)
    assert path is None or caught.value.path == path
    assert message in caught.value.message
    assert len(caught.value.message.encode()) < 300


def test_whole_numbers_come_from_protobuf_as_floats():
    assert parse_schedule({"name": "cosine", "total_steps": 100.0}) == parse_schedule(
        {"name": "cosine", "total_steps": 100}
    )
