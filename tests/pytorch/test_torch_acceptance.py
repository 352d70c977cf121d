"""The plain loop with adamd.torch.Adam beside the plain loop with torch.optim.Adam: the same training."""

import pytest
import torch
from digits import batches, bound, correct, distance, flat, network, train, train_both, twins

import adamd
import adamd.torch

pytestmark = pytest.mark.torch

DTYPES = [pytest.param(torch.float64, id="float64"), pytest.param(torch.float32, id="float32")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_steps_are_torchs(client, dtype, capsys):
    ours, theirs = twins(dtype)
    start = flat(ours).clone()
    remote = adamd.torch.Adam(ours.parameters(), lr=0.001, client=client)
    local = torch.optim.Adam(theirs.parameters(), lr=0.001)
    train_both([(ours, remote), (theirs, local)], batches(200))
    apart, read = distance(ours, theirs), (correct(ours), correct(theirs))
    moved = float((flat(ours) - start).norm())
    with capsys.disabled():
        print(f"\n{dtype}: L2 apart {apart:.3g} after moving {moved:.3g}; correct {read[0]} and {read[1]} of 297")
    assert apart <= bound(ours)
    assert read[0] == read[1] > 200
    assert moved > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_that_is_unfrozen_at_step_50(client, dtype, capsys):
    ours, theirs = twins(dtype)
    remote = adamd.torch.Adam(ours.parameters(), client=client)
    local = torch.optim.Adam(theirs.parameters())
    given = list(batches(200))
    for model in (ours, theirs):
        model[0].requires_grad_(False)
    frozen = ours[0].weight.clone()
    train_both([(ours, remote), (theirs, local)], given[:50])
    assert torch.equal(ours[0].weight, frozen)
    assert remote.state_dict()["state"].keys() == local.state_dict()["state"].keys() == {2, 3, 4, 5}
    for model in (ours, theirs):
        model[0].requires_grad_(True)
    train_both([(ours, remote), (theirs, local)], given[50:])
    with capsys.disabled():
        print(f"\n{dtype}: L2 apart {distance(ours, theirs):.3g} with a layer unfrozen at step 50")
    assert distance(ours, theirs) <= bound(ours)
    assert correct(ours) == correct(theirs)
    for optimizer in (remote, local):
        state = optimizer.state_dict()["state"]
        assert [int(state[index]["step"]) for index in range(6)] == [150, 150, 200, 200, 200, 200]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_goes_to_a_local_adam_at_step_100_and_back_at_150(client, dtype, capsys, tmp_path):
    ours, theirs = twins(dtype)
    remote = adamd.torch.Adam(ours.parameters(), client=client)
    local = torch.optim.Adam(theirs.parameters())
    given = list(batches(200))
    train_both([(ours, remote), (theirs, local)], given[:100])

    between = torch.optim.Adam(ours.parameters(), lr=123)
    torch.save(remote.state_dict(), tmp_path / "there.pt")
    between.load_state_dict(torch.load(tmp_path / "there.pt", weights_only=True))
    train_both([(ours, between), (theirs, local)], given[100:150])

    back = adamd.torch.Adam(ours.parameters(), lr=123, client=client)
    torch.save(between.state_dict(), tmp_path / "back.pt")
    back.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    assert back.session.step_number == 150
    train_both([(ours, back), (theirs, local)], given[150:])
    with capsys.disabled():
        print(f"\n{dtype}: L2 apart {distance(ours, theirs):.3g} with 50 of 200 steps by a local Adam")
    assert distance(ours, theirs) <= bound(ours)
    assert correct(ours) == correct(theirs)
    assert back.session.step_number == 200


def test_a_plain_run_is_the_same_run_twice(client):
    """What the comparisons above rest on."""
    runs = []
    for _ in range(2):
        model = network()
        train(model, adamd.torch.Adam(model.parameters(), client=client), batches(20))
        runs.append(flat(model))
    assert torch.equal(*runs)
