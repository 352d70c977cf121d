"""Every option and habit of torch's optimizers, each beside torch's own."""

import pytest
import torch
from digits import batches, bound, distance, flat, loss_of, network, train, train_both, twins

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch

OPTIONS = {
    "adam": {},
    "coupled decay": {"weight_decay": 0.05},
    "amsgrad": {"amsgrad": True, "betas": (0.8, 0.9)},
    "maximize": {"maximize": True, "lr": 1e-4},
    "everything": {
        "amsgrad": True,
        "weight_decay": 0.01,
        "maximize": True,
        "eps": 1e-4,
        "lr": 1e-4,
        "betas": (0.5, 0.7),
    },
    "betas 0": {"betas": (0.0, 0.0), "lr": 1e-5},  # not with eps 0: torch makes NaN of 0/0, adamd 0
}


def both(kind, given, options, client):
    """adamd's optimizer over the first parameters and torch's over the second."""
    return getattr(adamd.torch, kind)(given[0], **options, client=client), getattr(torch.optim, kind)(
        given[1], **options
    )


def same_groups(remote, local):
    return remote.state_dict()["param_groups"] == local.state_dict()["param_groups"]


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(client, kind, options):
    ours, theirs = twins(torch.float64)
    remote, local = both(kind, (ours.parameters(), theirs.parameters()), OPTIONS[options], client)
    assert isinstance(remote, torch.optim.Optimizer)
    train_both([(ours, remote), (theirs, local)], batches(20))
    assert distance(ours, theirs) <= bound(ours)
    mine, its = remote.state_dict(), local.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    assert mine["state"].keys() == its["state"].keys()
    for index, state in its["state"].items():
        assert mine["state"][index].keys() == state.keys()
        for key, value in state.items():
            assert mine["state"][index][key].dtype == value.dtype
            torch.testing.assert_close(mine["state"][index][key], value, rtol=1e-9, atol=1e-14)


def test_defaults_are_torchs(client):
    for kind in ("Adam", "AdamW"):
        remote, local = both(
            kind, ([torch.nn.Parameter(torch.ones(2))], [torch.nn.Parameter(torch.ones(2))]), {}, client
        )
        assert remote.defaults == local.defaults
        assert same_groups(remote, local)


def test_param_groups_with_settings_of_their_own(client):
    def groups(model):
        return [
            {"params": [model[0].bias, model[3].bias], "lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6},
            {"params": []},
            {"params": [model[0].weight, model[3].weight, model[7].weight, model[7].bias], "weight_decay": 0.1},
        ]

    ours, theirs = twins(torch.float64)
    remote, local = both("AdamW", (groups(ours), groups(theirs)), {"lr": 0.002}, client)
    given = list(batches(20))
    train_both([(ours, remote), (theirs, local)], given[:10])
    for optimizer in (remote, local):
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.param_groups[2]["maximize"] = True
    train_both([(ours, remote), (theirs, local)], given[10:])
    assert distance(ours, theirs) <= bound(ours)
    assert same_groups(remote, local)
    # Only the smaller group travels with its names, and only with what differs.
    over = {"lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.01, "maximize": False}
    assert remote.session.info()["optimizer"]["groups"] == [{"tensors": ["0.0", "0.1"], **over}]


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 5, gamma=0.5),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=31),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=0.5),
}


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor lr"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(client, scheduler, tensor):
    ours, theirs = twins(torch.float64)
    sides = []
    for model, make in ((ours, adamd.torch.Adam), (theirs, torch.optim.Adam)):
        options = {"client": client} if model is ours else {}
        # A float32 tensor would make torch round lr / (1 - beta1^t) to float32.
        lr = torch.tensor(0.004, dtype=torch.float64) if tensor else 0.004
        optimizer = make(model.parameters(), lr=lr, **options)
        sides.append((model, optimizer, SCHEDULERS[scheduler](optimizer)))
    for batch in batches(30):
        for model, optimizer, schedule in sides:
            train(model, optimizer, [batch])
            schedule.step(*([loss_of(model, batch).item()] if scheduler == "ReduceLROnPlateau" else []))
    (_, remote, _), (_, local, _) = sides
    assert float(remote.param_groups[0]["lr"]) == float(local.param_groups[0]["lr"]) != 0.004
    assert remote.param_groups[0]["betas"] == local.param_groups[0]["betas"]
    assert distance(ours, theirs) <= bound(ours)


