"""What surrounds the update, and how numbers travel: through torch's interface the same bits as through the plain SDK."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from digits import batches, flat, loss_of, network, train

import adamd
import adamd.torch
from adamd import errors
from adamd.sansio.options import SETTINGS

pytestmark = pytest.mark.torch

COSINE = {"name": "cosine", "total_steps": 12, "warmup_steps": 3, "init_factor": 0.5}
NAMES = sorted(name for name, _ in network().named_parameters())
# (class of adamd.torch, its own arguments, what surrounds it and how numbers travel)
CASES = {
    "int8": ("Adam", {}, {"encoding": "int8", "schedule": COSINE}),
    "int8 without feedback": ("Adam", {}, {"encoding": "int8", "error_feedback": False}),
    "topk, clipped, answers narrow": (
        "AdamW",
        {"weight_decay": 0.1},
        {"encoding": adamd.TopK(0.05), "clip_norm": 0.05, "schedule": COSINE, "answer_dtype": "bfloat16"},
    ),
    "float16 both ways, bounds, average": (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"encoding": "float16", "answer_dtype": "float16", "lower": -0.2, "upper": {"7.weight": 0.1}, "ema_decay": 0.75},
    ),
    "bfloat16, by value": (
        "RMSprop",
        {"alpha": 0.9},
        {"encoding": "bfloat16", "clip_value": 0.01, "gradient_scale": 2.0, "stop": {"max_steps": 5}, "keep_best": True},
    ),
}  # fmt: skip


def inside(options):
    """A network that lies within the bounds of these options."""
    model = network()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.clamp_(-0.2, 0.1) if "lower" in options else None
    return model


def numpied(given):
    return {name: value.detach().numpy().copy() for name, value in given}


def both(client, case, steps):
    """Train through torch's interface and, with the very same gradients, through the plain SDK; (model, optimizer, session)."""
    kind, own, around = CASES[case]
    model = inside(around)
    optimizer = getattr(adamd.torch, kind)(model.named_parameters(), **own, **around, client=client)
    session = client.create(
        numpied(model.named_parameters()), optimizer=kind.lower(), **{**defaults(kind), **own}, **around
    )
    assert session.settings == optimizer.session.settings
    for batch in batches(steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        gradient = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        optimizer.step(lambda loss=loss: loss)
        params = session.step(gradient, loss.item())
        assert all(np.array_equal(p.detach().numpy(), params[name]) for name, p in model.named_parameters())
    return model, optimizer, session


def defaults(kind):
    """Torch's, which the plain SDK does not always have."""
    group = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    wanted = "lr", "betas", "eps", "weight_decay", "amsgrad", "alpha", "momentum", "dampening", "nesterov", "centered"
    return {key: group[key] for key in wanted if key in group}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_the_plain_sdks(client, case):
    _, optimizer, session = both(client, case, 9)
    mine, plain = optimizer.session, session
    assert mine.step_number == plain.step_number == 9
    assert (mine.stop, mine.encoding, mine.answer_dtype) == (plain.stop, plain.encoding, plain.answer_dtype)
    for one in (mine, plain):  # as the server has them, whatever was asked of the answers
        one.answer_dtype = None
    for at in (
        None,
        *(["ema"] if "ema_decay" in CASES[case][2] else ()),
        *(["best"] if "stop" in CASES[case][2] else ()),
    ):
        ours, theirs = mine.parameters(at=at), plain.parameters(at=at)
        assert all(np.array_equal(ours[name], theirs[name]) for name in NAMES)


def test_a_case_that_cannot_fail_would_be_none(client):
    """Each of what surrounds the update changes bits here: else the comparison above would tell nothing."""
    plain = network()
    train(plain, adamd.torch.Adam(plain.named_parameters(), client=client), batches(9))
    for around in (
        {"encoding": "int8"},
        {"schedule": COSINE},
        {"clip_norm": 0.05},
        {"clip_value": 0.001},
        {"lower": -0.1},
        {"answer_dtype": "bfloat16"},
    ):
        model = network()
        if "lower" in around:
            with torch.no_grad():
                [p.clamp_(-0.1) for p in model.parameters()]
        train(model, adamd.torch.Adam(model.named_parameters(), client=client, **around), batches(9))
        assert not torch.equal(flat(model), flat(plain)), around


@pytest.mark.parametrize("kind", sorted(set(adamd.torch.__all__) - {"Around"}))
def test_torchs_own_signature_comes_first_and_the_list_behind_it(client, kind):
    ours, theirs = (inspect.signature(getattr(module, kind).__init__) for module in (adamd.torch, torch.optim))
    plain = [p.name for p in theirs.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    positional = [p.name for p in ours.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name in plain if name in positional]
    assert len(positional) >= 6
    made = getattr(adamd.torch, kind)(network().parameters(), client=client, clip_value=0.5, encoding="int8")
    assert made.session.settings["clip_value"] == 0.5 and made.session.encoding == "int8"
    with pytest.raises(TypeError, match="unexpected keyword argument 'clip_norms'; known are schedule, "):
        getattr(adamd.torch, kind)(network().parameters(), client=client, clip_norms=0.5)


def test_the_list_is_the_servers(client):
    told = client.info()["settings"]["adam"]
    assert set(SETTINGS) < set(told)
    new = set(told) - {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "eps_form", "bias_correction"}
    assert set(SETTINGS) == new


def test_what_is_refused(client):
    model = network()
    for given, error, said in [
        ({"schedule": {"name": "cosine", "T_max": 3}}, errors.InvalidSettings, "did you mean total_steps"),
        ({"lower": {"nowhere": 0.0}}, errors.WrongLayout, "no tensor 'nowhere'"),
        ({"encoding": "int4"}, errors.InvalidRequest, "wanted 'raw'"),
        ({"answer_dtype": "int8"}, errors.WrongDtype, "wanted float16"),
    ]:
        with pytest.raises(error, match=said):
            adamd.torch.Adam(model.named_parameters(), client=client, **given)
    with pytest.raises(errors.WrongDtype, match="the model is bfloat16, and answers come as that already"):
        adamd.torch.Adam(network(torch.bfloat16).parameters(), client=client, answer_dtype="float16")
    optimizer = adamd.torch.Adam(model.named_parameters(), client=client, encoding="int8")
    train(model, optimizer, batches(1))
    before = flat(model).clone()
    model[0].weight.grad = None
    with pytest.raises(errors.WrongLayout, match="every tensor has to be there"):
        optimizer.step()
    assert torch.equal(flat(model), before) and optimizer.session.step_number == 1


def test_a_narrow_model_takes_the_answers_that_it_gets_anyway(client):
    made = [network(torch.bfloat16) for _ in range(2)]
    for model, options in zip(made, ({}, {"answer_dtype": "bfloat16"}), strict=True):
        train(model, adamd.torch.Adam(model.parameters(), client=client, **options), batches(3))
    assert torch.equal(flat(made[0]), flat(made[1]))


def test_a_model_changed_before_step_one_is_taken_over_unrounded(client):
    """Answers are rounded, what is sent is not."""
    model = network()
    optimizer = adamd.torch.Adam(model.named_parameters(), client=client, answer_dtype="bfloat16")
    with torch.no_grad():
        model[0].bias.add_(0.001)
    wanted = model[0].bias.detach().numpy().copy()
    optimizer.session.answer_dtype = None
    chain = optimizer.session.chain
    optimizer.zero_grad()
    model[3].bias.grad = torch.ones_like(model[3].bias)
    optimizer.step()
    assert optimizer.session.chain != chain
    assert np.array_equal(optimizer.session.parameters()["0.bias"], wanted)
    assert torch.equal(model[0].bias, torch.from_numpy(wanted).bfloat16().float())  # as the answer had it


def test_resumed_with_its_own_settings_and_told(client, name):
    def made(**around):
        model = network()
        with torch.no_grad():
            [p.clamp_(-0.3, 0.3) for p in model.parameters()]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer = adamd.torch.Adam(model.named_parameters(), client=client, session=name, **around)
        return optimizer, [str(one.message) for one in told]

    around = {"schedule": COSINE, "clip_norm": 0.05, "lower": {"0.bias": np.full(8, -0.3)}, "clip_value": 0.0}
    first, told = made(**around)
    assert told == []
    assert made()[1] == made(**around)[1] == made(schedule={"name": "cosine"}, upper=None)[1] == []
    again, told = made(clip_norm=2.0, gradient_scale=3.0, encoding="int8")
    (words,) = told
    assert "gradient_scale is 1.0 there and 3.0 here; clip_norm is 0.05 there and 2.0 here" in words
    assert "change them by optimizer.session.update(…)" in words
    assert again.session.id == first.session.id and again.session.encoding == "int8"
    assert again.session.settings["clip_norm"] == 0.05 and again.session.settings["lower"] == "array"


@pytest.mark.parametrize("gone", [False, True], ids=["it lives", "it is gone"])
def test_a_loaded_state_keeps_what_surrounds_it(client, gone):
    """load_state_dict makes another session: schedule, clipping, bounds, average and encoding go over to it, bit for bit."""
    for kind in ("Adam", "SGD"):
        lower = {"0.bias": np.full(8, -0.3, np.float32), "7.bias": -0.25}
        around = {"schedule": COSINE, "clip_norm": 0.05, "lower": lower, "ema_decay": 0.5, "answer_dtype": "bfloat16"}
        own = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 0.05}
        models = [network() for _ in range(2)]
        for model in models:
            with torch.no_grad():
                [p.clamp_(-0.25) for p in model.parameters()]
        alone, moved = (
            getattr(adamd.torch, kind)(m.named_parameters(), client=client, **own, **around) for m in models
        )
        given = list(batches(8))
        train(models[0], alone, given[:4])
        train(models[1], moved, given[:4])
        state = moved.state_dict()
        assert {"ema"} <= state["state"][0].keys() and "lower" not in state["state"][0]
        torch.optim.Adam(network().parameters()).load_state_dict(state) if kind == "Adam" else None
        old = moved.session.id
        if gone:
            moved.session.delete()
        moved.load_state_dict(state)
        told = moved.session.info()
        assert told["id"] != old and told["step"] == 4
        mine, its = dict(told["optimizer"]), dict(alone.session.info()["optimizer"])
        assert mine == its and mine["lower"] == "array" and mine["schedule"]["name"] == "cosine"
        assert moved.session.answer_dtype == "bfloat16"
        for one in (alone, moved):
            one.session.answer_dtype = None
        rate = alone.session.info()["lr"]
        assert moved.session.info()["lr"] == rate != 0.05
        for _ in range(2):
            for at in (None, "ema"):
                mine, its = (one.session.parameters(at=at) for one in (moved, alone))
                assert all(np.array_equal(mine[name], its[name]) for name in NAMES)
            for model, optimizer in zip(models, (alone, moved), strict=True):
                train(model, optimizer, given[4:6])
            assert torch.equal(flat(models[0]), flat(models[1]))
        assert any(not np.array_equal(mine[name], moved.session.parameters()[name]) for name in NAMES)
        moved.param_groups[0]["lr"] = 1e4
        for p in models[1].parameters():
            p.grad = torch.ones_like(p)
        moved.step()
        assert moved.session.step_number == 9
        found = moved.session.parameters()
        assert found["0.bias"].min() == np.float32(-0.3) and found["7.bias"].min() == np.float32(-0.25)
        assert found["7.weight"].min() < -1


def test_a_group_added_later_keeps_it_too(client):
    model = network()
    kept = [(n, p) for n, p in model.named_parameters() if not n.startswith("7")]
    rest = [(n, p) for n, p in model.named_parameters() if n.startswith("7")]
    around = {"clip_norm": 0.05, "ema_decay": 0.5, "upper": {"0.bias": 0.4}, "encoding": "int8"}
    optimizer = adamd.torch.SGD(kept, momentum=0.9, client=client, **around)
    train(model, optimizer, batches(3))
    averaged = optimizer.session.parameters(at="ema")
    optimizer.add_param_group({"params": rest})
    session = optimizer.session
    assert session.settings["clip_norm"] == 0.05 and session.settings["upper"] == "array" and session.encoding == "int8"
    now = session.parameters(at="ema")
    assert all(np.array_equal(now[name], averaged[name]) for name in averaged)
    assert np.array_equal(now["7.bias"], model[7].bias.detach().numpy())
    train(model, optimizer, batches(2))
    assert session.step_number == 5
