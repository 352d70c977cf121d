"""Expected values from other projects' own tests: parity between kernels cannot see a wrong formula, these can."""

import json
from pathlib import Path

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, parse_settings, plan
from adamd_service.optim.family import FAMILY

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "adam_family.json").read_text())["cases"]
HERE = [case["source"] for case in CASES if case["optimizer"] in FAMILY]
# For the issues that bring the federated optimizers; whoever does moves the line up.
LATER = [
    "Flower, fedadagrad_test.py",
    "Flower 1.41 FedAdam as run (it bias-corrects with round+1)",
    "Reddi et al. 2021, Algorithm 2, FedAdam with v0 = tau^2, computed in float64",
    "Reddi et al. 2021, FedYogi with v0 = tau^2, computed in float64",
]
# What these tests do not say, and Keras and TensorFlow have.
HAT = {"adam": {"eps_form": "hat"}, "adamw": {"eps_form": "hat"}}


def test_every_case_is_accounted_for():
    assert len(HERE) == 13 and sorted(HERE + LATER) == sorted(case["source"] for case in CASES)


@pytest.mark.parametrize("kernel", [ReferenceKernel(), FusedKernel()], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", HERE)
def test_published(source, dtype, kernel):
    case = next(case for case in CASES if case["source"] == source)
    optimizer = case["optimizer"]
    given = {key: case[key] for key in FAMILY[optimizer].settings if key in case}
    settings = parse_settings({"name": optimizer, **given, **HAT.get(optimizer, {})})
    state = State.fresh(np.array(case["x0"], dtype), 1, settings)
    seen = []
    for gradient in case["gradients"] * case.get("repeat", 1):
        updates = plan(settings, ["x"], state.counts, [True], np.dtype(dtype), state.carried)
        apply(state, np.array(gradient, dtype), updates, [0, len(gradient)], None, kernel)
        seen.append(state.params.tolist())
    expected = case.get("expected") or [case["expected_last"]]
    np.testing.assert_allclose(seen[-len(expected) :], expected, rtol=0, atol=case["atol"])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "radam", "yogi"])
def test_the_two_forms_of_eps(optimizer):
    """Where eps is of the gradient's size, the forms differ in the first step, as Kingma & Ba's section 2 says: "hat" is
    "outside" with eps / sqrt(1 - b2^t) for eps. Adam's against the equation itself: lr sqrt(1 - b2) / (1 - b1) * m / (sqrt(v) + eps).
    """

    def stepped(form, eps):
        settings = parse_settings({"name": optimizer, "eps_form": form, "eps": eps, "lr": 0.1, "betas": [0.9, 0.99]})
        state = State.fresh(np.array([1.0]), 1, settings)
        state.counts[0] = 30  # late enough for RAdam to be rectified; the arrays are as good as any
        for array in state.slots.values():
            array[:] = 0.01
        updates = plan(settings, ["x"], state.counts, [True], np.dtype("float64"), state.carried)
        apply(state, np.array([0.2]), updates, [0, 1], None, FusedKernel())
        return state.params[0]

    root = (1 - 0.99**31) ** 0.5
    assert stepped("hat", 0.05) == pytest.approx(stepped("outside", 0.05 / root), rel=1e-12)
    assert abs(stepped("hat", 0.05) - stepped("outside", 0.05)) > 1e-4
    if optimizer == "adam":
        m, v = 0.9 * 0.01 + 0.1 * 0.2, 0.99 * 0.01 + 0.01 * 0.04
        assert stepped("hat", 0.05) == pytest.approx(1 - 0.1 * root / (1 - 0.9**31) * m / (v**0.5 + 0.05), rel=1e-12)
