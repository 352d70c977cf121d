"""What a remote optimizer adds: names, other processes, crashes, lost history, and others who write to the model."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from digits import batches, distance, flat, loss_of, network, train, train_both, twins

import adamd
import adamd.torch
from adamd import errors
from sdk.peers import Relay

pytestmark = pytest.mark.torch
HERE = Path(__file__).parent


@pytest.fixture
def trained(client, name):
    """A model after three steps, and its optimizer with a name."""
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), lr=0.003, client=client, session=name)
    train(model, optimizer, batches(3))
    return model, optimizer


def test_a_server_that_is_killed_and_comes_back(server_factory, capsys):
    server = server_factory()
    undisturbed, disturbed = twins()
    given = list(batches(60))
    with adamd.connect(server.url) as client:
        train(undisturbed, adamd.torch.Adam(undisturbed.parameters(), client=client), given)
        optimizer = adamd.torch.Adam(disturbed.parameters(), client=client)
        for batch, down in zip(given, [n in (20, 40) for n in range(60)], strict=True):
            if down:
                server.kill()
                again = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
                again.start()
            train(disturbed, optimizer, [batch])
            if down:
                again.join()
    assert torch.equal(flat(disturbed), flat(undisturbed))
    assert optimizer.session.step_number == 60


CHILD = """
import sys, torch, warnings, adamd.torch
from digits import batches, flat, network, train
torch.set_num_threads(1)
model = network(seed=99)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    optimizer = adamd.torch.Adam(model.parameters(), lr=9.0, session=sys.argv[1])
assert ["lr is 0.003 there and 9.0 here" in str(one.message) for one in told] == [True]
assert optimizer.session.step_number == 3 and optimizer.param_groups[0]["lr"] == 0.003
assert [int(s["step"]) for s in optimizer.state_dict()["state"].values()] == [3] * 6
torch.save(flat(model), sys.argv[2] + "/resumed.pt")
train(model, optimizer, list(batches(6))[3:])
torch.save(flat(model), sys.argv[2] + "/after.pt")
optimizer.close()
"""


def test_another_process_resumes_by_name(trained, name, server, tmp_path):
    model, optimizer = trained
    environment = {**os.environ, "ADAMD_URL": server.url, "PYTHONPATH": str(HERE)}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, name, tmp_path], env=environment, check=True, timeout=120
    )
    assert torch.equal(torch.load(tmp_path / "resumed.pt"), flat(model))

    alone = network()
    train(alone, adamd.torch.Adam(alone.parameters(), lr=0.003, client=optimizer._client), batches(6))
    after = torch.load(tmp_path / "after.pt")
    assert torch.equal(after, flat(alone))

    # This process has not seen the other's steps: it is told so, and follows when it says so.
    before = flat(model).clone()
    with pytest.raises(errors.StepSuperseded):
        train(model, optimizer, batches(1, seed=2))
    with pytest.raises(errors.StepSuperseded, match="refresh"):
        optimizer.state_dict()
    assert torch.equal(flat(model), before)
    optimizer.refresh()
    assert torch.equal(flat(model), after)
    train(model, optimizer, batches(1, seed=2))
    assert optimizer.session.step_number == 7


def test_a_session_that_does_not_fit_is_not_resumed(trained, client, name):
    for module, options, error, said in [
        (torch.nn.Linear(2, 2), {}, errors.WrongLayout, "choose another name"),
        (network(torch.float64), {}, errors.WrongLayout, "float32"),
        (network(), {"amsgrad": True}, errors.InvalidSettings, "amsgrad=False"),
    ]:
        before = flat(module).clone()
        with pytest.raises(error, match=said):
            adamd.torch.Adam(module.parameters(), client=client, session=name, **options)
        assert torch.equal(flat(module), before)
    with pytest.raises(errors.InvalidSettings, match=r"adamd\.torch\.Adam\("):
        adamd.torch.AdamW(network().parameters(), client=client, session=name)


def test_settings_by_groups_are_resumed(client, name):
    def made(lr):
        model = network()
        groups = [
            {"params": model[:3].parameters(), "lr": torch.tensor(lr), "betas": (0.5, 0.6)},
            {"params": model[3:].parameters(), "lr": 2 * lr},
        ]
        return model, adamd.torch.AdamW(groups, client=client, session=name)

    first, optimizer = made(0.25)
    train(first, optimizer, batches(2))
    with pytest.warns(UserWarning, match=r"lr is 0\.25 there and 7\.0 here in param group 0; lr is 0\.5 there and 14"):
        second, again = made(7.0)
    assert torch.equal(flat(first), flat(second))
    assert isinstance(again.param_groups[0]["lr"], torch.Tensor)
    assert [float(group["lr"]) for group in again.param_groups] == [0.25, 0.5]
    assert [group["betas"] for group in again.param_groups] == [(0.5, 0.6), (0.9, 0.999)]
    with pytest.raises(errors.InvalidSettings, match="groups"):  # one group cannot hold two settings
        names = [
            (f"{g}.{i}", p) for g, part in enumerate((first[:3], first[3:])) for i, p in enumerate(part.parameters())
        ]
        adamd.torch.AdamW(names, client=client, session=name)


def test_a_resumed_script_is_told_of_settings_that_it_gives_in_vain(trained, client, name):
    def resumed(**given):
        return adamd.torch.Adam(network().parameters(), client=client, session=name, **given)

    resumed()  # what is not given is not compared, ...
    resumed(lr=0.003, eps=1e-8)
    with pytest.warns(
        UserWarning, match=rf"'{name}' is resumed at step 3 .*lr is 0\.003 there and 0\.001 here"
    ) as told:
        optimizer = resumed(lr=1e-3)  # ... and what is given is, at torch's default too
    assert [Path(one.filename).name for one in told] == [Path(__file__).name]
    assert optimizer.param_groups[0]["lr"] == 0.003
    with pytest.warns(UserWarning, match=r"betas is \[0\.9, 0\.999\] there and \[0\.5, 0\.9\] here"):
        adamd.torch.Adam(iter(network().parameters()), 0.003, (0.5, 0.9), client=client, session=name)


def test_two_processes_with_the_same_gradients_are_one_run(client, name):
    """As under DistributedDataParallel: each step is applied once, whoever comes first."""
    one, two = twins()
    optimizers = [adamd.torch.Adam(model.parameters(), client=client, session=name) for model in (one, two)]
    train_both(list(zip((one, two), optimizers, strict=True)), batches(5))
    assert torch.equal(flat(one), flat(two))
    assert client.session(name).step_number == 5


def test_history_that_is_lost(server_factory, tmp_path):
    server = server_factory(data_dir=tmp_path / "data")
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), url=server.url)
    train(model, optimizer, batches(2))
    server.stop()
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    server.start()
    saved = optimizer.state_dict()
    train(model, optimizer, batches(3, seed=2))
    server.stop()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "backup").rename(tmp_path / "data")
    server.start()
    before = flat(model).clone()
    with pytest.raises(errors.HistoryLost) as caught:
        optimizer.step()
    assert caught.value.step == 2
    with pytest.raises(errors.HistoryLost, match="refresh"):
        optimizer.state_dict()
    assert torch.equal(flat(model), before)
    optimizer.refresh()  # either go on from what there is
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 3
    optimizer.load_state_dict(saved)  # or from a state of one's own
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 3
    optimizer.close()


def test_a_name_that_someone_else_took(trained, client, name):
    model, optimizer = trained
    saved, body = optimizer.state_dict(), optimizer.session.export()
    client.session(name).delete()
    client.restore(body, name).step({"0.0": torch.ones(8, 1, 3, 3)})
    before = flat(model).clone()
    for refused in (optimizer.step, optimizer.refresh, optimizer.state_dict):
        with pytest.raises(errors.SessionDeleted):
            refused()
    optimizer.load_state_dict(saved)
    with pytest.raises(errors.SessionExists) as caught:
        optimizer.step()
    assert "safe in session" in caught.value.__notes__[0]
    assert torch.equal(flat(model), before)
    client.session(name).delete()
    train(model, optimizer, batches(1))
    assert client.session(name).step_number == 4


def test_a_session_of_memory_that_ended_with_its_server_goes_on_from_a_saved_state(server_factory):
    server = server_factory()
    ours, theirs = twins()
    given = list(batches(20))
    with adamd.connect(server.url) as client:
        optimizer = adamd.torch.Adam(ours.parameters(), client=client, durability="memory", labels={"run": "x"})
        local = torch.optim.Adam(theirs.parameters())
        train_both([(ours, optimizer), (theirs, local)], given[:10])
        saved, before = optimizer.state_dict(), flat(ours).clone()
        server.restart()
        with pytest.raises(errors.SessionError):
            train(ours, optimizer, given[10:11])
        assert torch.equal(flat(ours), before)
        optimizer.load_state_dict(saved)
        train_both([(ours, optimizer), (theirs, local)], given[10:])
        told = optimizer.session.info()
    assert (told["durability"], told["labels"], told["step"]) == ("memory", {"run": "x"}, 20)
    assert distance(ours, theirs) <= 5e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_bad_gradient_raises_and_changes_nothing(trained, bad):
    model, optimizer = trained
    before, state = flat(model).clone(), optimizer.state_dict()["state"]
    model[7].bias.grad[3] = bad
    with pytest.raises(errors.BadGradient):
        optimizer.step()
    assert torch.equal(flat(model), before)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], state[0]["exp_avg"])
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 4


def test_a_bad_gradient_is_skipped(client):
    ours, theirs = twins()
    optimizer = adamd.torch.Adam(ours.parameters(), client=client, on_bad_gradient="skip")
    other = adamd.torch.Adam(theirs.parameters(), client=client)
    given = list(batches(4))
    train_both([(ours, optimizer), (theirs, other)], given[:2])
    loss_of(ours, given[0]).backward()
    ours[0].bias.grad[0] = float("nan")
    optimizer.param_groups[0]["lr"] = 0.1  # travels again with the next good one
    optimizer.step()
    assert torch.equal(flat(ours), flat(theirs))
    other.param_groups[0]["lr"] = 0.1
    train_both([(ours, optimizer), (theirs, other)], given[2:])
    assert torch.equal(flat(ours), flat(theirs))
    assert (optimizer.session.skipped, optimizer.session.step_number) == (1, 4)


@pytest.mark.parametrize("moved", [1, 3])
def test_a_step_that_is_skipped_follows_a_session_that_others_moved(client, name, moved):
    one, two = twins()
    skipping, other = (
        adamd.torch.Adam(model.parameters(), client=client, session=name, on_bad_gradient="skip")
        for model in (one, two)
    )
    train(two, other, batches(moved))
    one[0].bias.grad = torch.full((8,), float("nan"))
    skipping.step()
    assert skipping.session.step_number == moved
    assert torch.equal(flat(one), flat(two))
    skipping.zero_grad()
    train_both([(one, skipping), (two, other)], batches(1))
    assert torch.equal(flat(one), flat(two))


# -- who else writes to the model


@pytest.mark.parametrize("through_data", [False, True], ids=["in place", "through .data, which leaves no trace"])
def test_values_set_before_the_first_step_count(client, through_data):
    ours, theirs = twins()
    optimizer = adamd.torch.Adam(ours.parameters(), client=client)
    local = torch.optim.Adam(theirs.parameters())
    for model in (ours, theirs):
        if through_data:
            model[0].weight.data.mul_(0.5)
        else:
            model.load_state_dict(network(seed=3).state_dict())
    train_both([(ours, optimizer), (theirs, local)], batches(5))
    assert distance(ours, theirs) < 1e-6


def test_a_model_that_others_have_written_to_is_not_overwritten(trained, name):
    model, optimizer = trained
    for change in (lambda: model[0].weight.mul_(2), lambda: setattr(model[7].bias, "data", torch.ones(10))):
        with torch.no_grad():
            change()
        before = flat(model).clone()
        with pytest.raises(errors.InvalidRequest, match="changed since step"):
            optimizer.step()
        assert torch.equal(flat(model), before)
        optimizer.refresh()
        assert not torch.equal(flat(model), before)
        optimizer.step()
    with torch.no_grad():
        model[0].weight.clamp_(-0.1, 0.1)
    clamped = flat(model).clone()
    optimizer.load_state_dict(optimizer.state_dict())  # go on from the changed values
    assert torch.equal(flat(model), clamped)
    theirs = copy.deepcopy(model)
    local = torch.optim.Adam(theirs.parameters())
    local.load_state_dict(optimizer.state_dict())
    train_both([(model, optimizer), (theirs, local)], batches(3))
    assert distance(model, theirs) < 1e-5
    assert (optimizer.session.name, optimizer.session.step_number) == (name, 8)


def test_a_model_that_is_swapped_out_and_back_is_the_same(trained):
    model, optimizer = trained
    kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(network(seed=8).state_dict())
    model.load_state_dict(kept)
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 4
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.session.step_number == 4  # a new one, from the model as it is
    kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(network(seed=8).state_dict())
    model.load_state_dict(kept)
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 5


def test_the_session_moved_by_hand(trained):
    model, optimizer = trained
    session = optimizer.session
    session.step({tensor.name: torch.ones(tensor.shape) for tensor in session.layout.tensors})
    before = flat(model).clone()
    with pytest.raises(errors.InvalidRequest, match="refresh"):
        optimizer.step()
    assert torch.equal(flat(model), before)
    optimizer.refresh()
    optimizer.step()
    assert session.step_number == 5


def test_an_answer_that_broke_off_leaves_the_model_whole(server):
    broken = threading.Event()
    with Relay(server.port, cut=lambda number: (None, 3000 if broken.is_set() else None, False)) as relay:
        model = network()
        optimizer = adamd.torch.Adam(model.parameters(), url=relay.url, timeout=2.0)
        train(model, optimizer, batches(2))
        before = flat(model).clone()
        broken.set()
        relay.drop()
        with pytest.raises(errors.RetriesExhausted):
            optimizer.step()
        assert torch.equal(flat(model), before)
        broken.clear()
        with torch.no_grad():
            model[0].weight.add_(0)  # makes the next step compare with what it last received
        optimizer.step()  # which had been applied, and is not again
        assert optimizer.session.step_number == 3
        alone = network()
        undisturbed = adamd.torch.Adam(alone.parameters(), url=server.url)
        train(alone, undisturbed, batches(2))
        undisturbed.step()
        assert torch.equal(flat(model), flat(alone))
        undisturbed.close()
        optimizer.close()


# -- state_dict


def test_loading_moves_the_name_and_ends_the_old_session(trained, client, name):
    model, optimizer = trained
    optimizer.session.update(labels={"run": name})
    old, saved = optimizer.session, optimizer.state_dict()
    train(model, optimizer, batches(2, seed=2))
    optimizer.load_state_dict(saved)
    assert client.session(name).id == old.id  # nothing has changed at the server yet
    assert optimizer.session.id != old.id
    assert (client.session(name).id, client.session(name).step_number) == (optimizer.session.id, 3)
    with pytest.raises(errors.SessionDeleted):
        client.session(old.id)
    assert [one["name"] for one in client.sessions() if one["labels"] == {"run": name}] == [name]


def test_a_new_session_takes_over_what_the_old_one_was_given(client, name):
    given = {"durability": "memory", "labels": {"team": "blue"}}
    adamd.torch.Adam(network().parameters(), client=client, session=name, **given)
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client, session=name)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, batches(1))
    assert given.items() <= client.session(name).info().items()


def test_loading_does_not_drop_another_clients_steps(trained, client, name):
    model, optimizer = trained
    saved = optimizer.state_dict()
    other = network()
    train(other, adamd.torch.Adam(other.parameters(), client=client, session=name), batches(2, seed=2))
    optimizer.load_state_dict(saved)
    with pytest.raises(errors.StepSuperseded, match="refresh"):
        optimizer.step()
    optimizer.refresh()
    assert torch.equal(flat(model), flat(other))
    optimizer.load_state_dict(saved)
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 4


def test_what_was_loaded_does_not_change_with_the_optimizer_it_came_from(client):
    ours, theirs = twins()
    local = torch.optim.Adam(theirs.parameters())
    train(theirs, local, batches(3))
    optimizer = adamd.torch.Adam(ours.parameters(), client=client)
    optimizer.load_state_dict(local.state_dict())
    saved = copy.deepcopy(local.state_dict())
    train(theirs, local, batches(1))
    assert int(optimizer.state_dict()["state"][0]["step"]) == 3
    state = optimizer.session and optimizer.state_dict()["state"]
    for index, one in saved["state"].items():
        for key, value in one.items():
            assert torch.equal(state[index][key], value)


def test_a_state_that_does_not_fit_changes_nothing(trained):
    model, optimizer = trained
    saved = optimizer.state_dict()
    wrong = {key: copy.deepcopy(saved) for key in ("amsgrad", "moment", "shape", "count", "groups")}
    wrong["amsgrad"]["param_groups"][0]["amsgrad"] = True
    del wrong["moment"]["state"][2]["exp_avg"]
    wrong["shape"]["state"][1]["exp_avg_sq"] = torch.zeros(3)
    wrong["count"]["state"][1]["step"] = torch.tensor(1.5)
    wrong["groups"]["param_groups"] *= 2
    for key, state in wrong.items():
        said = {
            "amsgrad": "without amsgrad",
            "moment": "no 'exp_avg'",
            "shape": "shape",
            "count": "1.5",
            "groups": "groups",
        }
        with pytest.raises((errors.InvalidState, ValueError), match=said[key]):
            optimizer.load_state_dict(state)
        assert [int(one["step"]) for one in optimizer.state.values()] == [3] * 6
        assert optimizer.param_groups[0]["amsgrad"] is False
    train(model, optimizer, batches(1))
    assert optimizer.session.step_number == 4


def test_adam_becomes_adamw_by_what_it_loads_as_in_torch(client):
    ours, theirs = twins(torch.float64)
    saved = torch.optim.AdamW(network(torch.float64).parameters()).state_dict()
    optimizer = adamd.torch.Adam(ours.parameters(), client=client)
    local = torch.optim.Adam(theirs.parameters())
    for one in (optimizer, local):
        one.load_state_dict(saved)
    train_both([(ours, optimizer), (theirs, local)], batches(5))
    assert distance(ours, theirs) <= 1e-9
    assert optimizer.session.settings["name"] == "adamw"
    back = adamd.torch.AdamW(ours.parameters(), client=client)
    back.load_state_dict(torch.optim.Adam(theirs.parameters()).state_dict())
    assert back.session.settings["name"] == "adamw"


def test_a_state_of_an_older_torch_and_of_a_fused_adam(client):
    model = network()
    local = torch.optim.Adam(model.parameters(), fused=True)
    train(model, local, batches(2))
    saved = local.state_dict()
    for key in ("decoupled_weight_decay", "maximize", "foreach"):
        del saved["param_groups"][0][key]
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    optimizer.load_state_dict(saved)
    train(model, optimizer, batches(1))
    back = torch.optim.Adam(model.parameters(), fused=True)
    back.load_state_dict(optimizer.state_dict())
    train(model, back, batches(1))
    assert [int(one["step"]) for one in back.state_dict()["state"].values()] == [4] * 6


def test_it_is_not_copied(trained):
    _, optimizer = trained
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            copied(optimizer)


def test_closing(server, client):
    parameter = torch.nn.Parameter(torch.ones(2))
    own = adamd.torch.Adam([parameter], url=server.url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.close()
        own.close()
        del own
    given = adamd.torch.Adam([parameter], client=client)
    given.close()
    assert client.session(given.session.id).step_number == 0
