"""torch models in federations: `state_dict()`s in and out, with a batch norm's counters and running statistics."""

import copy

import pytest
import torch

from adamd import errors, fed

pytestmark = pytest.mark.torch


def model(dtype=torch.float32):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)).to(dtype)


def train(net, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=generator).to(next(net.parameters()).dtype)
        loss = net(x).float().pow(2).mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_a_model_with_batch_norms_is_averaged(client, name):
    """Every float is the clients' weighted mean, running statistics too; the count of batches is the largest."""
    start = model()
    run = client.open_federation(name, start.state_dict(), strategy=fed.FedAvg(), quorum=2, num_rounds=1)
    assert run.settings["carry"] == ["1.num_batches_tracked"]
    assert run.settings["averaged"] == ["1.running_mean", "1.running_var"]
    trained = []
    for who, steps, examples in (("a", 3, 30), ("b", 5, 10)):
        task = client.federation(name, client=who).task()
        net = model()
        with torch.no_grad():
            for value in net.parameters():
                value.zero_()  # what is trained comes from the task alone
        net.load_state_dict(task.state_dict())
        loss = train(net, steps, steps)
        assert task.reply(parameters=net.state_dict(), num_examples=examples, loss=loss).counted
        trained.append(copy.deepcopy(net.state_dict()))
    next(run.follow(after=0, every=0.02))
    final = run.state_dict()
    assert list(final) == list(start.state_dict())  # in the model's order
    for key, value in final.items():
        a, b = (one[key] for one in trained)
        assert value.dtype == a.dtype and value.shape == a.shape
        expected = torch.maximum(a, b) if key.endswith("tracked") else 0.75 * a + 0.25 * b
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    model().load_state_dict(final)


def test_the_tensors_of_a_task_are_its_arrays(client, name):
    client.open_federation(name, model().state_dict(), quorum=1)
    task = client.federation(name, client="a").task()
    state = task.state_dict()
    state["0.weight"].fill_(7)
    assert (task.parameters["0.weight"] == 7).all()
    for key, value in model().state_dict().items():
        if key != "0.weight":
            assert torch.equal(state[key], value)


def test_a_bfloat16_model_takes_part(client, name):
    net = model(torch.bfloat16)
    run = client.open_federation(name, net.state_dict(), strategy=fed.FedAvg(), quorum=1)
    task = client.federation(name, client="a").task()
    net.load_state_dict(task.state_dict())
    train(net, 1, 2)
    assert task.reply(parameters=net.state_dict()).counted
    next(run.follow(after=0, every=0.02))
    mine = model(torch.bfloat16)
    mine.load_state_dict(run.state_dict())  # the session is float32
    for key, value in mine.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[key], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("encoding", ["raw", "int8"])
def test_a_private_head_stays_and_the_body_is_shared(client, name, encoding):
    net = model()
    run = client.open_federation(name, net.state_dict(), quorum=1, private=["2.*"])
    if encoding == "int8":
        with pytest.raises(errors.InvalidRequest, match="private"):
            client.federation(name, client="a", encoding=encoding)
        return
    task = client.federation(name, client="a", encoding=encoding).task()
    missing, unexpected = net.load_state_dict(task.state_dict(), strict=False)
    assert (missing, unexpected) == (["2.weight", "2.bias"], [])
    train(net, 1, 2)
    task.reply(parameters=net.state_dict())
    next(run.follow(after=0, every=0.02))
    final, start = run.state_dict(), model().state_dict()
    assert torch.equal(final["2.weight"], start["2.weight"]) and not torch.equal(net[2].weight, start["2.weight"])
    torch.testing.assert_close(final["0.weight"], net[0].weight.detach())


def test_a_count_that_float32_does_not_hold_is_refused(client, name):
    state = model().state_dict() | {"1.num_batches_tracked": torch.tensor(2**24 + 1)}
    with pytest.raises(errors.WrongDtype, match=r"16777217.*dtype='float64'"):
        client.open_federation(name, state, quorum=1)
    run = client.open_federation(name, state, quorum=1, dtype="float64")
    assert int(run.state_dict()["1.num_batches_tracked"]) == 2**24 + 1
