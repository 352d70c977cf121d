"""A run moves from torch's own optimizer into a session and back, and has lost nothing."""

import copy
import itertools

import pytest
import torch
from digits import batches, distance, flat, loss_of, network, train, twins

import adamd
import adamd.torch
from adamd import checkpoints, errors

pytestmark = pytest.mark.torch

MOVING = {
    "Adam": ("Adam", {"weight_decay": 0.01}),
    "AMSGrad": ("Adam", {"amsgrad": True}),
    "AdamW": ("AdamW", {"lr": 2e-3, "betas": (0.8, 0.99), "eps": 1e-6}),
    "NAdam": ("NAdam", {"weight_decay": 0.01}),
    "NAdam decoupled": ("NAdam", {"weight_decay": 0.01, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    "RAdam": ("RAdam", {"lr": 3e-3, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    "Adamax": ("Adamax", {"betas": (0.8, 0.99)}),
    "Adagrad": ("Adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "RMSprop": ("RMSprop", {"lr": 1e-3}),
    "RMSprop heavy": ("RMSprop", {"lr": 1e-3, "momentum": 0.5, "centered": True, "alpha": 0.9}),
    "SGD": ("SGD", {"lr": 0.05, "weight_decay": 0.01}),
    "SGD heavy": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.1}),
    "SGD Nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": False}),
}
DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def dtype(request):
    """The model's dtype, and torch's default: in that it keeps its numbers, NAdam's mu_product among them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def close(ours, theirs):
    """The oracle's bounds, over all parameters."""
    mine, its = flat(ours).double(), flat(theirs).double()
    if next(ours.parameters()).dtype == torch.float64:
        return bool(((mine - its).abs() <= 1e-9 * its.abs().clamp(min=1e-3)).all())
    return float((mine - its).abs().max()) <= 1e-6 * float(its.abs().max())


def step_session(session, model, given):
    """The loop of a program that steps a session by itself."""
    for batch in given:
        model.zero_grad()
        loss_of(model, batch).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found = session.step(gradients)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.from_numpy(found[name]))


