"""The same 100 steps by ours and by another library's optimizer, and how near they have to be."""

import numpy as np

from adamd_service.optim import FusedKernel, State, apply, parse_settings, plan

SIZE = 93
STEPS = 100


def beginning(dtype, seed=3):
    """(parameters, gradients), the gradients of very different sizes from step to step."""
    rng = np.random.default_rng(seed)
    parameters = rng.standard_normal(SIZE).astype(dtype)
    gradients = [(rng.standard_normal(SIZE) * 10.0 ** rng.integers(-3, 2)).astype(dtype) for _ in range(STEPS)]
    return parameters, gradients


def trained(raw, parameters, gradients):
    """Our state after these gradients, by the kernel that a server runs."""
    settings = parse_settings(raw)
    state = State.fresh(parameters, 1, settings)
    for gradient in gradients:
        updates = plan(settings, ["w"], state.counts, [True], parameters.dtype, state.carried)
        assert not apply(state, gradient, updates, [0, len(gradient)], None, FusedKernel())
    return state


def worst(ours, theirs):
    """The largest error, as a part of what is allowed: in float64 1e-9·max(|p|, 1e-3) by element, in float32 1e-6·max|p|."""
    assert ours.dtype == theirs.dtype
    error, size = np.abs(ours.astype(float) - theirs), np.abs(theirs.astype(float))
    allowed = 1e-9 * np.maximum(size, 1e-3) if ours.dtype == np.float64 else np.full(ours.shape, 1e-6 * size.max())
    return float((error / allowed).max())
