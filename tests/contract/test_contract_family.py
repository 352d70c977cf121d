"""Every optimizer through real servers: bit for bit the reference, over every shell, in every encoding, after kill -9.

A new entry of FAMILY is tested by being there.
"""

import json
import uuid
from contextlib import suppress

import numpy as np
import pytest
from safetensors.numpy import load

import adamd
from adamd.errors import InvalidRequest, InvalidSettings, InvalidState
from adamd.wire import encodings, safetensors
from adamd_service.optim import FAMILY
from contract.twin import NAMES, SHAPES, VARIANTS, Twin, begun, gradients

SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


@variants
def test_steps_are_the_references_and_survive_an_export(client, settings):
    twin = Twin(begun(), settings | {"groups": [{"tensors": ["scalar"], "lr": 0.5, "maximize": True}]})
    session = client.create(
        begun(), **settings, groups=[{"tensors": ["scalar"], "lr": 0.5, "maximize": True}], durability="memory"
    )
    for gradient in gradients(5):
        params = session.step(gradient)
        twin.step(gradient)
        assert np.concatenate([params[name].reshape(-1) for name in NAMES]).tobytes() == twin.state.params.tobytes()
    exported = session.export()
    assert twin.differing(exported) == []
    again = client.restore(exported)
    assert again.settings == session.settings and again.settings["name"] == settings["optimizer"]
    for gradient in gradients(3, seed=7):
        twin.step(gradient)
        again.step(gradient)
    assert twin.differing(again.export()) == []
    for one in (session, again):
        one.delete(anyway=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": "adma"}, "optimizer is 'adma'; did you mean adam\\? wanted one of adam, adamw, "),
        ({"durability": "always"}, "durability is 'always'; wanted committed or memory"),
        ({"labels": {"a": 1}}, "labels.a is 1; wanted a text"),
        ({"labels": ["a"]}, "labels is \\['a'\\]; wanted a dict of texts"),
        ({"labels": {1: "a"}}, "labels has the name 1; wanted a text"),
        ({"name": "A b"}, "name is 'A b'; wanted 1 to 128 of A-Z"),
        ({"weight_decay": "x"}, "weight_decay is 'x'; wanted a finite number"),
    ],
)
def test_a_wrong_word_is_told_with_what_is_accepted(client, wrong, said):
    with pytest.raises((InvalidRequest, InvalidSettings), match=said):
        client.create([1.0], **wrong)


@pytest.fixture(scope="module")
def blocking(server):
    with adamd.connect(server.url) as made:
        yield made


@variants
def test_every_encoding_is_the_gradient_that_it_means(blocking, settings):
    """int8 and sparse step as the dense vector that they stand for; sparse-lazy, where an optimizer can, touches no other element."""
    start = np.concatenate([begun()[name].reshape(-1) for name in NAMES])
    rng = np.random.default_rng(3)
    gradient = rng.standard_normal(SIZE).astype(np.float32)
    made = [blocking.create(start, **settings, durability="memory", encoding=kind) for kind in ("int8", "raw")]
    body = encodings.encode_int8(gradient)
    meant = np.empty(SIZE, np.float32)
    encodings.decode_int8(*encodings.int8_parts(np.frombuffer(body, np.uint8), SIZE), 0, meant)
    assert made[0].step(gradient).tobytes() == made[1].step(meant).tobytes()
    few = np.zeros(SIZE, np.float32)
    few[[3, 100]] = 0.5, -2.0
    made[0].encoding = "raw"
    sparse = adamd.Sparse([3, 100], np.float32([0.5, -2.0]))
    assert made[0].step(sparse).tobytes() == made[1].step(few).tobytes()
    lazy = adamd.Sparse([3, 100], np.float32([0.5, -2.0]), lazy=True)
    if FAMILY[settings["optimizer"]].why_not_lazy:
        with pytest.raises(InvalidRequest, match="sparse-lazy"):
            made[0].step(lazy)
        made[0].step(sparse)
    else:
        before, after = made[0].parameters(), made[0].step(lazy)
        assert sorted(np.flatnonzero(before != after)) == [3, 100]
    assert made[0].step_number == 3
    for session in made:
        session.delete(anyway=True)


