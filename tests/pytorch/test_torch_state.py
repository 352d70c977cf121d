"""`torch.optim.Optimizer`'s public attributes, which mean here what they mean there; and loads that fail."""

import copy
import inspect
from collections import defaultdict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from digits import batches, flat, network, train_both, twins
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.optimizer import register_optimizer_step_post_hook

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch

KINDS = {
    "Adam": {},
    "AdamW": {"amsgrad": True},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {"initial_accumulator_value": 0.5},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "SGD": {"momentum": 0.9, "dampening": 0.1, "lr": 0.1},
    "SGD without momentum": {"lr": 0.1},
}


def made(kind, module, params, **more):
    return getattr(module, kind.split()[0])(params, **{**KINDS[kind], **more})


def small(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))


def stepped(model, optimizer, number):
    optimizer.zero_grad()
    model(torch.linspace(-1, number + 1, 12).view(4, 3)).pow(2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_torchs_and_saving_takes_no_step(client, kind):
    """get_optimizer_state_dict takes a step with gradients of 0 where `optimizer.state` is empty."""
    ours, theirs = small(), small()
    remote, local = (
        made(kind, adamd.torch, ours.parameters(), client=client),
        made(kind, torch.optim, theirs.parameters()),
    )
    assert remote.state and len(remote.state) == 6 and list(remote.state) == list(ours.parameters())
    assert isinstance(remote.state, defaultdict) and ours[0].weight in remote.state
    for number in range(3):
        for model, optimizer in ((ours, remote), (theirs, local)):
            stepped(model, optimizer, number)
            optimizer.zero_grad()
        get_optimizer_state_dict(ours, remote)
    assert remote.session.step_number == remote.session.info()["step"] == 3
    assert remote.state_dict()["state"].keys() == local.state_dict()["state"].keys()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert remote.state[mine].keys() == local.state[its].keys()
        for entry, value in local.state[its].items():
            torch.testing.assert_close(remote.state[mine][entry], value, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "SGD without momentum"])
def test_a_fresh_process_goes_on_by_torchs_own_checkpoints(client, kind, tmp_path):
    """`dcp.load` fills what is there already: so a fresh optimizer has to have entries."""
    model, other = small(), small(seed=7)
    optimizer = made(kind, adamd.torch, model.parameters(), client=client)
    for number in range(3):
        stepped(model, optimizer, number)
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    fresh = made(kind, adamd.torch, other.parameters(), client=client, lr=0.5)
    held = {"model": other.state_dict(), "optimizer": get_optimizer_state_dict(other, fresh)}
    assert fresh.session.step_number == 0
    dcp.load(held, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(held["model"])
    set_optimizer_state_dict(other, fresh, held["optimizer"])
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for number in range(3, 6):
        stepped(model, optimizer, number)
        stepped(other, fresh, number)
    assert torch.equal(flat(model), flat(other))


def test_it_is_read_once_for_a_step_and_anew_after_it(client):
    model = small()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    first = optimizer.state
    stepped(model, optimizer, 0)
    before = first[model[0].weight]["exp_avg"]
    assert first[model[0].weight]["exp_avg"] is before is optimizer.state.get(model[0].weight)["exp_avg"]
    assert all(int(entry["step"]) == 1 for entry in first.values())
    stepped(model, optimizer, 1)
    assert not torch.equal(first[model[0].weight]["exp_avg"], before)
    assert int(first[model[0].weight]["step"]) == 2
    for other in (copy.deepcopy(first), copy.copy(first), first.copy(), dict(first), {**first}, first | {}):
        assert len(other) == 6 and not hasattr(other, "fill")
        assert [int(entry["step"]) for entry in other.values()] == [2] * 6
    assert first == dict(first) and "exp_avg" in repr(first)
    optimizer.step()
    assert optimizer.session.step_number == 3 and len(list(client.sessions())) >= 1


WRITES = {
    "in place": lambda o, p: o.state[p]["exp_avg"].zero_(),
    "another tensor": lambda o, p: o.state[p].update(exp_avg=torch.ones_like(p)),
    "an entry": lambda o, p: o.state.update({p: {k: v * 0 + 1 for k, v in o.state[p].items()}}),
    "an entry goes": lambda o, p: o.state.pop(p),
    "the mapping": lambda o, p: setattr(o, "state", defaultdict(dict)),
    "clear": lambda o, p: o.state.clear(),
}


@pytest.mark.parametrize("write", WRITES)
def test_who_writes_into_the_state_changes_the_optimizer(client, name, write):
    ours, theirs = twins(torch.float64)
    remote = adamd.torch.Adam(ours.parameters(), client=client, session=name, clip_norm=1e6)
    local = torch.optim.Adam(theirs.parameters())
    given = list(batches(8))
    train_both([(ours, remote), (theirs, local)], given[:3])
    WRITES[write](remote, ours[3].weight)
    WRITES[write](local, theirs[3].weight)
    train_both([(ours, remote), (theirs, local)], given[3:])
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-9, atol=1e-12)
    told = client.session(name).info()
    assert told["step"] == 8 and told["optimizer"]["clip_norm"] == 1e6


