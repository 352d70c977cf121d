"""Signatures, momenta that a scheduler moves, and words that name the right optimizer."""

import ctypes
import inspect
import threading

import pytest
import torch
from digits import batches, bound, distance, flat, loss_of, network, train, train_both, twins
from torch.optim import lr_scheduler as torchs

import adamd
import adamd.torch
from adamd import errors
from sdk.peers import Relay

pytestmark = pytest.mark.torch
KINDS = sorted(set(adamd.torch.__all__) - {"Around"})


def parameters(of):
    return {name: one for name, one in inspect.signature(of.__init__).parameters.items() if name != "self"}


@pytest.mark.parametrize("kind", KINDS)
def test_constructors_take_torchs_whole_signature(client, kind):
    ours, theirs = parameters(getattr(adamd.torch, kind)), parameters(getattr(torch.optim, kind))
    for name, one in theirs.items():
        assert name in ours and (ours[name].kind, ours[name].default) == (one.kind, one.default), name
    by_place = [name for name, one in theirs.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(by_place)] == by_place
    given = {name: one.default for name, one in theirs.items() if name != "params"}
    positional = [given[name] for name in by_place[1:]]
    rest = {name: value for name, value in given.items() if name not in by_place}
    made = getattr(adamd.torch, kind)(network().parameters(), *positional, **rest, client=client)
    assert (
        made.state_dict()["param_groups"]
        == getattr(torch.optim, kind)(network().parameters()).state_dict()["param_groups"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_chooses_an_implementation_travels_only(client, kind):
    chosen = {"foreach": False, "capturable": True, "fused": None}
    chosen = {name: value for name, value in chosen.items() if name in parameters(getattr(torch.optim, kind))}
    ours, theirs = twins()
    remote = getattr(adamd.torch, kind)(ours.parameters(), **chosen, client=client)
    plain = getattr(adamd.torch, kind)(theirs.parameters(), client=client)
    train_both([(ours, remote), (theirs, plain)], batches(2))
    assert torch.equal(flat(ours), flat(theirs))
    assert {name: remote.param_groups[0][name] for name in chosen} == chosen
    with pytest.raises(errors.InvalidRequest, match="cannot be differentiated through"):
        getattr(adamd.torch, kind)(network().parameters(), differentiable=True, client=client)


def test_decoupled_weight_decay_makes_adamw(client):
    ours, theirs = twins(torch.float64)
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.01}
    remote = adamd.torch.Adam(ours.parameters(), **options, client=client)
    local = torch.optim.Adam(theirs.parameters(), **options)
    assert remote.session.settings["name"] == "adamw"
    train_both([(ours, remote), (theirs, local)], batches(5))
    assert distance(ours, theirs) <= bound(ours)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("Adam", {"lr": -1.0}, "lr is -1.0: Invalid learning rate"),
        ("Adam", {"lr": float("nan")}, "lr is nan"),
        ("SGD", {"lr": float("nan")}, "lr"),
        ("Adam", {"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\): Invalid beta parameter at index 1"),
        ("RMSprop", {"alpha": -1}, "alpha is -1: Invalid alpha"),
        ("SGD", {"momentum": -0.5}, "momentum is -0.5"),
        ("NAdam", {"momentum_decay": -0.2}, "momentum_decay is -0.2"),
        ("Adam", {"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
        ("Adam", {"lr": "0.1"}, "lr is '0.1', a text; wanted a number"),
        ("Adam", {"eps": None}, "eps is None; wanted a number"),
        ("SGD", {"nesterov": True}, "Nesterov momentum requires"),
    ],
)
def test_the_one_setting_that_is_wrong_is_blamed(client, kind, options, said):
    with pytest.raises((errors.InvalidSettings, errors.InvalidRequest), match=said):
        getattr(adamd.torch, kind)(network().parameters(), **options, client=client)


def test_an_lr_that_becomes_two(client):
    model = network()
    optimizer = adamd.torch.SGD(model.parameters(), client=client)
    train(model, optimizer, batches(1))
    before = flat(model).clone()
    optimizer.param_groups[0]["lr"] = torch.tensor([0.1, 0.2])
    with pytest.raises(errors.InvalidSettings, match="lr is a tensor of 2 elements; wanted one number"):
        optimizer.step()
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(("kind", "said"), [("SGD", "torch.optim.SGD takes it"), ("RMSprop", "; RMSprop at a server")])
def test_a_sparse_gradient_names_its_optimizer(client, kind, said):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = getattr(adamd.torch, kind)(embedding.parameters(), client=client)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(errors.InvalidRequest, match=said) as caught:
        optimizer.step()
    assert "Adam" not in str(caught.value)


# -- momenta

MOVING = {
    "SGD": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "SGD dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "SGD nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD without at first": ("SGD", {"lr": 0.1}),
    "SGD dampened, without at first": ("SGD", {"lr": 0.1, "dampening": 0.3}),
    "RMSprop": ("RMSprop", {"lr": 0.01, "momentum": 0.9}),
    "RMSprop centered": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
}


@pytest.mark.parametrize("case", MOVING)
def test_a_momentum_that_is_brought_to_0_and_back(client, name, case):
    kind, options = MOVING[case]
    ours, theirs = twins(torch.float64)
    remote = getattr(adamd.torch, kind)(ours.parameters(), **options, client=client, session=name)
    local = getattr(torch.optim, kind)(theirs.parameters(), **options)
    for momentum, batch in zip((None, 0.5, 0.0, 0.0, 0.8, 0.0, 0.9), batches(7), strict=True):
        for optimizer in (remote, local):
            if momentum is not None:
                optimizer.param_groups[0]["momentum"] = momentum
        train_both([(ours, remote), (theirs, local)], [batch])
        mine, its = remote.state_dict()["state"], local.state_dict()["state"]
        for index, entry in its.items():
            if entry.get("momentum_buffer") is not None:
                torch.testing.assert_close(mine[index]["momentum_buffer"], entry["momentum_buffer"], rtol=1e-9, atol=0)
    assert distance(ours, theirs) <= bound(ours)
    assert client.session(name).step_number == remote.session.step_number == 7


def test_a_cyclic_momentum_through_0(client):
    ours, theirs = twins(torch.float64)
    remote = adamd.torch.SGD(ours.parameters(), lr=0.01, client=client)
    local = torch.optim.SGD(theirs.parameters(), lr=0.01)
    made = [
        torchs.CyclicLR(one, 0.01, 0.1, step_size_up=3, base_momentum=0.0, max_momentum=0.8) for one in (remote, local)
    ]
    for batch in batches(8):
        train_both([(ours, remote), (theirs, local)], [batch])
        [one.step() for one in made]
    assert remote.param_groups[0]["momentum"] == local.param_groups[0]["momentum"]
    assert distance(ours, theirs) <= bound(ours)
    assert remote.session.step_number == 8


def test_a_velocity_travels_while_the_momentum_is_0(client):
    """To a local optimizer and back, and to a session by checkpoints."""
    ours, theirs = twins(torch.float64)
    options = {"lr": 0.1, "momentum": 0.9}
    remote, local = (
        adamd.torch.SGD(ours.parameters(), **options, client=client),
        torch.optim.SGD(theirs.parameters(), **options),
    )
    given = list(batches(6))
    train_both([(ours, remote), (theirs, local)], given[:2])
    for optimizer in (remote, local):
        optimizer.param_groups[0]["momentum"] = 0.0
    train_both([(ours, remote), (theirs, local)], given[2:3])
    back = adamd.torch.SGD(ours.parameters(), lr=1.0, client=client)
    back.load_state_dict(remote.state_dict())
    moved = adamd.checkpoints.from_torch(client, local.state_dict(), theirs.named_parameters())
    assert moved.settings["momentum_buffer"] is True
    for optimizer in (back, local):
        optimizer.param_groups[0]["momentum"] = 0.9
    train_both([(ours, back), (theirs, local)], given[3:])
    assert distance(ours, theirs) <= bound(ours)


def test_groups_with_and_without_momentum(client):
    ours, theirs = twins(torch.float64)

    def groups(model):
        return [{"params": model[:3].parameters(), "momentum": 0.9}, {"params": model[3:].parameters()}]

    remote = adamd.torch.SGD(groups(ours), lr=0.1, client=client)
    local = torch.optim.SGD(groups(theirs), lr=0.1)
    train_both([(ours, remote), (theirs, local)], batches(4))
    assert distance(ours, theirs) <= bound(ours)


# -- writes that leave no trace in torch


def test_the_loop_of_a_wgan_is_told_and_the_way_that_works_works(client):
    ours, theirs = twins()
    with torch.no_grad():
        [p.clamp_(-0.05, 0.05) for model in (ours, theirs) for p in model.parameters()]
    optimizer = adamd.torch.RMSprop(ours.parameters(), lr=0.01, client=client)
    train(ours, optimizer, batches(1))
    for p in ours.parameters():
        p.data.clamp_(-0.05, 0.05)
    before = flat(ours).clone()
    with pytest.raises(errors.InvalidRequest, match=r"changed since step 1 .*lower=… and upper=…"):
        train(ours, optimizer, batches(1))
    assert torch.equal(flat(ours), before)
    bounded = adamd.torch.RMSprop(theirs.parameters(), lr=0.01, client=client, lower=-0.05, upper=0.05)
    train(theirs, bounded, batches(3))
    assert float(flat(theirs).abs().max()) == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(3,), (), (300, 400), (2, 60_000), (200_000,)], ids=str)
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_a_write_through_data_is_seen(client, shape, layout):
    value = torch.randn(shape)
    value = value.mT if layout == "transposed" and value.ndim == 2 else value
    p = torch.nn.Parameter(value.clone(memory_format=torch.preserve_format))
    optimizer = adamd.torch.SGD([p], client=client)
    for write in (
        lambda: p.data.mul_(0.5),
        lambda: p.data.clamp_(-0.01, 0.01),
        lambda: p.data.view(-1)[: p.numel() // 50 + 1].zero_(),
    ):
        p.grad = torch.ones_like(p)
        optimizer.step()
        if layout == "transposed" and not p.is_contiguous():
            p.data.t().view(-1)[: p.numel() // 2].zero_()
        else:
            write()
        with pytest.raises(errors.InvalidRequest, match="changed since step"):
            optimizer.step()
        optimizer.refresh()
    optimizer.step()
    assert optimizer.session.step_number == 4


def test_small_writes_to_a_large_parameter_are_seen_sooner_or_later(client):
    p = torch.nn.Parameter(torch.randn(1_000_000))
    optimizer = adamd.torch.SGD([p], client=client)
    p.grad = torch.ones_like(p)
    with pytest.raises(errors.InvalidRequest, match="changed since step"):
        for _ in range(20):
            optimizer.step()
            p.data[500_000:500_100].zero_()  # a row, as of a padding index


# -- Ctrl-C


def interrupted(relay, optimizer, at):
    """Call step(), and press Ctrl-C when the server has taken it and no answer has come."""
    relay.down.clear()
    caught = []

    def work():
        try:
            optimizer.step()
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    at()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
    relay.drop()
    thread.join(20)
    assert caught
    relay.empty()
    relay.hold(False)


@pytest.mark.parametrize("how", ["zero_grad", "refresh", "the same again"])
def test_ctrl_c_in_a_step(server, client, how):
    given = list(batches(4))
    ours, theirs = twins()
    with Relay(server.port) as relay, adamd.connect(relay.url, timeout=adamd.Timeout(total=30)) as through:
        optimizer = adamd.torch.Adam(ours.parameters(), client=through)
        alone = adamd.torch.Adam(theirs.parameters(), client=client)
        train_both([(ours, optimizer), (theirs, alone)], given[:1])
        watched = client.session(optimizer.session.id)
        before = flat(ours).clone()
        optimizer.zero_grad()
        loss_of(ours, given[1]).backward()

        def arrived():
            while watched.info()["step"] < 2:
                pass

        interrupted(relay, optimizer, arrived)
        assert torch.equal(flat(ours), before) and optimizer.session.step_number == 1
        train(theirs, alone, given[1:2])
        if how == "refresh":  # another gradient, of the parameters before it
            ours.zero_grad()
            loss_of(ours, given[2]).backward()
            for _ in range(2):
                with pytest.raises(errors.StepConflict, match=r"optimizer\.refresh\(\)"):
                    optimizer.step()
            optimizer.refresh()
        elif how == "the same again":
            optimizer.step()
        else:
            optimizer.zero_grad()
        assert torch.equal(flat(ours), flat(theirs)) and optimizer.session.step_number == 2
        train_both([(ours, optimizer), (theirs, alone)], given[2:])
        assert torch.equal(flat(ours), flat(theirs)) and optimizer.session.step_number == 4