@pytest.mark.parametrize("name", FAMILY)
def test_a_setting_that_an_optimizer_does_not_have_is_refused_by_its_name(blocking, name):
    told = blocking.info()["settings"][name]
    assert blocking.info()["optimizers"] == list(FAMILY)
    other = next(key for key in ("momentum", "lr_decay", "amsgrad") if key not in told)
    with pytest.raises(InvalidSettings) as caught:
        blocking.create([1.0], optimizer=name, **{other: 0.5})
    assert caught.value.extra["path"] == other
    assert f"{name} has no setting {other}" in str(caught.value) and all(key in str(caught.value) for key in told)
    with pytest.raises(InvalidSettings):
        blocking.create([1.0], optimizer=name, groups=[{"tensors": ["parameters"], other: 0.5}])
    session = blocking.create([1.0], optimizer=name, lr=None, durability="memory")
    assert {key: session.settings[key] for key in told if key in session.settings} == {
        key: value for key, value in told.items() if key in session.settings
    }
    with pytest.raises(InvalidSettings):
        session.update(**{other: 0.5})
    with pytest.raises(InvalidSettings, match="fixed when it was created"):
        session.update(name=next(one for one in FAMILY if one != name))
    session.delete(anyway=True)


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"optimizer": "sgd"}, {"momentum": 0.9}),
        ({"optimizer": "rmsprop", "momentum": 0.9}, {"momentum_buffer": False}),
        ({"optimizer": "rmsprop"}, {"centered": True}),
        ({"optimizer": "adagrad"}, {"initial_accumulator_value": 0.5}),
        ({"optimizer": "adam"}, {"amsgrad": True}),
        ({"optimizer": "fedyogi"}, {"initial_accumulator_value": 0.5}),
        ({"optimizer": "fedadagrad"}, {"form": "torch"}),
    ],
)
def test_what_decides_the_arrays_is_fixed(blocking, given, change):
    session = blocking.create([1.0], **given, durability="memory")
    before = session.settings
    with pytest.raises(InvalidSettings, match="fixed when it was created|needs it"):
        session.update(**change)
    with pytest.raises(InvalidSettings, match="fixed when it was created|needs it"):
        session.step([1.0], settings=change)
    assert session.settings == before and session.step([1.0]).shape == (1,)
    session.delete(anyway=True)


