"""Options around the update, through real servers: equal to the reference in every shell and after kill -9."""

import http.client
import json

import numpy as np
import pytest
from safetensors.numpy import save

import adamd
from adamd.errors import BadGradient, InvalidRequest, InvalidSettings, WrongLayout
from adamd.wire import encodings
from contract import shells
from contract.twin import NAMES, SHAPES, Twin, begun, gradients

COSINE = {"name": "cosine", "total_steps": 12, "warmup_steps": 2, "init_factor": 0.5}
GROUPS = [{"tensors": ["*a*"], "lr": 0.5, "clip_value": 0.3}, {"tensors": ["scalar"], "lower": -0.1, "weight_decay": 0}]
AROUND = {
    "schedule": {"schedule": COSINE},
    "clip": {"gradient_scale": 0.5, "clip_norm": 2.0, "clip_value": 0.25},
    "bounds": {"lower": -3.0, "upper": 3.0, "lr": 0.5},
    "ema": {"ema_decay": 0.9},
    "all": {"schedule": COSINE, "gradient_scale": 3.0, "clip_norm": 5.0, "lower": -4, "upper": 4.0, "ema_decay": 0.75,
            "groups": GROUPS, "weight_decay": 0.1, "optimizer": "adamw"},
}  # fmt: skip


def inside(low=-3.0, high=3.0):
    return {name: np.clip(array, low + 2.95 * (name == "scalar"), high) for name, array in begun().items()}


def flat(params):
    return np.concatenate([np.asarray(params[name]).reshape(-1) for name in NAMES])


@pytest.mark.parametrize("around", AROUND)
def test_steps_are_the_references_and_survive_an_export(client, around):
    settings = {"optimizer": "adam", **AROUND[around]}
    twin = Twin(inside(), settings)
    session = client.create(inside(), **settings, durability="memory")
    for gradient in gradients(6):
        params = session.step(gradient)
        twin.step(gradient)
        assert flat(params).tobytes() == twin.state.params.tobytes()
    exported = session.export()
    assert twin.differing(exported) == []
    if "ema_decay" in settings:
        averaged = session.parameters(at="ema")
        assert flat(averaged).tobytes() == twin.state.slots["ema"].tobytes() != twin.state.params.tobytes()
    again = client.restore(exported)
    assert again.settings == session.settings and again.step_number == 6
    change = {"clip_norm": 0.5, "schedule": {"name": "step", "step_size": 7, "gamma": 0.5}}
    again.update(**change)
    twin.change(change)
    for number, gradient in enumerate(gradients(3, seed=7), 7):  # the schedule goes on at the step's number
        lr = twin.settings.hyper.lr * (1.0 if number <= 7 else 0.5)
        assert again.info()["lr"] == lr
        carried = {"gradient_scale": number / 8, "lr": 0.25} if number == 8 else None
        if carried:
            twin.change(carried)
        twin.step(gradient)
        again.step(gradient, settings=carried)
    assert twin.differing(again.export()) == []
    for one in (session, again):
        one.delete(anyway=True)


