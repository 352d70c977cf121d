"""bfloat16 and float16 models: a float32 master at the server, its rounded value in the model."""

import pytest
import torch
from digits import batches, correct, flat, loss_of, network, train

import adamd
import adamd.torch
from adamd import errors

pytestmark = pytest.mark.torch
KINDS = ["bfloat16", "float16", "mixed"]


def converted(model, kind):
    """The model in a narrow dtype; mixed keeps its last layer in float32."""
    narrow = model.to(torch.float16 if kind == "float16" else torch.bfloat16)
    if kind == "mixed":
        narrow[7].float()
    return narrow


def tensors(kind, seed=0):
    """Parameters small and large, and the gradients of some steps."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = {"bfloat16": [torch.bfloat16], "float16": [torch.float16], "mixed": [torch.bfloat16, torch.float32]}[kind]
    shapes = [(3, 4), (200_000,), (), (7,), (300, 700)]
    made = [
        torch.randn(shape, generator=generator).to(dtypes[index % len(dtypes)]) for index, shape in enumerate(shapes)
    ]
    steps = [[torch.randn(t.shape, generator=generator).to(t.dtype) for t in made] for _ in range(12)]
    return [torch.nn.Parameter(t) for t in made], steps


def step(optimizer, parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
    optimizer.step()


def same(narrow, masters):
    return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(narrow, masters, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ["Adam", "AdamW"])
def test_the_masters_are_those_of_a_float32_model_bit_for_bit(client, kind, make):
    ours, steps = tensors(kind)
    twins = [torch.nn.Parameter(p.detach().clone().float()) for p in ours]
    local = [torch.nn.Parameter(p.detach().clone().float()) for p in ours]
    optimizer = getattr(adamd.torch, make)(ours, client=client, weight_decay=0.1, amsgrad=True)
    wide = getattr(adamd.torch, make)(twins, client=client, weight_decay=0.1, amsgrad=True)
    reference = getattr(torch.optim, make)(local, weight_decay=0.1, amsgrad=True)
    for index, gradients in enumerate(steps):
        given = [None if index == 5 and number == 2 else g for number, g in enumerate(gradients)]
        for one, parameters in ((optimizer, ours), (wide, twins), (reference, local)):
            step(one, parameters, given)
    assert optimizer.session.dtype == "float32"
    masters = optimizer.session.parameters()
    assert all(torch.equal(torch.from_numpy(masters[f"0.{index}"]), twin.detach()) for index, twin in enumerate(twins))
    assert same(ours, twins)
    for twin, its in zip(twins, local, strict=True):
        # By norm: where gradient and decay cancel, a rounding decides a single element's direction.
        assert (twin - its).norm() <= 1e-5 * its.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_local_masters(client, kind):
    """Beside the loop that people write by hand: float32 copies, stepped by torch, rounded into the model."""
    ours, theirs = (converted(network(), kind) for _ in range(2))
    optimizer = adamd.torch.Adam(ours.parameters(), client=client)
    masters = [torch.nn.Parameter(p.detach().clone().float()) for p in theirs.parameters()]
    local = torch.optim.Adam(masters)
    for batch in batches(60):
        for model in (ours, theirs):
            model.zero_grad()
            with torch.autocast("cpu", enabled=kind == "mixed", dtype=torch.bfloat16):
                loss = loss_of(model, batch)
            loss.backward()
        optimizer.step()
        for master, p in zip(masters, theirs.parameters(), strict=True):
            master.grad = p.grad.float()
        local.step()
        with torch.no_grad():
            for master, p in zip(masters, theirs.parameters(), strict=True):
                p.copy_(master)
    apart = (flat(ours).double() - flat(theirs).double()).norm() / flat(theirs).double().norm()
    assert apart <= 2e-2
    if kind != "mixed":
        assert abs(correct(ours) - correct(theirs)) <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_has_the_masters_and_goes_on_bit_for_bit(client, kind, tmp_path):
    ours, steps = tensors(kind)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, undisturbed = (adamd.torch.Adam(given, client=client) for given in (ours, twins))
    for gradients in steps[:6]:
        step(optimizer, ours, gradients)
        step(undisturbed, twins, gradients)
    saved = optimizer.state_dict()
    for index, p in enumerate(ours):
        state = saved["state"][index]
        assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {torch.float32}
        assert ("master_param" in state) == (p.dtype != torch.float32)
        if "master_param" in state:
            assert torch.equal(state["master_param"].to(p.dtype), p.detach())
    torch.save(saved, tmp_path / "state.pt")

    again = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    resumed = adamd.torch.Adam(again, client=client)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for gradients in steps[6:]:
        step(resumed, again, gradients)
        step(undisturbed, twins, gradients)
    assert resumed.session.step_number == 12
    one, two = (o.session.parameters() for o in (resumed, undisturbed))
    assert all((one[name] == two[name]).all() for name in one)
    assert same(again, twins)

    # torch's own Adam takes it as well, and gives it back with its narrower moments.
    local = torch.optim.Adam(again)
    local.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    step(local, again, steps[0])
    resumed.load_state_dict(local.state_dict())
    step(resumed, again, steps[1])
    assert resumed.session.step_number == 8


def test_a_master_yields_to_a_model_that_was_changed(client):
    ours, steps = tensors("bfloat16")
    optimizer = adamd.torch.Adam(ours, client=client)
    step(optimizer, ours, steps[0])
    with torch.no_grad():
        ours[0].mul_(2)
    with pytest.raises(errors.InvalidRequest, match="changed since step 1"):
        step(optimizer, ours, steps[1])
    before = optimizer.session.parameters()
    optimizer.load_state_dict(optimizer.state_dict())
    after = optimizer.session.parameters()
    assert torch.equal(torch.from_numpy(after["0.0"]), ours[0].detach().float())
    assert (after["0.1"] == before["0.1"]).all()
    step(optimizer, ours, steps[1])


def test_names_conversion_and_the_first_values(client, name):
    model = converted(network(), "bfloat16")
    optimizer = adamd.torch.Adam(model.parameters(), client=client, session=name)
    with torch.no_grad():
        model[0].weight.zero_()  # before the first step it is taken over
    train(model, optimizer, batches(3))
    other = converted(network(seed=5), "bfloat16")
    resumed = adamd.torch.Adam(other.parameters(), client=client, session=name)
    assert torch.equal(flat(other), flat(model))
    train(other, resumed, batches(1))
    assert resumed.session.step_number == 4
    other.float()
    with pytest.raises(errors.WrongDtype, match="after the conversion"):
        train(other, resumed, batches(1))


def test_a_bad_gradient_leaves_a_narrow_model(client):
    ours, steps = tensors("float16")
    optimizer = adamd.torch.Adam(ours, client=client)
    step(optimizer, ours, steps[0])
    before = [p.detach().clone() for p in ours]
    steps[1][1][5] = float("inf")  # float16 overflows soon
    with pytest.raises(errors.BadGradient):
        step(optimizer, ours, steps[1])
    assert same(ours, before)
    step(optimizer, ours, steps[2])
    assert optimizer.session.step_number == 2