def test_what_is_no_tensors_stays(client):
    model = small()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    optimizer.state["mine"] = 5
    made_by = optimizer.session.id
    stepped(model, optimizer, 0)
    assert optimizer.state["mine"] == 5 and optimizer.session.id == made_by
    assert list(optimizer.state)[:6] == list(model.parameters()) and "mine" in optimizer.state
    saved = optimizer.state_dict()
    assert saved["state"]["mine"] == 5
    del optimizer.state["mine"]
    optimizer.load_state_dict(saved)
    assert optimizer.state["mine"] == 5
    stepped(model, optimizer, 1)
    assert optimizer.state["mine"] == 5 and optimizer.session.step_number == 2


def test_every_hook(client):
    """Those that torch has now; a new one should be looked at."""
    registered = sorted(name for name, _ in inspect.getmembers(torch.optim.Optimizer) if name.startswith("register_"))
    assert registered == [
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "register_step_post_hook",
        "register_step_pre_hook",
    ]
    seen = []
    model = small()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)

    def halved(o, found):
        seen.append("load pre")
        changed = copy.deepcopy(found)
        changed["param_groups"][0]["lr"] = 0.5
        return changed

    def after(o):
        seen.append("load post")
        o.state["lr"] = o.param_groups[0]["lr"]

    def counted(o, args, kwargs):
        seen.append(o.state[model[0].weight]["step"].item())

    handles = [
        optimizer.register_state_dict_pre_hook(lambda o: o.state.__setitem__("before", 1)),
        optimizer.register_state_dict_post_hook(lambda o, found: seen.append(len(found["state"]))),
        optimizer.register_load_state_dict_pre_hook(halved),
        optimizer.register_load_state_dict_post_hook(after),
        optimizer.register_step_pre_hook(counted),
        optimizer.register_step_post_hook(counted),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append("global")),
    ]
    try:
        stepped(model, optimizer, 0)
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
    finally:
        [handle.remove() for handle in handles]
    assert seen == [0, 1, "global", 7, "load pre", "load post"]
    assert optimizer.state["lr"] == 0.5 and optimizer.session.settings["lr"] == 0.5
    stepped(model, optimizer, 1)
    assert optimizer.session.step_number == 2 and saved["param_groups"][0]["lr"] == 0.001


def test_a_profiler_and_printing(client):
    model = small()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    with torch.profiler.profile() as profile:
        stepped(model, optimizer, 0)
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#Adam.step", "Optimizer.zero_grad#Adam.zero_grad"} <= names
    assert repr(optimizer).startswith("Adam (\nParameter Group 0\n    amsgrad: False")
    assert optimizer.defaults["lr"] == 0.001 and optimizer.state_dict()["param_groups"][0]["fused"] is None


# -- loads that fail


def entry(saved, key, value):
    saved["state"][0] = {**saved["state"][0], key: value}


