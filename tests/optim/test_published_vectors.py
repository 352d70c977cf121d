"""Expected values from other projects' own tests: parity between kernels cannot see a wrong formula, these can."""

import json
from pathlib import Path

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, parse_settings, plan

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "adam_family.json").read_text())["cases"]
HERE = [
    "TensorFlow Federated, learning/optimizers/adam_test.py test_math",
    "Keras, optimizers/adam_test.py, amsgrad golden, last column",
    "Keras, decoupled weight decay with zero gradient",
]
# For the issues that bring the federated optimizers; whoever does moves the line up.
LATER = [
    "Flower, fedadagrad_test.py",
    "Flower 1.41 FedAdam as run (it bias-corrects with round+1)",
    "Reddi et al. 2021, Algorithm 2, FedAdam with v0 = tau^2, computed in float64",
    "Reddi et al. 2021, FedYogi with v0 = tau^2, computed in float64",
]


def test_every_case_is_accounted_for():
    assert [case["source"] for case in CASES] == HERE + LATER


@pytest.mark.parametrize("kernel", [ReferenceKernel(), FusedKernel()], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", HERE)
def test_published(source, dtype, kernel):
    case = next(case for case in CASES if case["source"] == source)
    keys = {"lr", "betas", "eps", "weight_decay", "amsgrad"}
    settings = parse_settings({"name": case["optimizer"], **{key: case[key] for key in keys & set(case)}})
    state = State.fresh(np.array(case["x0"], dtype), 1, settings)
    seen = []
    for gradient in case["gradients"]:
        updates = plan(settings, ["x"], state.counts, [True], np.dtype(dtype))
        apply(state, np.array(gradient, dtype), updates, [0, len(gradient)], None, kernel)
        seen.append(state.params.tolist())
    expected = case.get("expected") or [case["expected_last"]]
    np.testing.assert_allclose(seen[-len(expected) :], expected, rtol=0, atol=case["atol"])
