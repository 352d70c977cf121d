"""Settings: strict, told where and what, merged whole or not at all."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.wire.setting_aliases import TAKEN_BY
from adamd_service.optim import (
    FAMILY,
    Hyper,
    SettingsError,
    check_groups,
    merge_settings,
    parse_settings,
    resolve,
    settings_of,
    to_json,
)

NUMBER = "a finite number, 0 or more"
REFUSED = [
    (None, "", "the settings are null; wanted an object"),
    ([], "", "the settings are a list of 0; wanted an object"),
    ({1: 2}, "", "wanted an object"),
    ({"lr": True}, "lr", f"lr is true; wanted {NUMBER}"),
    ({"lower": float("inf")}, "lower", "lower is inf; wanted a finite number, null (none)"),
    (
        {"groups": [{"tensors": ["a"], "upper": float("nan")}]},
        "groups[0].upper",
        "groups[0].upper is nan; wanted a finite",
    ),
    ({"lr": "0.1"}, "lr", f"lr is '0.1'; wanted {NUMBER}"),
    ({"lr": None}, "lr", f"lr is null; wanted {NUMBER}"),
    ({"lr": float("nan")}, "lr", f"lr is nan; wanted {NUMBER}"),
    ({"lr": float("inf")}, "lr", f"lr is inf; wanted {NUMBER}"),
    ({"lr": 10**400}, "lr", "lr is a number of more than 60 digits"),
    ({"lr": 10**5000}, "lr", "lr is a number of more than 60 digits"),
    ({"lr": -1e-9}, "lr", f"lr is -1e-09; wanted {NUMBER}"),
    ({"lr": "x" * 10_000}, "lr", "..."),
    ({"eps": -1}, "eps", NUMBER),
    ({"weight_decay": -1}, "weight_decay", NUMBER),
    ({"betas": 0.9}, "betas", "betas is 0.9; wanted a list of two numbers"),
    ({"betas": [0.9]}, "betas", "betas is a list of 1; wanted a list of two numbers"),
    ({"betas": [0.9, 0.99, 0.999]}, "betas", "betas is a list of 3; wanted a list of two numbers"),
    ({"betas": [0.9, 1]}, "betas[1]", "betas[1] is 1; wanted a finite number, 0 or more and below 1"),
    ({"betas": [False, 0.9]}, "betas[0]", "betas[0] is false"),
    ({"amsgrad": 1}, "amsgrad", "amsgrad is 1; wanted true or false"),
    ({"maximize": "yes"}, "maximize", "maximize is 'yes'; wanted true or false"),
    ({"name": "sdg"}, "name", "optimizer is 'sdg'; did you mean sgd? wanted one of adam, adamw, nadam, "),
    ({"name": "adma"}, "name", "optimizer is 'adma'; did you mean adam? wanted one of "),
    ({"name": "AdamW"}, "name", "optimizer is 'AdamW'; did you mean adamw?"),
    ({"name": "xyzzy"}, "name", "optimizer is 'xyzzy'; wanted one of adam"),
    ({"name": None}, "name", "optimizer is null; wanted one of adam"),
    ({"name": "x" * 10_000}, "name", "...; wanted one of adam"),
    ({"groups": {}}, "groups", "groups is an object of 0; wanted a list of objects"),
    ({"groups": [3]}, "groups[0]", "groups[0] is 3; wanted an object"),
    ({"groups": [{}]}, "groups[0].tensors", "groups[0].tensors is missing; wanted a list of tensor names"),
    ({"groups": [{"tensors": "b"}]}, "groups[0].tensors", "is 'b'; wanted a list of tensor names"),
    ({"groups": [{"tensors": [1]}]}, "groups[0].tensors[0]", "is 1; wanted a tensor name"),
    ({"groups": [{"tensors": []}, {"tensors": ["b"], "lr": -1}]}, "groups[1].lr", "groups[1].lr is -1"),
    ({"groups": [{"tensors": ["b"], "lr": None}]}, "groups[0].lr", "groups[0].lr is null"),
    ({"groups": [{"tensors": ["b"], "betas": [0, 2]}]}, "groups[0].betas[1]", "groups[0].betas[1] is 2"),
    (
        {"groups": [{"tensors": ["b"], "amsgrad": True}]},
        "groups[0].amsgrad",
        "for the whole session, outside the groups",
    ),
    ({"learning_rate": 1}, "learning_rate", "unknown setting learning_rate; did you mean lr?"),
    ({"learningRate": 1}, "learningRate", "did you mean lr?"),
    ({"beta1": 0.9}, "beta1", "did you mean betas?"),
    ({"epsilon": 1e-7}, "epsilon", "did you mean eps?"),
    ({"l2": 1e-7}, "l2", "did you mean weight_decay?"),
    ({"wieght_decay": 0}, "wieght_decay", "did you mean weight_decay?"),
    (
        {"momentum": 0.9},
        "momentum",
        "adam has no setting momentum; known are name, lr, betas, eps, weight_decay, amsgrad, eps_form,",
    ),
    ({"lr": "x", "epsilom": 1}, "epsilom", "did you mean eps?"),
    ({"groups": [{"tensors": ["b"], "learning-rate": 1}]}, "groups[0].learning-rate", "did you mean lr?"),
    ({"\ud800": 1}, None, ""),
    ({"groups": [{"tensors": [], 1: 2}]}, None, ""),
]


@pytest.mark.parametrize(("raw", "path", "message"), REFUSED)
def test_refused(raw, path, message):
    with pytest.raises(SettingsError) as caught:
        parse_settings(raw)
    assert path is None or caught.value.path == path
    assert message in caught.value.message
    assert len(caught.value.message.encode()) < 300  # encodes, and echoes an excerpt only


def test_defaults_are_torchs():
    assert to_json(parse_settings({})) == {
        "name": "adam", "lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
        "amsgrad": False, "maximize": False, "groups": [],
    }  # fmt: skip
    assert parse_settings({"name": "adamw"}).hyper.weight_decay == 0.01
    assert parse_settings({"weight_decay": 0, "name": "adamw"}).hyper.weight_decay == 0
    assert repr(parse_settings({"lr": -0.0}).hyper.lr) == "0.0"
    assert type(parse_settings({"lr": 1}).hyper.lr) is float


rates = st.one_of(st.integers(0, 10), st.floats(0, 1e300))
betas = st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2)
overrides = {"lr": rates, "eps": rates, "weight_decay": rates, "betas": betas, "maximize": st.booleans()}
groups = st.lists(st.fixed_dictionaries({"tensors": st.lists(st.text(), max_size=3)}, optional=overrides), max_size=3)
documents = st.fixed_dictionaries(
    {}, optional={**overrides, "name": st.sampled_from(["adam", "adamw"]), "amsgrad": st.booleans(), "groups": groups}
)


@settings(deadline=None)
@given(documents)
def test_round_trip(raw):
    settings = parse_settings(raw)
    assert parse_settings(json.loads(json.dumps(to_json(settings)))) == settings
    assert merge_settings(settings, {}) == settings
    assert merge_settings(settings, to_json(settings)) == settings


def test_merge():
    current = parse_settings({"name": "adamw", "groups": [{"tensors": ["a"], "lr": 1}]})
    merged = merge_settings(current, {"lr": 0.5, "name": "adamw", "amsgrad": False})
    assert (merged.hyper.lr, merged.hyper.weight_decay) == (0.5, 0.01)
    assert merged.document["groups"] == current.document["groups"]
    assert merge_settings(current, {"groups": []}).groups == ()
    assert current.hyper.lr == 0.001
    for patch, path in [
        ({"name": "adam"}, "name"),
        ({"amsgrad": True}, "amsgrad"),
        ({"lr": "x"}, "lr"),
        ([], ""),
        ({"groups": None}, "groups"),
    ]:
        with pytest.raises(SettingsError) as caught:
            merge_settings(current, patch)
        assert caught.value.path == path
    with pytest.raises(SettingsError, match="this session's is adamw, fixed when it was created"):
        merge_settings(current, {"name": "adam"})


def test_a_momentum_of_0_keeps_its_buffer():
    """What is fixed is which arrays there are, not a number."""
    had = {"name": "sgd", "momentum": 0.9, "nesterov": True}
    for raw in (had, {"name": "rmsprop", "momentum": 0.9}, {"name": "sgd", "momentum_buffer": True}):
        heavy = parse_settings(raw)
        stopped = merge_settings(heavy, {"momentum": 0})
        assert (stopped.hyper.momentum, stopped.arrays) == (0.0, heavy.arrays)
        assert stopped.document["momentum_buffer"] is True  # a document of its own says it
        assert parse_settings(json.loads(json.dumps(to_json(stopped)))) == stopped
        again = merge_settings(stopped, {"momentum": 0.5})
        assert again.arrays == heavy.arrays and "momentum_buffer" not in again.document
    assert merge_settings(parse_settings(had), {"momentum": 0}).hyper.nesterov
    grouped = parse_settings({"name": "sgd", "groups": [{"tensors": ["a"], "momentum": 0.5}]})
    assert grouped.arrays == merge_settings(grouped, {"groups": []}).arrays == ("momentum_buffer",)
    assert parse_settings({"name": "sgd", "momentum": 0, "groups": [{"tensors": ["a"], "lr": 1}]}).arrays == ()


@pytest.mark.parametrize(
    ("raw", "patch", "path", "message"),
    [
        ({"name": "sgd"}, {"momentum": 0.9}, "momentum", "no momentum_buffer, which was fixed when it was created"),
        ({"name": "sgd"}, {"groups": [{"tensors": ["a"], "momentum": 0.9}]}, "momentum", "make one with"),
        ({"name": "sgd"}, {"momentum_buffer": True}, "momentum_buffer", "this session has false, fixed"),
        ({"name": "rmsprop", "momentum": 1}, {"momentum_buffer": False}, "momentum_buffer", "a momentum above 0 needs"),
        (
            {"name": "rmsprop", "momentum_buffer": True},
            {"momentum_buffer": False},
            "momentum_buffer",
            "has true, fixed",
        ),
        ({"name": "sgd", "momentum": 1}, {"momentum_buffer": None}, "momentum_buffer", "null; wanted true or false"),
        ({"name": "sgd", "momentum": 1}, {"nesterov": True, "dampening": 0.5}, "nesterov", "dampening of 0"),
    ],
)
def test_a_buffer_does_not_come_and_go(raw, patch, path, message):
    with pytest.raises(SettingsError) as caught:
        merge_settings(parse_settings(raw), patch)
    assert caught.value.path == path and message in caught.value.message


def test_groups_against_the_layout():
    settings = parse_settings({"groups": [{"tensors": ["wieght"]}]})
    with pytest.raises(SettingsError, match="did you mean 'weight'") as caught:
        check_groups(settings, ["weight", "bias"])
    assert caught.value.path == "groups[0].tensors[0]"
    for groups in ([["a"], ["b", "a"]], [["a", "a"]]):
        with pytest.raises(SettingsError, match="one group at most"):
            check_groups(parse_settings({"groups": [{"tensors": names} for names in groups]}), ["a", "b"])
    check_groups(parse_settings({"groups": [{"tensors": ["a"]}, {"tensors": ["b"]}]}), ["a", "b"])


def test_resolve():
    settings = parse_settings(
        {"name": "adamw", "groups": [{"tensors": ["b"], "lr": 0, "betas": [0, 0], "weight_decay": 0, "maximize": True}]}
    )
    assert resolve(settings, "a") == Hyper(weight_decay=0.01)
    assert resolve(settings, "b") == Hyper(lr=0.0, betas=(0.0, 0.0), maximize=True)


FEDERATED = ["fedadam", "fedyogi", "fedadagrad"]


def test_who_takes_the_papers_names():
    assert list(TAKEN_BY) == [name for name, one in FAMILY.items() if "form" in one.settings] == FEDERATED


@pytest.mark.parametrize("name", FEDERATED)
def test_the_papers_names_are_the_settings(name):
    given = {"name": name, "eta": 0.25, "beta_1": 0.5, "beta_2": 0, "tau": 2}
    settings = parse_settings(given)
    assert settings == parse_settings({"name": name, "lr": 0.25, "betas": [0.5, 0.0], "eps": 2.0})
    assert settings == parse_settings({**given, "lr": 0.25, "betas": [0.5, 0], "eps": 2})  # twice the same
    assert not {"eta", "beta_1", "beta_2", "tau"} & to_json(settings).keys()
    assert merge_settings(settings, to_json(settings)) == settings
    changed = merge_settings(settings, {"eta": 0.5, "beta_1": 0.25})
    assert (changed.hyper.lr, changed.hyper.betas, changed.hyper.eps) == (0.5, (0.25, 0.0), 2.0)
    assert parse_settings({"name": name, "beta_1": 0.5}).hyper.betas == (0.5, FAMILY[name].settings["betas"][1])
    assert given == {"name": name, "eta": 0.25, "beta_1": 0.5, "beta_2": 0, "tau": 2}  # the caller's, left alone


def test_the_papers_names_in_groups():
    raw = {
        "name": "fedadam",
        "beta_2": 0.5,
        "groups": [{"tensors": ["a"], "beta_1": 0.25, "tau": 1}, {"tensors": ["b"]}],
    }
    settings = parse_settings(raw)
    assert resolve(settings, "a")[:3] == (0.1, (0.25, 0.5), 1.0)
    assert resolve(settings, "b")[:3] == (0.1, (0.9, 0.5), 1e-3)
    groups = [{"tensors": ["a"], "eta": 2}]
    assert merge_settings(settings, {"groups": groups}).document["groups"] == [{"tensors": ["a"], "lr": 2.0}]


def test_v_keeps_where_it_began():
    settings = parse_settings({"name": "fedadam"})
    assert merge_settings(settings, {"tau": 0.5}).document["initial_accumulator_value"] == 1e-6


@pytest.mark.parametrize(
    ("raw", "path", "message"),
    [
        ({"eta": 0.1, "lr": 0.2}, "eta", "eta is 0.1, and lr, which is the same setting, is 0.2; give one of them"),
        ({"tau": 0.1, "eps": 0.2}, "tau", "tau is 0.1, and eps, which is the same setting, is 0.2"),
        (
            {"beta_1": 0.1, "betas": [0.2, 0.3]},
            "beta_1",
            "beta_1 is 0.1, and betas[0], which is the same setting, is 0.2",
        ),
        ({"beta_2": 0.1, "betas": [0.2, 0.3]}, "beta_2", "and betas[1], which is the same setting, is 0.3"),
        ({"eta": 1, "lr": True}, "eta", "and lr, which is the same setting, is true"),
        ({"eta": 1, "lr": "1"}, "eta", "and lr, which is the same setting, is '1'"),
        ({"groups": [{"tensors": ["a"], "eta": 1, "lr": 2}]}, "groups[0].eta", "and groups[0].lr, which is the same"),
        ({"eta": -1}, "eta", "eta is -1; wanted a finite number, 0 or more"),
        ({"eta": True}, "eta", "eta is true; wanted a finite number, 0 or more"),
        ({"eta": None}, "eta", "eta is null; wanted"),
        ({"eta": "1"}, "eta", "eta is '1'; wanted"),
        ({"eta": float("nan")}, "eta", "eta is nan; wanted"),
        ({"eta": 10**400}, "eta", "eta is a number of more than 60 digits; wanted"),
        ({"tau": float("inf")}, "tau", "tau is inf; wanted a finite number, 0 or more"),
        ({"beta_1": 1}, "beta_1", "beta_1 is 1; wanted a finite number, 0 or more and below 1"),
        ({"groups": [{"tensors": ["a"], "beta_2": -0.5}]}, "groups[0].beta_2", "groups[0].beta_2 is -0.5; wanted"),
        ({"beta_1": 0.5, "betas": [0.5]}, "betas", "betas is a list of 1; wanted a list of two numbers"),
        ({"beta_1": 0.5, "betas": "x"}, "betas", "betas is 'x'; wanted a list of two numbers"),
        ({"groups": [{"tensors": ["a"], "beta_1": 0.5}], "betas": []}, "betas", "betas is a list of 0; wanted"),
        ({"groups": [3], "eta": 1}, "groups[0]", "groups[0] is 3; wanted an object"),
        ({"beta1": 0.5}, "beta1", "unknown setting beta1; did you mean betas?"),
        ({"form": "keras"}, "form", 'form is \'keras\'; wanted "paper", "torch" or "flower"'),
        ({"groups": [{"tensors": ["a"], "form": "torch"}]}, "groups[0].form", "form is for the whole session"),
        ({"tau": 1e200}, "initial_accumulator_value", "follows from the other settings, and would be inf; give it"),
        ({"eta": 0.1, "momentum": 1}, "momentum", "fedadam has no setting momentum"),
    ],
)
def test_the_papers_names_are_refused_by_name(raw, path, message):
    with pytest.raises(SettingsError) as caught:
        parse_settings({"name": "fedadam", **raw})
    assert caught.value.path == path and message in caught.value.message
    if path == "initial_accumulator_value":  # a PATCH leaves v where it began
        assert merge_settings(parse_settings({"name": "fedadam"}), raw).hyper.eps == 1e200
        return
    with pytest.raises(SettingsError) as again:
        merge_settings(parse_settings({"name": "fedadam"}), raw)
    assert again.value.path == path


def test_what_fedopt_fixes():
    settings = parse_settings({"name": "fedadam", "form": "torch"})
    for patch in ({"form": "paper"}, {"form": "flower"}, {"initial_accumulator_value": 1}):
        with pytest.raises(SettingsError, match="fixed when it was created") as caught:
            merge_settings(settings, patch)
        assert caught.value.path == next(iter(patch))
    assert merge_settings(settings, {"form": "torch"}) == settings


@pytest.mark.parametrize(
    "raw", [{"betas": [0.5, 0.9]}, {"beta_2": 0.9}, {"groups": [{"tensors": ["a"], "beta_2": 0.9}]}]
)
def test_fedadagrad_has_no_second_beta(raw):
    with pytest.raises(SettingsError, match="fedadagrad sums the squares, and has no beta_2"):
        parse_settings({"name": "fedadagrad", **raw})


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in FEDERATED])
def test_nobody_else_takes_the_papers_names(name):
    for alias, setting in (("eta", "lr"), ("tau", "eps"), ("beta_1", "betas")):
        with pytest.raises(SettingsError) as caught:
            parse_settings({"name": name, alias: 0.5})
        assert caught.value.path == alias and "unknown setting" in caught.value.message
        assert f"did you mean {setting}?" in caught.value.message or setting not in settings_of(FAMILY[name])
