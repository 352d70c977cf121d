"""What surrounds the update in the CUDA source: the joined recurrence, compiled for this CPU, has the reference's bits."""

import numpy as np
import pytest

from adamd_service.optim import Raw, ReferenceKernel, State, apply, at_step, parse_settings, plan
from adamd_service.optim.kernels.cuda_source import cuda_kernel

from .cuda_host import run
from .cuda_parity import placed
from .parity import DTYPES, differing, hard_gradients, hard_parameters

AROUND = {
    "clipped": {"gradient_scale": 0.3, "clip_norm": 10.0, "clip_value": 0.01},
    "bounded": {"lower": -0.25, "upper": 0.5, "schedule": {"name": "exponential", "gamma": 0.9}},
    "bounded by element": {"lower": "array", "upper": "array"},
    "averaged": {"ema_decay": 0.9},
    "all": {
        "clip_norm": 10.0,
        "clip_value": 0.1,
        "lower": "array",
        "upper": 0.5,
        "ema_decay": 0.5,
        "weight_decay": 0.1,
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("around", AROUND)
def test_the_source_run_on_the_host_equals_the_reference(around, dtype):
    parsed = parse_settings({"name": "adam", "lr": 0.3, **AROUND[around]})
    rng = np.random.default_rng(3)
    size = 517
    state = State.fresh(hard_parameters(rng, size, dtype), 1, parsed)
    for name, sign in (("lower", -1), ("upper", 1)):
        if name in state.slots:
            state.slots[name][:] = sign * rng.uniform(0, 2, size)
            state.slots[name][: size // 4] = sign * np.inf
    mine = {name: placed(array, 0) for name, array in state.arrays.items()}
    out = placed(np.zeros(size, dtype), 0)
    for number, gradient in enumerate(hard_gradients(rng, size, 8, dtype), 1):
        gradient = gradient.clip(-1e6, 1e6)
        at = at_step(parsed, number, Raw.of(gradient, dtype), dtype)
        updates = plan(parsed, ["w"], state.counts, [True], dtype, None, at)
        scalars, rule = updates[0].scalars, updates[0].scalars.rule
        kernel = cuda_kernel(rule.recurrence, dtype, rule.watched)
        row = dict(zip((*rule.scalars, "tiny", "zero"), scalars.typed, strict=True))
        row |= dict(zip(rule.arrays, (mine[name] for name in state.slots), strict=True))
        told = run(kernel, [row | {"p": mine["params"], "g": placed(gradient, 0), "out": out}])
        assert told == [apply(state, gradient, updates, [0, size], None, ReferenceKernel())]
        for name, array in state.arrays.items():
            assert differing(array, mine[name]) == 0, (number, name)
        assert differing(state.params, out) == 0
