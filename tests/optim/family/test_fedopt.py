"""FedOpt by the paper's algorithm, by what its forms share with the family's others, and FedAvg by sgd."""

import numpy as np
import pytest

from adamd_service.optim import FAMILY, FusedKernel, State, apply, parse_settings, plan

from .oracle import STEPS, beginning, trained, worst

DTYPES = ["float32", "float64"]


def reddi(name, x, deltas, eta, beta_1, beta_2, tau, v):
    """Algorithm 2 of arXiv:2003.00295 in float64, from the clients' mean changes; v is v_{-1}."""
    m = np.zeros_like(x)
    v = np.full_like(x, v)
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * delta
        square = delta**2
        if name == "fedadagrad":
            v = v + square
        elif name == "fedyogi":
            v = v - (1 - beta_2) * square * np.sign(v - square)
        else:
            v = beta_2 * v + (1 - beta_2) * square
        x = x + eta * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("v", [None, 0.0, 0.25], ids=["tau^2", "0", "0.25"])
@pytest.mark.parametrize(
    ("name", "betas"), [("fedadam", [0.8, 0.9]), ("fedyogi", [0.8, 0.9]), ("fedadagrad", [0.6, 0])]
)
def test_the_paper(name, betas, v):
    """From gradients, which are the changes with the other sign; where v begins counts for a hundred steps."""
    parameters, gradients = beginning(np.float64)
    deltas = [-gradient for gradient in gradients]
    tau = 0.05
    raw = {"name": name, "eta": 0.1, "tau": tau, "beta_1": betas[0], "beta_2": betas[1]}
    ours = trained(raw | ({} if v is None else {"initial_accumulator_value": v}), parameters, gradients).params
    theirs = reddi(name, parameters, deltas, 0.1, *betas, tau, tau**2 if v is None else v)
    assert worst(ours, theirs) <= 1
    elsewhere = reddi(name, parameters, deltas, 0.1, *betas, tau, 1.0)
    assert worst(ours, elsewhere) > 1000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ours", "same"),
    [
        ({"name": "fedadam", "form": "torch"}, {"name": "adam", "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-3}),
        (
            {"name": "fedyogi", "form": "torch"},
            {"name": "yogi", "lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-3, "initial_accumulator_value": 0},
        ),
        ({"name": "fedadagrad", "form": "torch"}, {"name": "adagrad", "lr": 0.1, "eps": 1e-3}),
        (
            {"name": "fedadam", "initial_accumulator_value": 0},
            {"name": "adam", "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-3, "bias_correction": False},
        ),
    ],
    ids=lambda raw: " ".join(str(value) for key, value in raw.items() if key in ("name", "form")),
)
def test_form_torch_is_the_familys(ours, same, dtype):
    """Bit for bit. Those are compared with torch and optax; in the paper's form only v_0 and the correction differ."""
    parameters, gradients = beginning(np.dtype(dtype))
    state, other = trained(ours, parameters, gradients), trained(same, parameters, gradients)
    assert state.params.tobytes() == other.params.tobytes() != parameters.tobytes()
    for name, array in other.slots.items():
        assert state.slots[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("raw", "first"),
    [
        ({}, 1e-6),
        ({"tau": 0.5}, 0.25),
        ({"eps": 0.5, "form": "torch"}, 0.0),
        ({"eps": 0.5, "form": "flower"}, 0.0),
        ({"form": "flower", "initial_accumulator_value": 0.3}, 0.3),
        ({"initial_accumulator_value": 0}, 0.0),
        ({"tau": 0.5, "groups": [{"tensors": ["b"], "tau": 8}]}, 0.25),  # one for the session
    ],
)
@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_where_v_begins(name, raw, first):
    settings = parse_settings({"name": name, **raw})
    assert settings.document["initial_accumulator_value"] == pytest.approx(first, rel=1e-15)
    state = State.fresh(np.zeros(3), 1, settings)
    squares = "sum" if name == "fedadagrad" else "exp_avg_sq"
    assert state.slots[squares].tolist() == [settings.document["initial_accumulator_value"]] * 3
    assert not state.slots["exp_avg"].any() and set(state.slots) == {"exp_avg", squares}


def test_the_exponent_of_form_flower_is_one_more():
    """The first step's sizes: the paper's is lr, torch's and Flower's are corrected by 1 and by 2 updates."""
    b1, b2 = 0.9, 0.99
    wanted = {
        "paper": (0.1, 1.0),
        "torch": (0.1 / (1 - b1), (1 - b2) ** 0.5),
        "flower": (0.1 * (1 - b2**2) ** 0.5 / (1 - b1**2), 1.0),
    }
    for form, (step_size, root) in wanted.items():
        [update] = plan(parse_settings({"name": "fedadam", "form": form}), ["w"], [0], [True], np.dtype("float64"))
        made = update.scalars.named
        assert (made["step_size"], made["sqrt_bc2"]) == pytest.approx((step_size, root), rel=1e-15), form


def clients(rounds, seed=5):
    """(weights, what each client's training adds in each round)."""
    rng = np.random.default_rng(seed)
    return [3, 10, 7], rng.standard_normal((rounds, 3, 8))


def test_fedavg_is_sgd_with_lr_1():
    """The step arrives at the weighted mean of the clients' parameters (McMahan et al. 2017, arXiv:1602.05629)."""
    weights, changes = clients(STEPS)
    settings = parse_settings({"name": "sgd", "lr": 1})
    state = State.fresh(np.zeros(8), 1, settings)
    for change in changes:
        trained_parameters = state.params + change
        mean = np.average(trained_parameters, axis=0, weights=weights)
        updates = plan(settings, ["w"], state.counts, [True], np.dtype("float64"))
        apply(state, state.params - mean, updates, [0, 8], None, FusedKernel())
        np.testing.assert_allclose(state.params, mean, rtol=0, atol=1e-14)


def test_fedavgm_is_sgd_with_momentum():
    """v <- beta v + g and x <- x - v (Hsu et al. 2019, arXiv:1909.06335, section 4), g the mean change's negative."""
    weights, changes = clients(STEPS)
    settings = parse_settings({"name": "sgd", "lr": 1, "momentum": 0.9})
    state = State.fresh(np.zeros(8), 1, settings)
    x, v = np.zeros(8), np.zeros(8)
    for change in changes:
        gradient = -np.average(change, axis=0, weights=weights)
        v = 0.9 * v + gradient
        x = x - v
        updates = plan(settings, ["w"], state.counts, [True], np.dtype("float64"))
        apply(state, gradient, updates, [0, 8], None, FusedKernel())
        np.testing.assert_allclose(state.params, x, rtol=0, atol=1e-12)
    assert np.abs(x - np.average(changes, axis=1, weights=weights).sum(axis=0)).max() > 1  # not FedAvg


def test_all_of_fedopt_is_in_the_family():
    assert [name for name in FAMILY if name.startswith("fed")] == ["fedadam", "fedyogi", "fedadagrad"]
