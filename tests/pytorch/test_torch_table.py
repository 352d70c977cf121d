"""torch's own table of its optimizers: each set of arguments beside torch, and each error."""

import copy
import re

import pytest
import torch
from digits import bound, distance, network

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch
pytest.importorskip("expecttest", reason="what torch's own tests import; .ci/environments installs it")
from torch.testing._internal import common_optimizers  # noqa: E402 - it needs what the line before asks for

OURS = {name: getattr(adamd.torch, name) for name in adamd.torch.__all__ if name != "Around"}
TABLE = {info.optim_cls.__name__: info for info in common_optimizers.optim_db if info.optim_cls.__name__ in OURS}
INPUTS = {name: info.optim_inputs_func(device="cpu") for name, info in TABLE.items()}
ERRORS = {name: info.optim_error_inputs_func("cpu", torch.float32) for name, info in TABLE.items()}


def test_the_table_has_all_of_ours():
    assert TABLE.keys() == OURS.keys() and all(len(given) > 3 for given in INPUTS.values())


@pytest.fixture(autouse=True)
def numbers_in_float64():
    """torch keeps NAdam's mu_product in its default dtype: in float32 the product alone is off by 3e-8."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def stepped(model, optimizer, number):
    for index, p in enumerate(model.parameters()):
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + index + number).view_as(p)
    optimizer.step()


@pytest.mark.parametrize("name", TABLE)
def test_every_set_of_arguments(client, name):
    taken = 0
    for given in INPUTS[name]:
        made = network(torch.float64)
        other = copy.deepcopy(made)
        kwargs = given.kwargs
        if kwargs.get("differentiable"):
            with pytest.raises(errors.InvalidRequest, match="differentiated through"):
                OURS[name](made.parameters(), **kwargs, client=client)
            continue
        local = {key: value for key, value in kwargs.items() if key != "capturable"}  # which needs a GPU there
        remote = OURS[name](made.parameters(), **kwargs, client=client, durability="memory")
        beside = TABLE[name].optim_cls(other.parameters(), **local)
        for number in range(3):
            stepped(made, remote, number)
            stepped(other, beside, number)
        assert distance(made, other) <= bound(made), given.desc
        remote.session.delete()
        taken += 1
    assert taken > 3


@pytest.mark.parametrize("name", TABLE)
def test_every_error(client, name):
    seen = 0
    for one in ERRORS[name]:
        if one.error_on is not common_optimizers.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        given = one.optimizer_error_input
        params = given.params if given.params is not None else [torch.nn.Parameter(torch.zeros(2))]
        with pytest.raises((one.error_type, errors.InvalidSettings)) as caught:
            OURS[name](params, **given.kwargs, client=client)
        assert re.search(one.error_regex, str(caught.value)), given
        seen += 1
    assert seen > 3
