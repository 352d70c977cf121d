"""The gradient that bounds leave."""

import numpy as np
import pytest

from adamd_service.optim import State, apply, bounded, gradient_norm, parse_settings, plan, projected
from adamd_service.optim.gradients.encoded import Raw, encoded
from adamd_service.optim.kernels.numba_kernel import FusedKernel

F64 = np.dtype("float64")


def made(**settings):
    parsed = parse_settings({"name": "sgd", "lr": 1.0, **settings})
    state = State.fresh(np.array([0.0, 0.0, 1.0, 1.0, 0.5]), 1, parsed)
    return state, plan(parsed, ["w"], state.counts, [True], F64, state.carried)


@pytest.mark.parametrize("maximize", [False, True])
def test_what_pushes_out_of_a_bound_is_no_slope(maximize):
    state, updates = made(lower=0.0, upper=1.0, maximize=maximize)
    gradient = np.array([1.0, -2.0, 4.0, -8.0, 16.0])
    assert bounded(state, updates)
    left = projected(state, Raw.of(gradient, F64), updates, [0, 5]).part(0, 5, np.empty(5))
    wanted = [1.0, 0.0, 0.0, -8.0, 16.0] if maximize else [0.0, -2.0, 4.0, 0.0, 16.0]
    assert left.tolist() == wanted
    assert gradient.tolist() == [1.0, -2.0, 4.0, -8.0, 16.0]
    before = state.params.copy()
    apply(state, gradient * 0.01, updates, [0, 5], None, FusedKernel())
    assert ((state.params != before) == (left != 0)).all()  # it moves exactly where there is a slope


def test_one_bound_and_none():
    state, updates = made(lower=0.0)
    gradient = Raw.of(np.array([1.0, 1.0, -1.0, -1.0, 0.0]), F64)
    assert projected(state, gradient, updates, [0, 5]).part(0, 5, np.empty(5)).tolist() == [0, 0, -1, -1, 0]
    state, updates = made()
    assert not bounded(state, updates)
    assert gradient_norm(projected(state, gradient, updates, [0, 5]), F64) == 2.0


def test_a_gradient_of_some_tensors_and_a_sparse_one():
    parsed = parse_settings({"name": "sgd", "lower": 0.0})
    state = State.fresh(np.zeros(4), 2, parsed)
    updates = plan(parsed, ["a", "b"], state.counts, [False, True], F64, state.carried)
    left = projected(state, Raw.of(np.array([3.0, -4.0]), F64), updates, [0, 2, 4])
    assert left.part(0, 2, np.empty(2)).tolist() == [0.0, -4.0]
    body = np.concatenate([np.array([1, 2], "<u4").view(np.uint8), np.array([5.0, -6.0]).view(np.uint8)])
    sparse = encoded("sparse", "float64", body, 4, F64)
    updates = plan(parsed, ["a", "b"], state.counts, [True, True], F64, state.carried)
    assert projected(state, sparse, updates, [0, 2, 4]).part(0, 4, np.empty(4)).tolist() == [0, 0, -6.0, 0]
