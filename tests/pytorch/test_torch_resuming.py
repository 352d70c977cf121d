"""A session that is resumed by its name: whose tensors they are, and what schedulers need."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from digits import flat
from torch.optim import lr_scheduler as torchs

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch
HERE = Path(__file__).parent


def layers(seed=0, width=64, count=3):
    """Layers of one shape, which could change places."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(count)))


def stepped(model, optimizer, number):
    width = model[0].in_features
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    model(torch.randn(8, width, generator=generator)).pow(2).mean().backward()
    optimizer.step()


def told_while(act):
    """What it returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = act()
    return found, [str(one.message) for one in told]


@pytest.fixture
def run(client, name):
    """A model whose session has no names, after ten steps."""
    model = layers()
    optimizer = adamd.torch.Adam(model.parameters(), lr=0.01, client=client, session=name)
    for number in range(10):
        stepped(model, optimizer, number)
    return model


# -- whose tensors


@pytest.mark.parametrize("kind", [set, frozenset, WeakSet])
def test_a_set_has_no_order(client, name, kind):
    with pytest.raises(TypeError, match="ordered collections"):
        adamd.torch.Adam(kind(layers().parameters()), client=client, session=name)
    with pytest.raises(TypeError, match="ordered collections"):
        adamd.torch.Adam([{"params": kind(layers().parameters())}], client=client, session=name)
    optimizer = adamd.torch.Adam(layers(count=1).parameters(), client=client, session=name)
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": kind(layers().parameters())})
    assert len(optimizer.param_groups) == 1 and optimizer.session.step_number == 0


def moved_ends(model):
    """Its parameters, with the first layer's in the place of the last's."""
    given = list(model.parameters())
    return [*given[-2:], *given[2:-2], *given[:2]]


def test_values_that_stand_elsewhere_are_refused(client, run, name):
    """Those of the session, and what they were before it: training leaves weights like what they began as."""
    for model in (run, layers()):
        before = flat(model).clone()
        with pytest.raises(errors.WrongLayout, match=r"'0\.0' has the values of the session's '0\.4'"):
            adamd.torch.Adam(moved_ends(model), client=client, session=name)
        assert torch.equal(flat(model), before)
    assert client.session(name).step_number == 10


def test_two_of_many_that_changed_places(client, run, name):
    given = list(copy.deepcopy(run).parameters())
    given[2], given[4] = given[4], given[2]
    with pytest.raises(errors.WrongLayout, match=r"'0\.2' has the values of the session's '0\.4'"):
        adamd.torch.Adam(given, client=client, session=name)


def test_a_few_elements_are_compared_as_they_are(client, name):
    torch.manual_seed(1)
    given = [torch.nn.Parameter(torch.tensor(value)) for value in (1.0, 2.0)]
    adamd.torch.Adam(given, client=client, session=name)
    with pytest.raises(errors.WrongLayout, match="another order"):
        adamd.torch.Adam(given[::-1], client=client, session=name)


@pytest.mark.parametrize("seed", [None, 0], ids=["the model as it was", "a fresh one of the same seed"])
def test_nothing_is_said_where_the_order_can_be_seen(client, run, name, seed):
    model = copy.deepcopy(run) if seed is None else layers(seed)
    optimizer, told = told_while(lambda: adamd.torch.Adam(model.parameters(), client=client, session=name))
    assert told == [] and torch.equal(flat(model), flat(run)) and optimizer.session.step_number == 10


def test_a_doubt_is_told(client, run, name):
    fresh = layers(seed=5)
    optimizer, (said,) = told_while(lambda: adamd.torch.Adam(fresh.parameters(), client=client, session=name))
    assert "6 of them have the shape of another" in said and "model.named_parameters()" in said
    assert torch.equal(flat(fresh), flat(run))
    assert told_while(optimizer.refresh)[1] == []  # the same tensors


def test_no_doubt_where_every_shape_is_its_own(client, name):
    def small(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))

    adamd.torch.Adam(small(0).parameters(), client=client, session=name)
    assert told_while(lambda: adamd.torch.Adam(small(1).parameters(), client=client, session=name))[1] == []
    with pytest.raises(errors.WrongLayout, match="shape"):
        adamd.torch.Adam(list(small(0).parameters())[::-1], client=client, session=name)


def test_layers_that_began_alike_are_no_sign(client, name):
    """As TransformerEncoder makes them: copies of one; which is which nobody can tell from a fresh model."""
    torch.manual_seed(0)
    made = [torch.nn.Linear(16, 16)]
    made += [copy.deepcopy(made[0]) for _ in range(2)]
    model = torch.nn.Sequential(*made)
    fresh = copy.deepcopy(model)
    optimizer = adamd.torch.Adam(model.parameters(), client=client, session=name)
    model[2].requires_grad_(False)
    for number in range(3):
        stepped(model, optimizer, number)
    _, told = told_while(lambda: adamd.torch.Adam(fresh.parameters(), client=client, session=name))
    assert len(told) == 1 and torch.equal(flat(fresh), flat(model))


def test_names_are_the_order(client, name):
    model, other = layers(), layers(seed=5)
    optimizer = adamd.torch.Adam(model.named_parameters(), client=client, session=name)
    stepped(model, optimizer, 0)
    given = list(other.named_parameters())[::-1]
    _, told = told_while(lambda: adamd.torch.Adam(given, client=client, session=name))
    assert told == [] and torch.equal(flat(other), flat(model))


def test_names_on_one_side_only_are_said(client, run, name):
    with pytest.raises(errors.WrongLayout, match=r"made without names, and is resumed with model.parameters\(\)"):
        adamd.torch.Adam(layers().named_parameters(), client=client, session=name)
    adamd.torch.Adam(layers().named_parameters(), client=client, session=f"{name}-n")
    with pytest.raises(errors.WrongLayout, match=r"made with names, and is resumed with model.named_parameters\(\)"):
        adamd.torch.Adam(layers().parameters(), client=client, session=f"{name}-n")


# -- schedulers

SCHEDULERS = {
    "StepLR": lambda o, e: torchs.StepLR(o, 4, 0.5, last_epoch=e),
    "StepLR on its plateau": lambda o, e: torchs.StepLR(o, 5, 0.5, last_epoch=e),
    "ExponentialLR": lambda o, e: torchs.ExponentialLR(o, 0.9, last_epoch=e),
    "LambdaLR": lambda o, e: torchs.LambdaLR(o, lambda n: 1 / (1 + n), last_epoch=e),
    "CosineAnnealingLR": lambda o, e: torchs.CosineAnnealingLR(o, 20, last_epoch=e),
    "LinearLR": lambda o, e: torchs.LinearLR(o, 0.1, total_iters=20, last_epoch=e),
    "OneCycleLR": lambda o, e: torchs.OneCycleLR(o, 0.1, total_steps=30, last_epoch=e),
    "CyclicLR": lambda o, e: torchs.CyclicLR(o, 0.01, 0.1, step_size_up=3, last_epoch=e),
    "CosineAnnealingWarmRestarts": lambda o, e: torchs.CosineAnnealingWarmRestarts(o, 3, last_epoch=e),
    "MultiplicativeLR": lambda o, e: torchs.MultiplicativeLR(o, lambda n: 0.9, last_epoch=e),
}
BREAK, END = 8, 16


def scheduled(client, scheduler, kind, name, groups):
    """One run under a scheduler, undisturbed; and another up to its break, of which the scheduler's state is returned."""
    runs = []
    for session, end in ((None, END), (name, BREAK)):
        model = layers(width=4, count=2)
        optimizer = getattr(adamd.torch, kind)(groups(model), lr=0.1, client=client, session=session)
        made = SCHEDULERS[scheduler](optimizer, -1)
        for number in range(end):
            stepped(model, optimizer, number)
            made.step()
        runs.append((model, made.state_dict()))
    return runs[0][0], runs[1][1]


