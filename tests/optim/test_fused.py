"""How many loops a process compiles: clients choose settings, and each kind asks for its own."""

from itertools import product

import numpy as np
import pytest

from adamd_service.optim import (
    FAMILY,
    FusedKernel,
    ReferenceKernel,
    SettingsError,
    State,
    apply,
    parse_settings,
    plan,
    settings_of,
)
from adamd_service.optim.kernels import numba_kernel
from adamd_service.optim.scalars import of_session

from .parity import DTYPES, hard_gradients, hard_parameters

# Settings whose value is one of these two kinds for a rule; the others are scalars of it, whatever they are.
KINDS = {"weight_decay": (0.0, 0.1), "momentum": (0.0, 0.9), "clip_value": (0.0, 0.5), "ema_decay": (0.0, 0.9)}
KINDS |= {"lower": (None, -1.0, "array"), "upper": (None, 1.0, "array"), "eps_form": ("outside", "hat")}
KINDS |= {"betas": ((0.9, 0.999), (0.9, 0.5))}  # RAdam is never rectified with the second
SIZE = 3 * numba_kernel.SPARE + 5


def kinds(name):
    had = settings_of(FAMILY[name])
    free = {key: KINDS.get(key, (False, True)) for key, value in had.items() if key in KINDS or isinstance(value, bool)}
    if name == "fedadagrad":
        free["betas"] = ((0.9, 0.0),)  # it has no second one
    for chosen in product(*free.values()):
        given = {key: value for key, value in zip(free, chosen, strict=True) if value is not None}
        try:
            yield parse_settings({"name": name, **{k: list(v) if k == "betas" else v for k, v in given.items()}})
        except SettingsError:
            continue


@pytest.mark.slow
def test_settings_of_every_kind_ask_for_so_many_loops():
    rules = {one.rule for name in FAMILY for settings in kinds(name) for one in of_session(settings, DTYPES[0])}
    assert 1_300 < len(rules) < 1_600  # as `fused.MOST` says; each of them in two dtypes, with an answer and without


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("answered", [False, True])
def test_beyond_so_many_the_reference_takes_their_place(monkeypatch, dtype, answered):
    monkeypatch.setattr(numba_kernel, "_LOOPS", {})
    monkeypatch.setattr(numba_kernel, "MOST", 2)
    first, beyond = parse_settings({"name": "lion"}), parse_settings({"name": "adagrad", "clip_value": 0.5})
    numba_kernel.prepare(first, dtype)
    numba_kernel.prepare(beyond, dtype)  # and it refuses nothing
    assert {rule.optimizer.name for rule, _, _ in numba_kernel._LOOPS} == {"lion"} and len(numba_kernel._LOOPS) == 2
    rng = np.random.default_rng(3)
    states = [State.fresh(hard_parameters(rng, SIZE, dtype), 1, beyond)]
    states.append(states[0].copy())
    outs = [np.empty(SIZE, dtype) if answered else None for _ in states]
    for gradient in hard_gradients(rng, SIZE, 3, dtype):
        updates = plan(beyond, ["w"], states[0].counts, [True], dtype)
        told = [
            apply(state, gradient, updates, [0, SIZE], out, kernel)
            for state, out, kernel in zip(states, outs, (FusedKernel(), ReferenceKernel()), strict=True)
        ]
        assert told[0] == told[1]
        assert all(array.tobytes() == states[1].arrays[name].tobytes() for name, array in states[0].arrays.items())
        assert not answered or outs[0].tobytes() == states[0].params.tobytes()
    assert len(numba_kernel._LOOPS) == 2
    states[0].params[-1] = np.inf  # in the last of several slices, and the first of them are seen to the end
    updates = plan(beyond, ["w"], states[0].counts, [True], dtype)
    assert apply(states[0], np.zeros(SIZE, dtype), updates, [0, SIZE], outs[0], FusedKernel()) is True