def test_fedopt_takes_the_papers_names(client):
    """In a creation, an open, a step, an update and a restore; what is seen are the settings' own names."""
    start, name = begun(), f"fedopt-{uuid.uuid4().hex[:12]}"
    given = {"optimizer": "fedadam", "form": "flower", "eta": 0.05, "beta_1": 0.8, "tau": 1e-2}
    given["groups"] = [{"tensors": ["bias"], "beta_2": 0.5}]
    session, twin = client.open(name, start, **given), Twin(start, given)
    own = {"lr": 0.05, "betas": [0.8, 0.99], "eps": 1e-2, "groups": [{"tensors": ["bias"], "betas": [0.8, 0.5]}]}
    assert session.settings.items() >= own.items()
    session = client.open(name, start, **given)  # no other settings than those that are there
    with pytest.raises(InvalidSettings, match="betas is \\[0.8, 0.99\\] there and \\[0.7, 0.99\\] here"):
        client.open(name, start, **given | {"beta_1": 0.7})
    changes = {"eta": 0.02, "beta_2": 0.9}
    [gradient] = gradients(1)
    twin.change(changes)
    twin.step(gradient)
    params = session.step(gradient, settings=changes)
    assert np.concatenate([params[key].reshape(-1) for key in NAMES]).tobytes() == twin.state.params.tobytes()
    assert (session.settings["lr"], session.settings["betas"]) == (0.02, [0.8, 0.9])
    assert session.settings.items() == session.info()["optimizer"].items()
    session.update(tau=0.5)
    assert session.settings["eps"] == 0.5 and not {"eta", "beta_1", "beta_2", "tau"} & session.settings.keys()
    before = session.settings
    wrong = {"eta": 0.3, "lr": 0.4}
    calls = [
        lambda: client.create(start, optimizer="fedadam", **wrong),
        lambda: client.open(name, start, **wrong),
        lambda: session.step(gradient, lr=0.4, settings={"eta": 0.3}),
        lambda: session.update(**wrong),
        lambda: client.restore(session.export(), settings=wrong, durability="memory"),
    ]
    for call in calls:
        with pytest.raises(InvalidSettings, match="eta is 0.3, and lr, which is the same setting, is 0.4") as caught:
            call()
        assert caught.value.extra["path"] == "eta"
    assert session.settings == before and session.info()["step"] == session.step_number == 1
    other = client.restore(session.export(), settings={"eta": 0.3, "beta_1": 0.5}, durability="memory")
    assert (other.settings["lr"], other.settings["betas"]) == (0.3, [0.5, 0.9])
    for one in (other, session):
        one.delete(anyway=True)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_momentum_of_0_is_a_number(blocking, optimizer):
    """It goes to 0 and back, by steps and PATCHes, through an export too, and the velocity is still there."""
    start = {name: np.ones(shape, "float32") for name, shape in SHAPES.items()}
    given = {"optimizer": optimizer, "lr": 0.1, "momentum": 0.9}
    session, twin = blocking.create(start, **given), Twin(start, given)
    rng = np.random.default_rng(1)
    for number, momentum in enumerate((0.9, 0.0, 0.0, 0.8)):
        gradient = {name: rng.standard_normal(shape).astype("float32") for name, shape in SHAPES.items()}
        twin.change({"momentum": momentum})
        twin.step(gradient)
        if number == 2:
            session = blocking.restore(session.export())
        assert session.info()["optimizer"].get("momentum_buffer") == (True if number in (2, 3) else None)
        found = session.step(gradient, settings={"momentum": momentum})
        assert np.array_equal(np.concatenate([found[name].reshape(-1) for name in SHAPES]), twin.state.params)
    slower = blocking.create(start, **given, groups=[{"tensors": ["bias"], "momentum": 0}])
    assert slower.step({"bias": start["bias"]})["bias"].shape == (5,)


def spoilt(exported, change):
    """An export with another document."""
    header = safetensors.read_header(memoryview(exported))
    document = json.loads(header.metadata["adamd"])
    change(document)
    tensors = [(one.tensor.name, one.dtype, one.tensor.shape) for one in header.tensors]
    return safetensors.write_header(tensors, {"adamd": json.dumps(document)}) + bytes(exported)[header.data_start :]


@pytest.mark.parametrize("name", [name for name in FAMILY if FAMILY[name].carried])
def test_what_is_carried_belongs_to_a_state(blocking, name):
    session = blocking.create({"a": [1.0], "b": [2.0]}, optimizer=name, durability="memory")
    session.step({"a": [1.0]})
    exported, first = session.export(), next(iter(FAMILY[name].carried))
    wrong = [
        lambda d: d["state"].pop("carried"),
        lambda d: d["state"]["carried"].pop(first),
        lambda d: d["state"]["carried"][first].pop("a"),
        lambda d: d["state"]["carried"].update(more={"a": 1.0, "b": 1.0}),
        lambda d: d["state"]["carried"].update({one: {"a": -1e9, "b": -1e9} for one in FAMILY[name].carried}),
        lambda d: d["state"]["carried"].update({one: {"a": 1e308, "b": 1e308} for one in FAMILY[name].carried}),
        lambda d: d["state"]["carried"].update({one: {"a": -1e-9, "b": -1e-9} for one in FAMILY[name].carried}),
        lambda d: d["optimizer"].update(name="sgd", betas=None),
    ]
    blocking.restore(spoilt(exported, lambda d: None)).delete(anyway=True)
    for change in wrong[:-1]:
        with suppress(InvalidState):  # or a number that such a state can have: then it steps, and is loaded again
            taken = blocking.restore(spoilt(exported, change))
            assert change is wrong[5]
            taken.step({"a": [1.0], "b": [1.0]})
            taken.delete(anyway=True)
    with pytest.raises((InvalidRequest, InvalidSettings)):
        blocking.restore(spoilt(exported, wrong[-1]))
    session.delete(anyway=True)