GROUPS = {
    "one group": lambda m: m.named_parameters(),
    "two groups": lambda m: [
        {"params": [(f"a{n}", p) for n, p in m[0].named_parameters()], "lr": 0.3},
        {"params": [(f"b{n}", p) for n, p in m[1].named_parameters()]},
    ],
}


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("way", ["last_epoch", "load_state_dict"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_schedule_goes_on(client, name, scheduler, way, groups):
    """The same script in another process, with torch's own two idioms: bit for bit the run without a break, silently."""
    kind = "SGD" if scheduler == "StepLR" else "Adam"
    undisturbed, saved = scheduled(client, scheduler, kind, name, GROUPS[groups])
    model = layers(seed=9, width=4, count=2)

    def resumed():
        optimizer = getattr(adamd.torch, kind)(GROUPS[groups](model), lr=0.1, client=client, session=name)
        made = SCHEDULERS[scheduler](optimizer, optimizer.session.step_number - 1 if way == "last_epoch" else -1)
        if way == "load_state_dict":
            made.load_state_dict(copy.deepcopy(saved))
        assert [float(base) for base in made.base_lrs] == [float(base) for base in saved["base_lrs"]]
        for number in range(BREAK, END):
            stepped(model, optimizer, number)
            made.step()

    _, told = told_while(resumed)
    assert told == []
    assert torch.equal(flat(model), flat(undisturbed))


def resumed_as_is(client, name, lr=0.1):
    return adamd.torch.Adam(layers(seed=9, width=4, count=2).named_parameters(), lr=lr, client=client, session=name)


@pytest.mark.parametrize("scheduler", ["StepLR on its plateau", "ExponentialLR", "LambdaLR"])
def test_a_scheduler_that_begins_anew_is_told(client, name, scheduler):
    scheduled(client, scheduler, "Adam", name, GROUPS["one group"])
    optimizer, told = told_while(lambda: resumed_as_is(client, name))
    assert told == [] and optimizer.param_groups[0]["initial_lr"] == 0.1 and optimizer.param_groups[0]["lr"] < 0.1
    kept = SCHEDULERS[scheduler](optimizer, -1)
    assert kept.base_lrs == [0.1]
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    _, (said,) = told_while(optimizer.step)
    assert "a torch scheduler begins anew on it" in said and f"last_epoch={BREAK - 1}" in said and "from 0.1 to" in said
    assert told_while(optimizer.step)[1] == []


def test_a_schedule_that_is_missing_is_told(client, name):
    scheduled(client, "ExponentialLR", "Adam", name, GROUPS["one group"])
    optimizer = resumed_as_is(client, name)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    _, (said,) = told_while(optimizer.step)
    assert "no torch scheduler is here" in said and "where it stays now" in said and "last_epoch=" in said
    optimizer = resumed_as_is(client, name)
    optimizer.param_groups[0]["lr"] = 0.25  # somebody knows what they do
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    assert told_while(optimizer.step)[1] == []


def test_another_lr_in_the_script_is_told_with_what_to_pass(client, name):
    scheduled(client, "ExponentialLR", "Adam", name, GROUPS["one group"])
    optimizer, (said,) = told_while(lambda: resumed_as_is(client, name, lr=0.2))
    assert "lr is 0.0" in said and "and 0.2 here" in said
    assert "scheduler" in said and f"last_epoch={BREAK - 1}" in said
    assert optimizer.param_groups[0]["initial_lr"] == 0.1


def test_a_plateau_scheduler_is_no_beginning(client, name):
    model = layers(width=4, count=2)
    optimizer = adamd.torch.Adam(model.named_parameters(), lr=0.1, client=client, session=name)
    for number in range(3):
        stepped(model, optimizer, number)
    again, told = told_while(lambda: resumed_as_is(client, name))
    kept = torchs.ReduceLROnPlateau(again)
    for p in again.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    assert told == told_while(again.step)[1] == [] and kept.optimizer is again


# -- from the session alone, in the middle of an epoch

LOOP = """
import sys, torch, adamd.torch
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[2]))
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
optimizer = adamd.torch.AdamW(
    model.named_parameters(), lr=0.05, session=sys.argv[1],
    schedule={"name": "cosine", "total_steps": 24, "warmup_steps": 4}, clip_norm=0.5,
)
for step in range(optimizer.session.step_number, int(sys.argv[3])):
    epoch, batch = divmod(step, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    optimizer.zero_grad()
    model(x[order[8 * batch : 8 * batch + 8]]).pow(2).mean().backward()
    optimizer.step()
torch.save([p.detach() for p in model.parameters()], sys.argv[4])
"""


def test_a_run_goes_on_from_its_session_alone(server, name, tmp_path):
    """Other processes, other first weights, a break in the middle of an epoch: the same bits."""

    def run(session, seed, until):
        path = tmp_path / f"{session}-{until}.pt"
        environment = {**os.environ, "ADAMD_URL": server.url, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-W", "error", "-c", LOOP, session, str(seed), str(until), str(path)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        return torch.load(path)

    whole = run(f"{name}-whole", 0, 24)
    run(f"{name}-parts", 0, 11)
    run(f"{name}-parts", 1, 13)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(f"{name}-parts", 2, 24), strict=True))


def test_scheduled_lr_is_what_the_next_step_takes(client):
    model = layers(width=4, count=2)
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[1].parameters()}]
    schedule = {"name": "linear", "total_steps": 10, "start_factor": 1, "end_factor": 0}
    optimizer = adamd.torch.SGD(groups, lr=0.1, client=client, schedule=schedule)
    assert optimizer.scheduled_lr() == [0.3, 0.1]
    stepped(model, optimizer, 0)
    assert optimizer.scheduled_lr() == pytest.approx([0.27, 0.09])
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.1]
