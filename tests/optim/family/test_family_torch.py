"""torch 2.13's optimizers as the oracle, and for schedule-free AdamW its authors' own package."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, State, apply, merge_settings, parse_settings, plan, write_average

from .oracle import SIZE, beginning, trained, worst

pytestmark = pytest.mark.torch

KINDS = {
    "nadam": "NAdam",
    "radam": "RAdam",
    "adamax": "Adamax",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
    "schedule_free_adamw": "AdamWScheduleFree",
}
DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}
CASES = [
    ("nadam", {}),
    ("nadam", {"weight_decay": 0.1}),
    ("nadam", DECOUPLED),
    ("nadam", {"momentum_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "lr": 0.01}),
    ("radam", {}),
    ("radam", {"weight_decay": 0.1}),
    ("radam", DECOUPLED),
    ("radam", {"betas": (0.8, 0.9), "eps": 1e-3}),
    ("radam", {"betas": (0.8, 0.5)}),
    ("adamax", {}),
    ("adamax", {"weight_decay": 0.1, "maximize": True}),
    ("adamax", {"betas": (0.5, 0.8), "eps": 1e-3}),
    ("adagrad", {}),
    ("adagrad", {"weight_decay": 0.1, "maximize": True}),
    ("adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-3}),
    ("rmsprop", {}),
    ("rmsprop", {"weight_decay": 0.1, "maximize": True, "eps": 1e-3}),
    ("rmsprop", {"centered": True}),
    ("rmsprop", {"momentum": 0.9}),
    ("rmsprop", {"centered": True, "momentum": 0.5, "alpha": 0.9, "weight_decay": 0.01}),
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.1, "maximize": True}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True}),
    ("schedule_free_adamw", {}),
    ("schedule_free_adamw", {"weight_decay": 0.1}),
    ("schedule_free_adamw", {"warmup_steps": 20, "r": 1.0, "eps": 1e-3}),
    ("schedule_free_adamw", {"weight_lr_power": 0.0, "betas": (0.95, 0.99)}),
]


@pytest.fixture
def numbers_in_float64():
    """torch keeps NAdam's mu_product in its default dtype: in float32 the product alone is off by 3e-8."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def theirs(name, settings, parameters, gradients):
    """(torch's optimizer, its parameter) after these gradients."""
    import schedulefree
    import torch

    assert torch.__version__.startswith("2.13")
    parameter = torch.nn.Parameter(torch.tensor(parameters))
    kind = getattr(schedulefree if name == "schedule_free_adamw" else torch.optim, KINDS[name])
    optimizer = kind([parameter], **settings)
    if name == "schedule_free_adamw":
        optimizer.train()
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return optimizer, parameter


def raw(name, settings):
    return {"name": name, **{key: list(value) if key == "betas" else value for key, value in settings.items()}}


@pytest.mark.usefixtures("numbers_in_float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=[" ".join((name, *settings)) for name, settings in CASES])
def test_torch(name, settings, dtype):
    parameters, gradients = beginning(dtype)
    optimizer, parameter = theirs(name, settings, parameters, gradients)
    ours = trained(raw(name, settings), parameters, gradients)
    error = worst(ours.params, parameter.detach().numpy())
    print(f"worst error: {error:.2g} of what is allowed")  # pytest -rP shows it
    assert error <= 1
    state = optimizer.state[parameter]
    for array, values in ours.slots.items():
        expected = state[array].numpy()
        assert np.abs(values - expected).max() <= (1e-4 if dtype == "float32" else 1e-11) * np.abs(expected).max(), (
            array
        )
    for number, (value,) in ours.numbers.items():
        expected = state[number].item() if number in state else optimizer.param_groups[0][number]
        assert value == pytest.approx(expected, rel=1e-12), number


MOMENTA = (0.9, 0.5, 0.0, 0.0, 0.7, 0.0, 0.9)  # as a cyclic scheduler may have it


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sgd", {}),
        ("sgd", {"dampening": 0.3, "weight_decay": 0.1}),
        ("sgd", {"nesterov": True}),
        ("rmsprop", {"lr": 0.01}),
        ("rmsprop", {"centered": True, "weight_decay": 0.1}),
    ],
    ids=" ".join,
)
def test_a_momentum_that_is_brought_to_0_and_back(name, settings, dtype):
    """torch leaves the buffer as it is while the momentum is 0, and goes on from it."""
    import torch

    parameters, gradients = beginning(dtype)
    parameter = torch.nn.Parameter(torch.tensor(parameters))
    optimizer = getattr(torch.optim, KINDS[name])([parameter], **settings, momentum=MOMENTA[0])
    ours = parse_settings(raw(name, {**settings, "momentum": MOMENTA[0]}))
    state = State.fresh(parameters, 1, ours)
    for momentum, gradient in zip(MOMENTA, gradients, strict=False):
        optimizer.param_groups[0]["momentum"] = momentum
        parameter.grad = torch.tensor(gradient)
        before = state.slots["momentum_buffer"].copy()
        optimizer.step()
        ours = merge_settings(ours, {"momentum": momentum})
        updates = plan(ours, ["w"], state.counts, [True], np.dtype(dtype))
        apply(state, gradient, updates, [0, SIZE], None, FusedKernel())
        assert worst(state.params, parameter.detach().numpy()) <= 1
        expected = optimizer.state[parameter]["momentum_buffer"].numpy()
        np.testing.assert_allclose(state.slots["momentum_buffer"], expected, rtol=1e-5, atol=1e-7)
        assert np.array_equal(state.slots["momentum_buffer"], before) == (momentum == 0.0)


@pytest.mark.usefixtures("numbers_in_float64")
@pytest.mark.parametrize("name", ["nadam", "radam", "adamax", "adagrad", "rmsprop", "sgd", "schedule_free_adamw"])
def test_defaults_are_torchs(name):
    optimizer, _ = theirs(name, {}, np.zeros(1), [])
    ours = parse_settings({"name": name}).document
    group = optimizer.param_groups[0]
    own = {"name", "groups", "maximize"} if name == "schedule_free_adamw" else {"name", "groups"}
    assert {key: value for key, value in ours.items() if key not in own} == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key in set(ours) - own
    }
    assert set(ours) - own <= set(group)


@pytest.mark.usefixtures("numbers_in_float64")
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.9)])
def test_the_average_is_what_eval_gives(betas):
    parameters, gradients = beginning("float64")
    optimizer, parameter = theirs("schedule_free_adamw", {"betas": betas}, parameters, gradients)
    ours = trained(raw("schedule_free_adamw", {"betas": betas}), parameters, gradients)
    average = np.empty_like(parameters)
    write_average(ours, parse_settings(raw("schedule_free_adamw", {"betas": betas})), ["w"], [0, SIZE], average)
    optimizer.eval()
    assert worst(average, parameter.detach().numpy()) <= 1


@pytest.mark.parametrize("name", ["nadam", "radam", "adamax", "adagrad", "rmsprop", "schedule_free_adamw"])
def test_the_tolerance_sees_a_wrong_eps(name):
    """The control: another eps, or for NAdam another momentum_decay, is off by far more than the tolerance allows."""
    parameters, gradients = beginning("float64")
    _, parameter = theirs(name, {"eps": 1e-3}, parameters, gradients)
    ours = trained({"name": name, "eps": 1.01e-3}, parameters, gradients)
    assert worst(ours.params, parameter.detach().numpy()) > 100