def test_what_is_carried_is_tried_with_the_settings_of_its_group(blocking):
    """The session's own beta of 0 forgives any mu_product; the group's does not, and every step would be refused."""
    given = {"optimizer": "nadam", "betas": (0.0, 0.999), "groups": [{"tensors": ["b"], "betas": [0.9, 0.999]}]}
    session = blocking.create({"a": [1.0], "b": [2.0]}, **given, durability="memory")
    session.step({"a": [1.0], "b": [1.0]})
    exported = session.export()
    session.delete(anyway=True)
    blocking.restore(spoilt(exported, lambda d: d["state"]["carried"]["mu_product"].update(a=1e30))).delete(anyway=True)
    with pytest.raises(InvalidState):
        blocking.restore(spoilt(exported, lambda d: d["state"]["carried"]["mu_product"].update(b=1e30)))


@pytest.mark.slow
def test_the_whole_family_after_kill_9(server_factory):
    """Snapshots every third step; the server dies without a word; another folds the log to the very bits, and goes on."""
    server = server_factory(env={"ADAMD_SNAPSHOT_RECORDS": 3})
    twins = {}
    with adamd.connect(server.url) as client:
        for name, settings in VARIANTS.items():
            session = client.create(begun(), **settings)
            twins[name] = session.id, Twin(begun(), settings)
            for gradient in gradients(5):
                session.step(gradient)
                twins[name][1].step(gradient)
    server.kill()
    server.restart()
    with adamd.connect(server.url) as client:
        for ref, twin in twins.values():
            session = client.session(ref)
            assert twin.differing(session.export()) == [], session.settings
            for gradient in gradients(2, seed=9):
                session.step(gradient)
                twin.step(gradient)
            assert twin.differing(session.export()) == [], session.settings


def test_the_average_is_read_beside_the_parameters(client):
    """Schedule-free AdamW's x, by its equation from what the export says; the session goes on from y all the same."""
    session = client.create(np.float64([1, -2, 3]), optimizer="schedule_free_adamw", lr=0.1, betas=[0.8, 0.99])
    for _ in range(3):
        params = session.step(np.float64([1, 2, -1]))
    z = load(bytes(session.export()))["z:parameters"]
    average = session.parameters(at="average")
    assert average.tobytes() == (params + (1 - 1 / 0.8) * (z - params)).tobytes() != params.tobytes()
    assert session.parameters().tobytes() == params.tobytes() and session.step_number == 3
    session.step(np.float64([1, 2, -1]))
    plain = client.create(np.float64([1.0]))
    with pytest.raises(InvalidRequest, match="adam has none"):
        plain.parameters(at="average")


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_parameters_that_are_set_begin_a_new_life(blocking, durability):
    """Of a state that is restored at step 0 with moments, a best loss and what it carried, nothing is left."""
    settings = {"optimizer": "nadam", "ema_decay": 0.9, "keep_best": True, "stop": {"target_loss": 0.6}}
    old = blocking.create({"w": np.float32([1, 2])}, **settings, durability="memory")
    old.step({"w": np.float32([1, 1])}, loss=0.5)
    made = old.export()
    again = blocking.restore(spoilt(made, lambda d: d["state"].update(step=0, counts={"w": 0})))
    again.set_parameters({"w": np.float32([5, 6])})
    new = blocking.create({"w": np.float32([5, 6])}, **settings, durability=durability)
    for loss in (0.9, 0.8):
        for session in (again, new):
            session.step({"w": np.float32([1, -1])}, loss=loss)
            assert session.stop is None and session.info()["progress"]["lowest"] == loss
        assert again.parameters(at="best")["w"].tobytes() == new.parameters(at="best")["w"].tobytes()
        exports = [safetensors.read_header(memoryview(one.export())) for one in (again, new)]
        states = [json.loads(header.metadata["adamd"])["state"] for header in exports]
        assert states[0] == states[1]
        assert again.export()[exports[0].data_start :] == new.export()[exports[1].data_start :]
    for session in (old, again, new):
        session.delete(anyway=True)