def test_settings_travel_with_the_step_and_only_changed_ones(client):
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    train(model, optimizer, batches(3))
    assert optimizer.session.info()["settings_revision"] == 0
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.session.info()["optimizer"]["lr"] == 0.001
    train(model, optimizer, batches(1))
    told = optimizer.session.info()
    assert (told["optimizer"]["lr"], told["settings_revision"], told["step"]) == (0.5, 1, 4)
    train(model, optimizer, batches(2))
    assert optimizer.session.info()["settings_revision"] == 1


def test_a_refused_setting_counts_no_step_and_leaves_the_model(client):
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    train(model, optimizer, batches(1))
    before = flat(model).clone()
    for wrong in (-1.0, float("nan")):
        optimizer.param_groups[0]["lr"] = wrong
        with pytest.raises((errors.InvalidSettings, errors.InvalidRequest), match="lr"):
            optimizer.step()
        assert torch.equal(flat(model), before)
    optimizer.param_groups[0]["lr"] = 0.001
    optimizer.step()
    assert optimizer.session.step_number == 2


def test_closures(client):
    ours, theirs = twins(torch.float64)
    remote, local = both("Adam", (ours.parameters(), theirs.parameters()), {}, client)
    for batch in batches(5):
        losses = []
        for model, optimizer in ((ours, remote), (theirs, local)):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            with torch.no_grad():  # a closure gets its gradients all the same
                losses.append(optimizer.step(closure))
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    assert distance(ours, theirs) <= bound(ours)
    assert remote.step(lambda: 1.5) == 1.5
    assert remote.step(lambda: None) is None


def test_a_step_without_gradients_is_no_step(client):
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.step(lambda: 7) == 7
    assert optimizer.session.step_number == 0
    assert {float(entry["step"]) for entry in optimizer.state_dict()["state"].values()} == {0.0}
    torch.optim.Adam(network().parameters()).load_state_dict(optimizer.state_dict())  # as good as none


def test_hooks(client):
    model, seen = network(), []
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    optimizer.register_step_pre_hook(lambda o, a, k: seen.append(("before", o.session.step_number)))
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(("after", o.session.step_number)))
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("asked"))
    optimizer.register_state_dict_post_hook(lambda o, found: found | {"mine": len(o.state)})
    optimizer.register_load_state_dict_pre_hook(lambda o, found: seen.append(found.get("mine")))
    train(model, optimizer, batches(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [("before", 0), ("after", 1), "asked", 6]


def test_layers_that_are_added_later(client, name):
    sides = []
    for make, options in ((adamd.torch.Adam, {"client": client, "session": name}), (torch.optim.Adam, {})):
        model = network(torch.float64)
        sides.append((model, make(model[3:].parameters(), lr=0.002, **options)))
    given = list(batches(30))
    train_both(sides, given[:10])
    first = sides[0][1].session.id
    for model, optimizer in sides:
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.01})
    assert sides[0][1].state_dict()["state"].keys() == sides[1][1].state_dict()["state"].keys()
    train_both(sides, given[10:])
    (ours, remote), (theirs, local) = sides
    assert distance(ours, theirs) <= bound(ours)
    assert same_groups(remote, local)
    state = remote.state_dict()["state"]
    assert [int(state[index]["step"]) for index in range(6)] == [30, 30, 30, 30, 20, 20]
    assert (remote.session.name, remote.session.step_number) == (name, 30)
    assert remote.session.id != first
    with pytest.raises(errors.SessionDeleted):
        client.session(first)


def test_a_group_that_does_not_fit_is_not_added(client):
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    train(model, optimizer, batches(1))
    for wrong in ({"params": [torch.nn.Parameter(torch.ones(2).double())]}, {"params": list(model.parameters())}):
        with pytest.raises((errors.WrongDtype, ValueError)):
            optimizer.add_param_group(wrong)
    train(model, optimizer, batches(1))
    assert (len(optimizer.param_groups), optimizer.session.step_number) == (1, 2)


