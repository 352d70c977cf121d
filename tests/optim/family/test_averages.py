"""Schedule-free AdamW's x, which is never kept: from y and z."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, SettingsError, State, apply, check_average, parse_settings, plan
from adamd_service.optim.evaluation_average import SLICE, write_average


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_average_of_the_equation(dtype):
    """x = (1 - c) x + c z kept along, in float64: what y and z say is the same, in each tensor by its own b1."""
    names, bounds = ["a", "b", "empty"], [0, SLICE + 5, SLICE + 12, SLICE + 12]
    groups = [{"tensors": ["b"], "betas": [0.3, 0.9]}]
    settings = parse_settings({"name": "schedule_free_adamw", "lr": 0.1, "warmup_steps": 5, "groups": groups})
    rng = np.random.default_rng(1)
    state = State.fresh(rng.standard_normal(bounds[-1]).astype(dtype), 3, settings)
    x = state.params.astype(float)
    out = np.empty_like(state.params)
    for _ in range(20):
        gradient = rng.standard_normal(bounds[-1]).astype(dtype)
        updates = plan(settings, names, state.counts, [True] * 3, np.dtype(dtype), state.carried)
        apply(state, gradient, updates, bounds, None, FusedKernel())
        c = updates[0].scalars.named["average"]
        x = (1 - c) * x + c * state.slots["z"]
        write_average(state, settings, names, bounds, out)
        np.testing.assert_allclose(out, x, rtol=0, atol=2e-6 if dtype == "float32" else 1e-14)
    assert np.abs(out - state.params).max() > 0.01


def test_before_the_first_step_it_is_the_parameters():
    settings = parse_settings({"name": "schedule_free_adamw"})
    state = State.fresh(np.array([1.5, -2.0]), 1, settings)
    out = np.empty(2)
    write_average(state, settings, ["w"], [0, 2], out)
    assert out.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ({}, "adam has none: its parameters are those to evaluate"),
        ({"name": "schedule_free_adamw", "betas": [0, 0.9]}, r"betas\[0\] is 0"),
        ({"name": "schedule_free_adamw", "groups": [{"tensors": ["w"], "betas": [0, 0.9]}]}, r"betas\[0\] is 0"),
    ],
)
def test_where_there_is_none(raw, wanted):
    settings = parse_settings(raw)
    with pytest.raises(SettingsError, match=wanted) as caught:
        check_average(settings)
    assert caught.value.path == "at"
    out = np.full(1, 7.0)
    with pytest.raises(SettingsError):
        write_average(State.fresh(np.ones(1), 1, settings), settings, ["w"], [0, 1], out)
    assert out == 7.0
