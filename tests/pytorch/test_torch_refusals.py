"""What no session takes is refused at once, with words that say what to do."""

import subprocess
import sys

import pytest
import torch

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.ones(*shape, dtype=dtype))


def overlapping():
    base = torch.ones(10)
    return [torch.nn.Parameter(base[:6]), parameter(1), torch.nn.Parameter(base[4:])]


def overlapping_columns():
    base = torch.ones(4, 6)
    return [torch.nn.Parameter(base[:, :3]), torch.nn.Parameter(base[:, 2:])]


PARAMETERS = {
    "float8": (
        lambda: [torch.nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)],
        errors.WrongDtype,
        "float8_e4m3fn; float32",
    ),
    "complex": (lambda: [parameter(2, dtype=torch.complex64)], errors.WrongDtype, "view_as_real"),
    "mixed": (lambda: [parameter(2), parameter(2, dtype=torch.float64)], errors.WrongDtype, "of its own"),
    "narrow and float64": (
        lambda: [parameter(2, dtype=torch.bfloat16), parameter(2, dtype=torch.float64)],
        errors.WrongDtype,
        "of its own",
    ),
    "overlapping": (overlapping, errors.WrongLayout, "'0.0' and parameter '0.2' share memory"),
    "overlapping columns": (overlapping_columns, errors.WrongLayout, "share memory"),
    "the same twice": (lambda: [torch.nn.Parameter(torch.ones(3))] * 2, errors.WrongLayout, "share memory"),
    "expanded": (lambda: [torch.nn.Parameter(torch.ones(1).expand(3))], errors.WrongLayout, "clone"),
    "lazy": (lambda: torch.nn.LazyLinear(3).parameters(), errors.WrongLayout, "run the model once"),
    "meta": (lambda: torch.nn.Linear(2, 2, device="meta").parameters(), errors.WrongLayout, "meta"),
    "one name twice": (
        lambda: [{"params": [("w", parameter(1))]}, {"params": [("w", parameter(1))]}],
        errors.WrongLayout,
        "named 'w'",
    ),
    "amsgrad by group": (
        lambda: [{"params": [parameter(1)], "amsgrad": True}, {"params": [parameter(1)]}],
        errors.InvalidRequest,
        "of its own",
    ),
    "differentiable": (
        lambda: [{"params": [parameter(1)], "differentiable": True}],
        errors.InvalidRequest,
        "differentiable",
    ),
    "no parameters": (lambda: [{"params": []}], errors.WrongLayout, "no parameters"),
    "nothing": (list, ValueError, "empty parameter list"),
    "a tensor": (lambda: parameter(2), TypeError, "iterable"),
    "no leaf": (lambda: [parameter(2) * 2], ValueError, "non-leaf"),
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate:UserWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(client, case):
    make, error, said = PARAMETERS[case]
    with pytest.raises(error, match=said):
        adamd.torch.Adam(make(), client=client)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1.0}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_settings_are_refused_when_the_optimizer_is_made(client, options, said):
    with pytest.raises((errors.InvalidSettings, errors.InvalidRequest), match=said):
        adamd.torch.Adam([parameter(2)], client=client, **options)


def test_a_client_and_a_url(client):
    with pytest.raises(errors.InvalidRequest, match="not both"):
        adamd.torch.Adam([parameter(2)], client=client, url="http://localhost:1")


def test_no_server_is_told_when_the_optimizer_is_made():
    with pytest.raises(errors.RetriesExhausted):
        adamd.torch.Adam([parameter(2)], url="http://127.0.0.1:9", timeout=0.3)


def test_a_sparse_gradient(client):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = adamd.torch.Adam(embedding.parameters(), client=client)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(errors.InvalidRequest, match="to_dense"):
        optimizer.step()
    embedding.weight.grad = embedding.weight.grad.to_dense()
    optimizer.step()
    assert optimizer.session.step_number == 1


def test_a_model_that_is_converted_afterwards(client):
    model = torch.nn.Linear(2, 2)
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    model.double()
    model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    with pytest.raises(errors.WrongDtype, match="after the conversion"):
        optimizer.step()


def test_groups_that_were_changed_by_hand(client):
    model = torch.nn.Linear(2, 2)
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    model(torch.ones(1, 2)).sum().backward()
    taken = optimizer.param_groups[0]["params"].pop()
    with pytest.raises(errors.InvalidRequest, match="add_param_group"):
        optimizer.step()
    optimizer.param_groups[0]["params"].append(taken)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(errors.InvalidRequest, match="fixed"):
        optimizer.step()
    assert optimizer.session.step_number == 0


def test_without_torch_the_extra_is_named():
    code = "import sys; sys.modules['torch'] = None\nimport adamd\ntry: adamd.torch\nexcept ImportError as e: print(e)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'adamd[torch]'" in told.stdout
