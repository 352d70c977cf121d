"""Flower's own strategies in their own loop, beside our optimizers: the same clients, 20 rounds, within 1e-6.

`flwr` 1.42 and what the server is made of cannot be installed together, so only the server's pure numerics run here.
"""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan
from flower.in_process import EXAMPLES, SIZE, Clients, as_server_app, start, trained

pytestmark = pytest.mark.flower
ROUNDS = 20
BETAS = {"beta_1": 0.8, "beta_2": 0.95}
# By name: the strategy, what it is given, and our settings; these have Flower's names where they are the same.
FEDERATED = {
    "fedadam": (FedAdam, {}, {"name": "fedadam"}),
    "fedadam other": (FedAdam, {"eta": 0.03, "tau": 1e-2, **BETAS}, {"name": "fedadam"}),
    "fedyogi": (FedYogi, {}, {"name": "fedyogi"}),
    "fedyogi other": (FedYogi, {"eta": 0.03, "tau": 1e-2, **BETAS}, {"name": "fedyogi"}),
    "fedadagrad": (FedAdagrad, {}, {"name": "fedadagrad"}),
    "fedadagrad other": (FedAdagrad, {"eta": 0.03, "tau": 0.5}, {"name": "fedadagrad"}),
}


@pytest.fixture(autouse=True)
def identity():
    as_server_app()


def flowers(strategy, given, dtype):
    """The parameters after each round, the first ones before them."""
    seen = []

    def look(number, arrays):
        assert number == len(seen)
        seen.append(arrays.to_numpy_ndarrays()[0])

    made = strategy(fraction_evaluate=0.0, **given)
    made.start(Clients(), ArrayRecord([start(dtype)]), num_rounds=ROUNDS, evaluate_fn=look)
    return seen


def ours(raw, dtype):
    """The same by our optimizer: the gradient of a round is what the clients' mean changed, with the other sign."""
    settings = parse_settings(raw)
    state = State.fresh(start(dtype), 1, settings)
    seen = [state.params.copy()]
    for number in range(1, ROUNDS + 1):
        made = [trained(node, number, state.params) for node in EXAMPLES]
        gradient = (state.params - np.average(made, axis=0, weights=list(EXAMPLES.values()))).astype(dtype)
        updates = plan(settings, ["w"], state.counts, [True], state.params.dtype, state.carried)
        assert not apply(state, gradient, updates, [0, SIZE], None, ReferenceKernel())
        seen.append(state.params.copy())
    return seen


def apart(one, other):
    """The largest difference in any round."""
    assert len(one) == len(other) == ROUNDS + 1
    return max(float(np.abs(left - right.astype(float)).max()) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("case", FEDERATED)
def test_form_flower_is_flowers(case, dtype, allowed):
    strategy, given, own = FEDERATED[case]
    theirs = flowers(strategy, given, dtype)
    distance = apart(ours({**own, "form": "flower", **given}, dtype), theirs)
    print(f"{case} {dtype}: {distance:.2g} apart")
    assert apart(theirs, [theirs[0]] * len(theirs)) > 0.1  # there was something to be apart in
    assert distance <= allowed


@pytest.mark.parametrize("form", ["paper", "torch"])
@pytest.mark.parametrize("case", ["fedadam", "fedyogi", "fedadagrad"])
def test_the_other_forms_are_not(case, form):
    """So the comparison sees v_0 and the exponent. FedAdagrad's form "torch" is Flower's where beta_1 is 0."""
    strategy, given, own = FEDERATED[case]
    distance = apart(ours({**own, "form": form}, "float64"), flowers(strategy, given, "float64"))
    assert distance <= 1e-12 if (case, form) == ("fedadagrad", "torch") else distance > 1e-5


@pytest.mark.parametrize(
    ("strategy", "given", "raw"),
    [
        (FedAvg, {}, {"name": "sgd", "lr": 1}),
        (FedAvgM, {"server_momentum": 0.9}, {"name": "sgd", "lr": 1, "momentum": 0.9}),
        (
            FedAvgM,
            {"server_momentum": 0.5, "server_learning_rate": 0.7},
            {"name": "sgd", "lr": 0.7, "momentum": 0.5},
        ),
    ],
    ids=["FedAvg", "FedAvgM", "FedAvgM lr 0.7"],
)
@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-12), ("float32", 1e-6)])
def test_fedavg_and_fedavgm_are_sgd(strategy, given, raw, dtype, allowed):
    assert apart(ours(raw, dtype), flowers(strategy, given, dtype)) <= allowed
