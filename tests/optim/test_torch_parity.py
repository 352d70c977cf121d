"""torch.optim as the oracle: 100 steps of torch 2.13 beside ours, in both dtypes."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, State, apply, merge_settings, parse_settings, plan

pytestmark = pytest.mark.torch

SHAPES = {"a": (7, 5), "b": (33,), "c": (), "d": (4, 3, 2)}
CASES = {
    "adam": {},
    "adam decay": {"weight_decay": 0.1},
    "adam amsgrad": {"amsgrad": True, "betas": [0.8, 0.95]},
    "adam maximize": {"maximize": True, "weight_decay": 0.01, "amsgrad": True},
    "adamw": {"name": "adamw"},
    "adamw amsgrad": {"name": "adamw", "amsgrad": True, "weight_decay": 0.2, "lr": 0.01},
    "adamw maximize": {"name": "adamw", "maximize": True, "eps": 1e-6},
    "groups": {
        "groups": [{"tensors": ["b", "d"], "lr": 0.02, "betas": [0.5, 0.9]}, {"tensors": ["c"], "weight_decay": 0.3}]
    },
    "adamw groups": {"name": "adamw", "groups": [{"tensors": ["b"], "maximize": True, "eps": 1e-3, "weight_decay": 0}]},
    # What a tensor carries, and what its own first update does otherwise than the rest.
    "nadam groups": {"name": "nadam", "groups": [{"tensors": ["b"], "momentum_decay": 0.1, "betas": [0.5, 0.9]}]},
    "radam groups": {"name": "radam", "groups": [{"tensors": ["b", "d"], "weight_decay": 0.1, "betas": [0.8, 0.9]}]},
    "sgd groups": {
        "name": "sgd",
        "momentum": 0.9,
        "dampening": 0.3,
        "groups": [{"tensors": ["a"], "nesterov": True, "dampening": 0, "lr": 0.01}],
    },
}
KINDS = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "sgd": "SGD"}


@pytest.fixture(autouse=True)
def numbers_in_float64():
    """torch keeps NAdam's mu_product in its default dtype: in float32 the product alone is off by 3e-8."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def torch_optimizer(torch, settings, parameters):
    kind = getattr(torch.optim, KINDS[settings.optimizer.name])
    own = [name for name in settings.document if name not in ("name", "groups")]
    grouped = {name for group in settings.groups for name in group.tensors}
    groups = [{"params": [parameters[name] for name in SHAPES if name not in grouped]}]
    for group in settings.groups:
        groups.append(
            {
                "params": [parameters[name] for name in group.tensors],
                **{name: getattr(group.hyper, name) for name in own},
            }
        )
    return kind(groups, **{name: getattr(settings.hyper, name) for name in own})


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "some left out"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_torch(case, dtype, absent):
    import torch

    assert torch.__version__.startswith("2.13")
    settings = parse_settings(CASES[case])
    rng = np.random.default_rng(3)
    names = list(SHAPES)
    start = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = torch_optimizer(torch, settings, theirs)
    bounds = [0, *np.cumsum([value.size for value in start.values()]).tolist()]
    ours = State.fresh(np.concatenate([value.ravel() for value in start.values()]), len(names), settings)
    for step in range(100):
        if step == 40:  # a scheduler: the first group is the one that has no overrides
            settings = merge_settings(settings, {"lr": 0.003})
            optimizer.param_groups[0]["lr"] = 0.003
            for group, mine in zip(optimizer.param_groups[1:], settings.groups, strict=True):
                group["lr"] = mine.hyper.lr
        present = [not absent or rng.random() < 0.6 for _ in names]
        gradients = {
            name: (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2)).astype(dtype)
            for name, shape in SHAPES.items()
        }
        for name, here in zip(names, present, strict=True):
            theirs[name].grad = torch.tensor(gradients[name]) if here else None
        optimizer.step()
        flat = np.concatenate(
            [np.empty(0, dtype), *(gradients[n].ravel() for n, here in zip(names, present, strict=True) if here)]
        )
        updates = plan(settings, names, ours.counts, present, np.dtype(dtype), ours.carried)
        apply(ours, flat, updates, bounds, None, FusedKernel())
        expected = np.concatenate([theirs[name].detach().numpy().ravel() for name in names])
        error = np.abs(ours.params.astype(float) - expected)
        if dtype == "float64":
            assert np.all(error <= 1e-9 * np.maximum(np.abs(expected), 1e-3)), step
        else:
            assert error.max() <= 1e-6 * np.abs(expected).max(), step
    if settings.optimizer.name != "sgd":  # which keeps no count
        assert [int(optimizer.state[theirs[name]]["step"]) for name in names] == ours.counts
    for index, name in enumerate(names):
        mine = slice(bounds[index], bounds[index + 1])
        for key, array in ours.arrays.items():
            if key != "params":
                np.testing.assert_allclose(
                    array[mine],
                    optimizer.state[theirs[name]][key].numpy().ravel(),
                    rtol=1e-4 if dtype == "float32" else 1e-9,
                    atol=1e-6 if dtype == "float32" else 1e-12,
                )


def test_the_tolerance_sees_a_wrong_eps():
    """The control: eps inside instead of outside the bias correction is off by far more than the tolerance allows."""
    import torch

    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.001, eps=1e-8)
    parameter.grad = torch.tensor([1e-6], dtype=torch.float64)
    optimizer.step()
    state = State.fresh(np.array([1.0]), 1, parse_settings({}))
    wrong = parse_settings({"eps": 1e-8 / (1 - 0.999) ** 0.5})
    apply(state, np.array([1e-6]), plan(wrong, ["p"], [0], [True], np.dtype("float64")), [0, 1], None, FusedKernel())
    assert abs(state.params[0] - parameter.item()) > 1e-9