BAD = {
    "an entry that is no dict": lambda s: s["state"].update({0: 5}),
    "an entry that is a list": lambda s: s["state"].update({0: [1, 2]}),
    "an entry that is None": lambda s: s["state"].update({0: None}),
    "an array that is a text": lambda s: entry(s, "exp_avg", "zeros"),
    "NaN": lambda s: entry(s, "exp_avg", s["state"][0]["exp_avg"] * float("nan")),
    "infinity": lambda s: entry(s, "exp_avg_sq", s["state"][0]["exp_avg_sq"] + float("inf")),
    "below 0": lambda s: entry(s, "exp_avg_sq", s["state"][0]["exp_avg_sq"] - 1),
    "another shape": lambda s: entry(s, "exp_avg", torch.zeros(3)),
    "complex": lambda s: entry(s, "exp_avg", s["state"][0]["exp_avg"].to(torch.complex64)),
    "a step that is a text": lambda s: entry(s, "step", "three"),
    "half a step": lambda s: entry(s, "step", 1.5),
    "an array is missing": lambda s: s["state"][0].pop("exp_avg"),
    "lr is a text": lambda s: s["param_groups"][0].update(lr="0.1"),
    "lr is None": lambda s: s["param_groups"][0].update(lr=None),
    "lr is two": lambda s: s["param_groups"][0].update(lr=torch.tensor([0.1, 0.2])),
    "lr is below 0": lambda s: s["param_groups"][0].update(lr=-1.0),
    "betas is a number": lambda s: s["param_groups"][0].update(betas=0.9),
    "amsgrad without its array": lambda s: s["param_groups"][0].update(amsgrad=True),
    "two groups": lambda s: s["param_groups"].append(s["param_groups"][0]),
    "too few parameters": lambda s: s["param_groups"][0]["params"].pop(),
    "no groups": lambda s: s.pop("param_groups"),
    "no state": lambda s: s.pop("state"),
    "groups are a dict": lambda s: s.update(param_groups={}),
    "of SGD": lambda s: s.update(torch.optim.SGD(network().parameters(), momentum=0.9).state_dict()),
}


def test_a_load_that_fails_changes_nothing(client, name):
    ours, theirs = twins()
    optimizer = adamd.torch.Adam(ours.parameters(), client=client, session=name)
    undisturbed = adamd.torch.Adam(theirs.parameters(), client=client)
    train_both([(ours, optimizer), (theirs, undisturbed)], batches(2))
    session, groups, state = optimizer.session.id, optimizer.param_groups, optimizer.state
    plain = optimizer.state_dict()
    for what, spoil in BAD.items():
        saved = copy.deepcopy(plain)
        saved["param_groups"][0]["lr"] = 0.5
        spoil(saved)
        with pytest.raises((errors.AdamdError, ValueError, TypeError, KeyError)):
            optimizer.load_state_dict(saved)
            pytest.fail(f"{what}: loaded")
        assert optimizer.param_groups is groups and groups[0]["lr"] == 0.001, what
        assert optimizer.state is state and len(state) == 6 and optimizer.session.id == session, what
    for given in (None, [], "state"):
        with pytest.raises(errors.InvalidState):
            optimizer.load_state_dict(given)
    for register in (optimizer.register_load_state_dict_pre_hook, optimizer.register_load_state_dict_post_hook):
        handle = register(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.load_state_dict(plain)
        handle.remove()
        assert optimizer.param_groups is groups and optimizer.state is state and optimizer.session.id == session
    train_both([(ours, optimizer), (theirs, undisturbed)], batches(2, seed=2))
    assert torch.equal(flat(ours), flat(theirs)) and optimizer.session.step_number == 4


def test_entries_of_no_parameter_travel(client):
    """torch's own tests put numbers there."""
    model = small()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    saved = optimizer.state_dict()
    saved["state"] |= {"ran": True, "list": [1, 2]}
    optimizer.load_state_dict(saved)
    assert optimizer.state["ran"] is True and optimizer.state["list"] == [1, 2]
    stepped(model, optimizer, 0)
    assert optimizer.session.step_number == 1 and optimizer.state_dict()["state"]["list"] == [1, 2]


def test_names_in_another_order(client):
    """torch loads by position: the moments of one would be another's."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = adamd.torch.Adam(model.named_parameters(), client=client)
    saved = torch.optim.Adam(list(model.named_parameters())[::-1]).state_dict()
    with pytest.raises(errors.InvalidState, match="'1.bias' where this optimizer has '0.weight'"):
        optimizer.load_state_dict(saved)
    optimizer.load_state_dict(torch.optim.Adam(model.named_parameters()).state_dict())
    renamed = [(f"body.{name}", p) for name, p in model.named_parameters()]
    optimizer.load_state_dict(torch.optim.Adam(renamed).state_dict())  # renamed, as torch would have it
    assert optimizer.session.layout.names[0] == "body.0.bias"