def test_the_session_tells_the_next_lr(client):
    session = client.create(
        [1.0, 2.0], lr=0.5, schedule={"name": "linear", "total_steps": 4, "start_factor": 0.5}, durability="memory"
    )
    told = []
    for _ in range(6):
        told.append(session.info()["lr"])
        session.step([0.5, 0.25])
    assert told == [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5]
    assert session.info()["optimizer"]["schedule"]["name"] == "linear"
    session.update(schedule={"name": "constant"})
    assert session.info()["lr"] == 0.5 and "schedule" not in session.info()["optimizer"]
    session.delete(anyway=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bound_for_each_element(client, dtype):
    """By tensor, in its shape or one number for all of it; what is not named has none. They are exported, and go on."""
    start = {name: array.astype(dtype) for name, array in begun().items()}
    rng = np.random.default_rng(5)
    room = rng.uniform(0, 0.2, SHAPES["matrix"]).astype(dtype)
    lower = {"matrix": start["matrix"] - room, "scalar": start["scalar"] - dtype_of(dtype)(0.125)}
    upper = {"matrix": start["matrix"] + room, "bias": 9.0}
    session = client.create(start, 0.1, lower=lower, upper=upper, durability="memory")
    twin = Twin(start, {"optimizer": "adam", "lr": 0.1, "lower": "array", "upper": "array"}, dtype)
    everywhere = {
        "lower": {"bias": -np.inf, "empty": -np.inf, **lower},
        "upper": {"empty": np.inf, "scalar": np.inf, **upper},
    }
    for side, bound in everywhere.items():
        twin.state.slots[side] = np.concatenate(
            [np.broadcast_to(np.asarray(bound[name], dtype), SHAPES[name]).reshape(-1) for name in NAMES]
        )
    assert session.settings["lower"] == session.settings["upper"] == "array"
    for gradient in gradients(5):
        params = session.step(gradient)
        twin.step(gradient)
        assert flat(params).tobytes() == twin.state.params.tobytes()
    assert (params["matrix"] == upper["matrix"]).any() and (params["matrix"] == lower["matrix"]).any()
    exported = session.export()
    assert twin.differing(exported) == []
    again = client.restore(exported)
    for gradient in gradients(3, seed=3):
        twin.step(gradient)
        again.step(gradient)
    assert twin.differing(again.export()) == []
    with pytest.raises(InvalidSettings, match="fixed when it was created"):
        again.update(lower=0)
    for one in (session, again):
        one.delete(anyway=True)


def dtype_of(name):
    return np.dtype(name).type


@pytest.fixture(scope="module")
def blocking(server):
    with adamd.connect(server.url) as made:
        yield made


ONES = {"a": [1.0, 2.0], "b": [3.0]}


@pytest.mark.parametrize(
    ("settings", "error", "path", "words"),
    [
        ({"lower": 1.5}, InvalidSettings, "parameters", "element 0 of 'a' is 1.0; wanted at least lower, which is 1.5"),
        ({"upper": {"b": 2.5}}, InvalidSettings, "parameters", "element 0 of 'b' is 3.0; wanted at most upper"),
        ({"upper": {"a": [1.0, 1.5]}}, InvalidSettings, "parameters", "element 1 of 'a' is 2.0"),
        ({"lower": {"a": [0.0, 2.5]}, "upper": {"a": [9.0, 2.0]}}, InvalidSettings, "lower",
         "element 1 of 'a' is 2.5; wanted at most upper, which is 2.0"),
        ({"lower": 0.5, "upper": {"a": [9.0, 0.25]}}, InvalidSettings, "lower", "element 1 of 'a' is 0.5"),
        ({"lower": {"a": [1.0]}}, WrongLayout, None, "has shape [2], its bounds [1]"),
        ({"lower": {"c": 1.0}}, WrongLayout, None, "there is no tensor 'c'; there are a, b"),
        ({"lower": "array"}, InvalidSettings, "lower", "its numbers and the parameters come with the creation"),
        ({"lower": [0.0, 0.0, 0.0]}, InvalidSettings, "lower", "lower is a list of 3"),
        ({"lower": 2, "upper": 1}, InvalidSettings, "lower", "wanted at most upper"),
        ({"schedule": {"name": "cosine", "T_max": 3}}, InvalidSettings, "schedule.T_max", "did you mean total_steps?"),
        ({"groups": [{"tensors": ["*.bias"], "lr": 1}]}, InvalidSettings, "groups[0].tensors[0]", "no tensor matches"),
        ({"clip_norm": -1}, InvalidSettings, "clip_norm", "0 is off"),
        ({"clip_norms": 1}, InvalidSettings, "clip_norms", "did you mean clip_norm?"),
    ],
)  # fmt: skip
def test_refused_and_nothing_made(blocking, settings, error, path, words):
    with pytest.raises(error) as caught:
        blocking.create(ONES, name="refused-around", **settings)
    assert words in str(caught.value)
    assert path is None or caught.value.extra["path"] == path
    with pytest.raises(adamd.errors.UnknownSession):
        blocking.session("refused-around")


def test_parameters_that_come_later_have_to_lie_within(server, blocking):
    """A session made from a layout has scalar bounds only, and holds its first parameters to them."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def call(method, path, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    layout = {"layout": [{"name": "w", "shape": [2]}], "dtype": "float32", "durability": "memory"}
    status, told = call("POST", "/v1/sessions", layout | {"optimizer": {"lower": {"w": [0.0, 1.0]}}})
    assert (status, told["path"]) == (422, "lower")
    status, made = call("POST", "/v1/sessions", layout | {"optimizer": {"lower": 0.0}})
    assert status == 201
    path = f"/v1/sessions/{made['id']}/parameters"
    status, told = call("PUT", path, {"w": [1.0, -0.5]})
    assert (status, told["code"]) == (422, "invalid_settings") and "element 1 of 'w' is -0.5" in told["detail"]
    assert call("PUT", path, {"w": [1.0, 0.5]})[0] == 200
    # Safetensors: the bounds are tensors of their own, where the settings say so; else they are parameters like others.
    tensors = {"w": np.float32([1, 2]), "lower:w": np.float32([-np.inf, 1.5])}
    for optimizer, names in ({"lower": "array"}, ["w"]), ({}, ["lower:w", "w"]):
        document = {"optimizer": optimizer, "durability": "memory", "dtype": "float32"}
        finite = tensors if optimizer else tensors | {"lower:w": np.float32([0, 1])}
        body = save(finite, metadata={"adamd": json.dumps(document)})
        status, made = call("POST", "/v1/sessions", body, "application/vnd.safetensors")
        assert status == 201 and [one["name"] for one in made["layout"]] == names
        if optimizer:
            session = blocking.session(made["id"])
            assert session.step({"w": np.float32([0.0, 1.0])}, lr=5.0)["w"].tolist() == [1.0, 1.5]
    spoilt = save({"w": np.float32([1, 2]), "lower:w": np.float32([0, np.nan])}, metadata={"adamd": json.dumps(
        {"optimizer": {"lower": "array"}})})  # fmt: skip
    status, told = call("POST", "/v1/sessions", spoilt, "application/vnd.safetensors")
    assert status == 422 and "element 1 of 'w' is nan; wanted a number" in told["detail"]
    connection.close()


def test_bounds_stay_when_parameters_are_set_again(blocking):
    session = blocking.create({"w": np.float32([1, 2])}, lower={"w": [0.5, 0.5]}, lr=9.0)
    session.set_parameters({"w": np.float32([4, 5])})
    with pytest.raises(InvalidSettings, match="element 0 of 'w' is 0.25"):
        session.set_parameters({"w": np.float32([0.25, 5])})
    assert session.step({"w": np.float32([1, 1])})["w"].tolist() == [0.5, 0.5]
    session.delete(anyway=True)


def test_no_average_where_there_is_none(client):
    session = client.create([1.0], durability="memory")
    with pytest.raises(InvalidRequest, match="keeps none: create it with ema_decay"):
        session.parameters(at="ema")
    with pytest.raises(InvalidRequest, match="known are average, ema"):
        session.parameters(at="emas")
    assert session.step([1.0]).shape == (1,)
    session.delete(anyway=True)


def test_every_encoding_has_the_norm_of_what_it_means(blocking):
    """int8 and sparse are clipped as the dense vector that they stand for; sparse-lazy by the norm of what it names."""
    size = 70_000
    rng = np.random.default_rng(3)
    start, gradient = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    settings = {
        "clip_norm": 0.5,
        "ema_decay": 0.5,
        "lower": -2.0,
        "durability": "memory",
        "optimizer": "sgd",
        "lr": 1.0,
    }
    start = start.clip(-2.0)
    one, other = (blocking.create(start, **settings, encoding=kind) for kind in ("int8", "raw"))
    meant = np.empty(size, np.float32)
    body = encodings.encode_int8(gradient)
    encodings.decode_int8(*encodings.int8_parts(np.frombuffer(body, np.uint8), size), 0, meant)
    assert one.step(gradient).tobytes() == other.step(meant).tobytes()
    one.encoding = "raw"
    few = np.zeros(size, np.float32)
    few[[3, 69_000]] = 3.0, -4.0
    named = [3, 69_000], np.float32([3.0, -4.0])
    assert one.step(adamd.Sparse(*named)).tobytes() == other.step(few).tobytes()
    before = one.parameters()
    after = one.step(adamd.Sparse(*named, lazy=True))
    moved = after - before
    assert np.flatnonzero(moved).tolist() == [3, 69_000]
    np.testing.assert_allclose(moved[[3, 69_000]], [-0.3, 0.4], rtol=1e-4)  # a norm of 5 became 0.5
    for session in (one, other):
        session.delete(anyway=True)


def test_a_gradient_that_cannot_be_scaled_is_refused_and_counts_nothing(client):
    session = client.create(np.float32([1, 2]), gradient_scale=1e10, durability="memory")
    with pytest.raises(BadGradient) as caught:
        session.step(np.float32([1.0, 1e10]))
    assert caught.value.extra["index"] == 1 and session.info()["step"] == 0
    assert session.step(np.float32([1.0, 2.0])).shape == (2,)
    session.delete(anyway=True)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_after_kill_9(server_factory, transport):
    """Snapshots every third step; the server dies without a word; another folds the log to the very bits, and goes on."""
    server = server_factory(env={"ADAMD_SNAPSHOT_RECORDS": 3})
    twins = {}

    def connect():
        return shells.connect(transport, shells.url_of(transport, server.port, server.grpc_port))

    wide = {"lower": {"matrix": -0.5}, "upper": {"matrix": np.full(SHAPES["matrix"], 0.5).tolist()}, "lr": 0.3}
    with connect() as client:
        for around in [*AROUND, "array"]:
            start = inside() if around != "array" else inside(-0.5, 0.5)
            settings = {"optimizer": "adam", **(wide if around == "array" else AROUND[around])}
            twin = Twin(start, settings | ({"lower": "array", "upper": "array"} if around == "array" else {}))
            if around == "array":
                matrix = slice(twin.bounds[NAMES.index("matrix")], twin.bounds[NAMES.index("matrix") + 1])
                for side, least in (("lower", -np.inf), ("upper", np.inf)):
                    twin.state.slots[side][:] = least
                    twin.state.slots[side][matrix] = -0.5 if side == "lower" else 0.5
            session = client.create(start, **settings)
            twins[around] = session.id, twin
            for number, gradient in enumerate(gradients(5)):
                carried = {"schedule": {"name": "exponential", "gamma": 0.5}} if number == 2 else None
                session.step(gradient, settings=carried)
                if carried:
                    twin.change(carried)
                twin.step(gradient)
    server.kill()
    server.restart()
    with connect() as client:
        for around, (ref, twin) in twins.items():
            session = client.session(ref)
            assert twin.differing(session.export()) == [], around
            for gradient in gradients(2, seed=9):
                session.step(gradient)
                twin.step(gradient)
            assert twin.differing(session.export()) == [], around


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_bound_is_taken_away_and_the_replay_knows(server_factory, transport):
    """By PATCH and with a step; one with a number for each element is an array of the state, and stays."""
    server = server_factory()
    with shells.connect(transport, shells.url_of(transport, server.port, server.grpc_port)) as client:
        settings = {"optimizer": "adam", "lr": 0.5, "lower": -3.0, "upper": 3.0}
        twin, session = Twin(inside(), settings), client.create(inside(), **settings)
        for number, gradient in enumerate(gradients(9)):
            carried = {"lower": -np.inf} if number == 6 else None
            if number == 3:
                session.update(upper=np.inf)
                twin.change({"upper": None})
            session.step(gradient, settings=carried)
            if carried:
                twin.change({"lower": None})
            twin.step(gradient)
            here = flat(session.parameters())
            assert (here.max() > 3.0) == (number >= 3) and (here.min() < -3.0) == (number >= 6)
        assert not {"lower", "upper"} & session.info()["optimizer"].keys()
        session.update(lower=-9)
        assert session.info()["optimizer"]["lower"] == -9.0
        server.restart()
        assert twin.differing(client.session(session.id).export()) == []
        free = client.create({"w": np.float32([1, 2])}, lower=-np.inf, upper={"w": [9, 9]})
        assert "lower" not in free.info()["optimizer"]
        with pytest.raises(InvalidSettings, match="upper is null; this session has 'array', fixed when it was created"):
            free.update(upper=np.inf)