def counts(optimizer):
    return [int(entry["step"]) for entry in optimizer.state_dict()["state"].values() if "step" in entry]


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("case", MOVING)
def test_a_plain_session_takes_over_and_gives_back(client, case, dtype):
    kind, options = MOVING[case]
    make = getattr(torch.optim, kind)
    ours, theirs = twins(dtype)
    given = list(batches(15))
    whole = make(theirs.parameters(), **options)
    train(theirs, whole, given)

    local = make(ours.named_parameters(), **options)
    train(ours, local, given[:5])
    before = local.state_dict()
    session = checkpoints.from_torch(client, before, ours.named_parameters())
    has_counts = bool(counts(local))
    assert session.step_number == (5 if has_counts else 1 if before["state"] else 0)
    assert session.dtype == str(dtype).removeprefix("torch.")

    # Back at once, every bit is what it was.
    same = checkpoints.to_torch(session, ours.named_parameters())
    assert {k: v for k, v in same["param_groups"][0].items() if k != "params"} == {
        k: v for k, v in before["param_groups"][0].items() if k != "params"
    }
    for key, entry in before["state"].items():
        assert same["state"][key].keys() == entry.keys()
        for name, value in entry.items():
            assert torch.equal(same["state"][key][name], value), (key, name)

    step_session(session, ours, given[5:10])
    again = network(dtype, seed=7)
    back = make(again.named_parameters(), **options)
    back.load_state_dict(checkpoints.to_torch(session, again.named_parameters()))
    assert torch.equal(flat(again), flat(ours))
    train(again, back, given[10:])
    assert close(again, theirs)
    assert counts(back) == counts(whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("case", MOVING)
def test_the_adapter_takes_over_and_gives_back(client, case, dtype):
    kind, options = MOVING[case]
    ours, theirs = twins(dtype)
    given = list(batches(15))
    whole = getattr(torch.optim, kind)(theirs.parameters(), **options)
    train(theirs, whole, given)

    local = getattr(torch.optim, kind)(ours.parameters(), **options)
    train(ours, local, given[:5])
    remote = getattr(adamd.torch, kind)(ours.parameters(), client=client, **options)
    remote.load_state_dict(local.state_dict())
    train(ours, remote, given[5:10])
    back = getattr(torch.optim, kind)(ours.parameters(), **options)
    back.load_state_dict(remote.state_dict())
    train(ours, back, given[10:])
    assert close(ours, theirs)
    assert counts(back) == counts(whole)


def test_groups_travel_and_settings_that_changed_on_the_way(client):
    model = network()
    groups = [
        {"params": list(itertools.islice(model.named_parameters(), 2)), "lr": 0.5},
        {"params": list(itertools.islice(model.named_parameters(), 2, None)), "betas": (0.5, 0.6)},
    ]
    local = torch.optim.AdamW(groups)
    train(model, local, batches(2))
    session = checkpoints.from_torch(client, local.state_dict(), groups, name="groups-travel", labels={"a": "b"})
    assert session.name == "groups-travel"
    assert session.info()["labels"] == {"a": "b"}
    session.update(weight_decay=0.25)
    found = checkpoints.to_torch(session, groups)
    assert [group["lr"] for group in found["param_groups"]] == [0.5, 0.001]
    assert [group["betas"] for group in found["param_groups"]] == [(0.9, 0.999), (0.5, 0.6)]
    assert [group["weight_decay"] for group in found["param_groups"]] == [0.25, 0.25]
    assert [len(group["params"]) for group in found["param_groups"]] == [2, 4]
    with pytest.raises(errors.InvalidSettings, match="groups"):
        checkpoints.to_torch(session, model.named_parameters())
    session.delete(anyway=True)


def test_a_narrow_model_travels_with_its_masters(client):
    ours = network(torch.bfloat16)
    remote = adamd.torch.Adam(ours.named_parameters(), client=client)
    train(ours, remote, batches(3))
    session = checkpoints.from_torch(client, remote.state_dict(), ours.named_parameters())
    theirs = remote.session.parameters()
    for name, mine in session.parameters().items():
        assert (mine == theirs[name]).all()
    again = network(torch.bfloat16, seed=5)
    found = checkpoints.to_torch(session, again.named_parameters())
    assert torch.equal(flat(again), flat(ours))
    assert found["state"][0]["master_param"].dtype == torch.float32


def broken(saved):
    """States that no optimizer of this model has, and the words that they are refused with."""

    def changed(change):
        made = copy.deepcopy(saved)
        change(made)
        return made

    def at(key, entry, value):
        return changed(lambda made: made["state"][key].__setitem__(entry, value))

    rprop = torch.optim.Rprop(network().named_parameters()).state_dict()
    sgd = torch.optim.SGD(network().named_parameters()).state_dict()
    return {
        "nothing": ({}, "no optimizer's state"),
        "a model's": (network().state_dict(), "no optimizer's state"),
        "rprop": (rprop, "of no optimizer that a session can be"),
        "mixed": (changed(lambda m: m["param_groups"].append(sgd["param_groups"][0])), "Adam and of SGD"),
        "groups": (changed(lambda m: m["param_groups"].append(m["param_groups"][0])), "2 param groups, 1 are given"),
        "no groups": (changed(lambda m: m.update(param_groups=[])), "of nothing"),
        "groups of what": (changed(lambda m: m.update(param_groups=[1])), "no list of dicts"),
        "state of what": (changed(lambda m: m.update(state=[1])), "no dict of dicts"),
        "too few": (changed(lambda m: m["param_groups"][0]["params"].pop()), "5 parameters in the state, 6 are given"),
        "other names": (
            changed(lambda m: m["param_groups"][0]["param_names"].reverse()),
            "is '7.bias' in the state, '0.weight' is given",
        ),
        "a stranger": (changed(lambda m: m["state"].update({99: m["state"][0]})), "'99' of no parameter"),
        "no moment": (changed(lambda m: m["state"][2].pop("exp_avg")), "'3.weight' has no 'exp_avg'"),
        "no largest": (
            changed(lambda m: m["param_groups"][0].update(amsgrad=True)),
            "no 'max_exp_avg_sq'; it was saved without amsgrad",
        ),
        "shape": (at(1, "exp_avg_sq", torch.zeros(3)), r"'0.bias' has shape \[3\], the parameter \[8\]"),
        "integers": (at(1, "exp_avg_sq", torch.zeros(8, dtype=torch.int64)), "int64; wanted a tensor of floats"),
        "no tensor": (at(1, "exp_avg_sq", [0.0] * 8), "list; wanted a tensor"),
        "half a step": (at(1, "step", torch.tensor(1.5)), "1.5; wanted a count"),
        "before the first": (at(1, "step", -1), "wanted a count"),
        "no number": (at(1, "step", "ten"), "'ten'; wanted a number"),
        "NaN": (at(1, "exp_avg", torch.full((8,), torch.nan)), "finite"),
        "a negative second moment": (at(1, "exp_avg_sq", torch.full((8,), -1.0)), "elements below 0"),
        "lr": (changed(lambda m: m["param_groups"][0].update(lr=-1.0)), "lr"),
    }


def test_what_does_not_fit_is_refused_and_makes_nothing(client):
    model = network()
    local = torch.optim.Adam(model.named_parameters())
    train(model, local, batches(2))
    there = {one["id"] for one in client.sessions()}
    for case, (state, said) in broken(local.state_dict()).items():
        with pytest.raises((errors.InvalidState, errors.InvalidSettings), match=said):
            checkpoints.from_torch(client, state, model.named_parameters())
            pytest.fail(case)
    assert {one["id"] for one in client.sessions()} == there
    remote = adamd.torch.Adam(model.named_parameters(), client=client)
    with pytest.raises(errors.InvalidState, match="of SGD, this optimizer is Adam"):
        remote.load_state_dict(torch.optim.SGD(model.named_parameters()).state_dict())
    assert remote.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_model_that_is_not_the_sessions_is_left_alone(client):
    model = network()
    session = client.create(dict(model.named_parameters()), lr=0.1)
    for other, said in [
        (torch.nn.Linear(2, 2), "'0.bias' has shape None here"),
        (network(torch.float64, seed=3), "the session is float32"),
    ]:
        before = flat(other).clone()
        with pytest.raises(errors.WrongLayout, match=said):
            checkpoints.to_torch(session, other.named_parameters())
        assert torch.equal(flat(other), before)
    with pytest.raises(errors.WrongLayout, match="no parameters"):
        checkpoints.to_torch(session, [])
    assert checkpoints.to_torch(session, model.named_parameters())["state"] == {}
    assert distance(model, network()) == 0


def test_patterns_of_names_become_groups_and_what_is_around_stays_behind(client):
    """torch has no place for a moving average or bounds; a pattern's settings are those of its tensors' group."""
    model = network()
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    session = client.create(
        start, 1e-3, groups=[{"tensors": ["*.bias"], "lr": 0.5}], ema_decay=0.5, lower=-100.0, durability="memory"
    )
    step_session(session, model, batches(2))
    biases = [(name, p) for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [(name, p) for name, p in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": [p for _, p in given]} for given in (weights, biases)]
    named = [{"params": given} for given in (weights, biases)]
    optimizer = torch.optim.Adam(groups)
    optimizer.load_state_dict(checkpoints.to_torch(session, named))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]
    assert set(optimizer.state[biases[0][1]]) == {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(errors.InvalidSettings, match="has other settings in the session"):
        checkpoints.to_torch(session, model.named_parameters())
    session.delete(anyway=True)
