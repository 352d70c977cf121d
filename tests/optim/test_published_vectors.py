"""Expected values from other projects' own tests: parity between kernels cannot see a wrong formula, these can."""

import json
from pathlib import Path

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, parse_settings, plan
from adamd_service.optim.family import FAMILY

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "adam_family.json").read_text())["cases"]
SOURCES = [case["source"] for case in CASES]
# What these tests do not say, and Keras and TensorFlow have.
HAT = {"adam": {"eps_form": "hat"}, "adamw": {"eps_form": "hat"}}


FORMS = {
    "paper": {"form": "paper"},
    "paper, v0 = 0": {"form": "paper", "initial_accumulator_value": 0},
    "flower": {"form": "flower"},
}


def settings_of_case(case):
    """The settings of a case, tau under its own name; no other key is left over but data and the words of eps."""
    own = {key: case[key] for key in (*FAMILY[case["optimizer"]].settings, "tau") if key in case and key != "form"}
    data = {"source", "optimizer", "eps_form", "form", "x0", "gradients", "deltas", "clients", "weights", "repeat"}
    assert case.keys() <= own.keys() | data | {"expected", "expected_last", "atol"}
    own.pop("eps_form", None)
    return {"name": case["optimizer"], **own, **HAT.get(case["optimizer"], {}), **FORMS.get(case.get("form"), {})}


def gradients_of_case(case):
    """The gradients that a session gets: a client's change, or the weighted mean of several, is one with the other sign."""
    if "clients" in case:
        mean = np.average(case["clients"], axis=0, weights=case["weights"])
        return [np.array(case["x0"]) - mean]
    return [-np.array(delta) for delta in case["deltas"]] if "deltas" in case else case["gradients"]


def test_every_case_is_there():
    assert len(SOURCES) == len(set(SOURCES)) == 17
    assert {case["optimizer"] for case in CASES} <= set(FAMILY)


@pytest.mark.parametrize("kernel", [ReferenceKernel(), FusedKernel()], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", SOURCES)
def test_published(source, dtype, kernel):
    case = next(case for case in CASES if case["source"] == source)
    settings = parse_settings(settings_of_case(case))
    state = State.fresh(np.array(case["x0"], dtype), 1, settings)
    seen = []
    for gradient in gradients_of_case(case) * case.get("repeat", 1):
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