def test_named_parameters_name_the_layout(client):
    ours, theirs = twins(torch.float64)
    remote, local = both("Adam", (ours.named_parameters(), theirs.named_parameters()), {}, client)
    assert remote.session.layout.names == ("0.bias", "0.weight", "3.bias", "3.weight", "7.bias", "7.weight")
    train_both([(ours, remote), (theirs, local)], batches(5))
    assert distance(ours, theirs) <= bound(ours)
    assert same_groups(remote, local)
    assert remote.state_dict()["param_groups"][0]["param_names"][:2] == ["0.weight", "0.bias"]


def test_names_without_names_keep_the_order(client):
    given = [torch.nn.Parameter(torch.ones(1)) for _ in range(11)]
    optimizer = adamd.torch.Adam([{"params": given}, {"params": [torch.nn.Parameter(torch.ones(2))]}], client=client)
    assert optimizer.session.layout.names == (*(f"0.{index:02}" for index in range(11)), "1.0")


def odd_parameters():
    """0-dim, empty, transposed, channels-last, two views of one tensor that lie apart, interleaved columns."""
    torch.manual_seed(5)
    base, table = torch.randn(10, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    tensors = [
        torch.randn((), dtype=torch.float64),
        torch.empty(3, 0, dtype=torch.float64),
        torch.randn(3, 5, dtype=torch.float64).T,
        torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last),
        base[:4],
        base[4:],
        table[:, ::2],
        table[:, 1::2],
    ]
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def test_odd_shapes_and_strides(client):
    ours, theirs = odd_parameters(), odd_parameters()
    strides = [p.stride() for p in ours]
    remote, local = both("Adam", (ours, theirs), {"amsgrad": True}, client)
    for _ in range(5):
        for given, optimizer in ((ours, remote), (theirs, local)):
            optimizer.zero_grad()
            sum((p**3 - p).sum() for p in given).backward()
            optimizer.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
    assert [p.stride() for p in ours] == strides
    for index, state in local.state_dict()["state"].items():
        mine = remote.state_dict()["state"][index]["max_exp_avg_sq"]
        torch.testing.assert_close(mine, state["max_exp_avg_sq"], rtol=1e-12, atol=1e-12)
        assert mine.stride() == state["max_exp_avg_sq"].stride()


@pytest.mark.parametrize("rows", [2, 50_000], ids=["small", "large"])
def test_expanded_transposed_and_negated_gradients(client, rows):
    ours, theirs = (torch.nn.Parameter(torch.zeros(rows, 3)) for _ in range(2))
    remote, local = both("Adam", ([ours], [theirs]), {"lr": 1.0}, client)
    values = torch.arange(3.0 * rows).reshape(3, rows)
    for gradient in (torch.ones(1).expand(rows, 3), values.T, torch.complex(values.T, values.T).conj().imag):
        ours.grad = theirs.grad = gradient
        remote.step()
        local.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_tensor_without_a_gradient_is_not_written_to(client):
    """A graph that was kept still holds it."""
    frozen, trained = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = adamd.torch.Adam([frozen, trained], client=client)
    trained.grad = torch.ones(3)
    version = frozen._version
    optimizer.step()
    assert frozen._version == version


def test_nothing_but_an_empty_parameter(client):
    parameter = torch.nn.Parameter(torch.empty(0))
    optimizer = adamd.torch.Adam([parameter], client=client)
    parameter.grad = torch.empty(0)
    optimizer.step()
    assert (optimizer.session.step_number, int(optimizer.state_dict()["state"][0]["step"])) == (1, 1)


def test_large_gradients_travel_from_their_own_memory_and_small_ones_gathered(client):
    ours = [torch.nn.Parameter(torch.ones(size)) for size in (10, 200_000, 20, 70_000, 5)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    remote, local = both("Adam", (ours, theirs), {}, client)
    for step in range(4):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine) if step != 2 or mine.numel() > 15 else None
            its.grad = None if mine.grad is None else mine.grad.clone()
        remote.step()
        local.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_a_grad_scaler(client):
    model = network()
    optimizer = adamd.torch.Adam(model.parameters(), client=client)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for batch in batches(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    model[0].weight.grad[0] = float("inf")
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.session.step_number == 3
    assert scaler.get_scale() == 2.0**9
