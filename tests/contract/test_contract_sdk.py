"""What every shell of the SDK promises: HTTP and gRPC, blocking and asyncio, from one source."""

import json
import os
import urllib.request
import uuid
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import adamd
from adamd import errors
from contract import shells
from sdk.peers import Relay

QUICK = adamd.Timeout(connect=2, inactivity=5, total=30, first=2)


@pytest.fixture
def name():
    return f"contract-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def made_with_settings(client, name):
    """A session that has been used, with settings of every shape."""
    session = client.create(
        pair(),
        lr=0.5,
        name=name,
        groups=[{"tensors": ["b"], "lr": 0.125}],
        schedule={"name": "cosine", "total_steps": 100},
        stop={"relative_loss": {"window": 5}},
        lower=-2.5,
        upper={"w": np.full((3, 2), 9.0)},
    )
    session.step(pair())
    return session


def pair(dtype="f4", seed=7):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((3, 2)).astype(dtype), "b": rng.standard_normal(2).astype(dtype)}


def adam(p, gradients, lr):
    """The textbook, in float64."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


# -- steps


def test_it_is_adam(client):
    start, gradients = np.float64([1, -2, 3]), [np.float64([0.5, 1, -1]) * k for k in (1, 2, -3)]
    session = client.create(start, lr=0.1)
    for n, gradient in enumerate(gradients, 1):
        params = session.step(gradient, loss=0.5)
        assert session.step_number == n
    np.testing.assert_allclose(params, adam(start, gradients, 0.1), rtol=1e-13)
    assert (session.parameters() == params).all()


def test_lists_of_numbers_are_the_same_as_arrays(client):
    start, gradient = [0.1, -0.2], [0.3, 1]
    listed = client.create(start, lr=0.1, dtype="float32", on_bad_gradient="skip")
    arrays = client.create(np.float32(start), lr=0.1)
    assert listed.dtype == arrays.dtype == "float32"
    assert listed.step(gradient).tobytes() == arrays.step(np.float32(gradient)).tobytes()
    taken = adamd.Sparse([1], [0.5])
    assert listed.step(taken).tobytes() == arrays.step(adamd.Sparse([1], np.float32([0.5]))).tobytes()
    for large in ([1.0, 1e39], [1.0, 10**400], adamd.Sparse([1], [1e39])):  # a bad gradient, as 1e38 would be
        assert (listed.step(large) == arrays.parameters()).all()
    assert (listed.skipped, listed.step_number) == (3, 2)
    with pytest.raises(errors.WrongDtype, match="float64"):
        listed.step(np.array(gradient))
    assert client.create(start).dtype == "float64"


@pytest.mark.parametrize("empty", [[], np.zeros((2, 0), "f4"), {"a": np.zeros(0, "f4")}], ids=["list", "array", "dict"])
def test_a_session_of_no_elements_steps_and_moves_as_any_other(client, empty):
    """As torch, which warns of such parameters and takes them: a layer of size 0 must not stop a script."""
    session = client.create(empty, lr=0.1, clip_norm=1.0, ema_decay=0.9, keep_best=True, stop={"max_steps": 3})
    for number, encoding in enumerate(("raw", "int8", adamd.TopK(0.5)), 1):
        session.encoding = encoding
        told = session.step(empty, loss=0.5)
        assert np.size(told["a"] if isinstance(empty, dict) else told) == 0
        assert (session.step_number, session.diverged) == (number, False)
    assert session.stop == "max_steps"
    again = client.restore(session.export())
    again.step(empty)
    assert again.step_number == 4
    with pytest.raises(errors.WrongLayout, match="no tensors"):
        client.create({})


@pytest.mark.parametrize("durability", ["committed", "memory"])
@pytest.mark.parametrize("shape", [(), (2, 0), (4, 5, 6), (1_500_000,)])
def test_arrays_of_every_shape(client, durability, shape):
    session = client.create(np.ones(shape, "f4"), lr=0.5, durability=durability)
    out = session.step(np.ones(shape, "f4"))
    assert (out.shape, out.dtype) == (shape, np.float32)
    np.testing.assert_allclose(out, 0.5, atol=1e-6)
    assert session.step(np.ones(shape, "f4"), out=out) is out
    np.testing.assert_allclose(out, 0.0, atol=1e-5)
    assert (session.parameters() == out).all()
    session.delete(anyway=True)


def test_tensors_left_out_and_mixed_dtypes(client):
    start = pair("f8")
    session = client.create(start, lr=0.01, groups=[{"tensors": ["b"], "lr": 0.5}])
    first = session.step({"w": np.ones((3, 2), "f2"), "b": np.ones(2, "f4")})
    np.testing.assert_allclose(start["w"] - first["w"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(start["b"] - first["b"], 0.5, rtol=1e-4)
    second = session.step({"b": np.ones(2, "f4"), "w": None})
    assert (second["w"] == first["w"]).all()
    assert not (second["b"] == first["b"]).any()


def test_settings_and_metrics_travel_with_a_step(client):
    session = client.create(np.zeros(2, "f4"), lr=0.1)
    params = session.step(np.ones(2, "f4"), loss=0.5, lr=0.25, settings={"weight_decay": 0.0}, metrics={"acc": 1})
    np.testing.assert_allclose(params, -0.25, rtol=1e-5)
    assert session.settings["lr"] == 0.25 == session.info()["optimizer"]["lr"]
    session.step(np.ones(2, "f4"), loss=float("nan"))  # a loss that is no number must not cost the step
    assert session.step_number == 2


def work(connect, durability):
    """Do the same as any other shell; return every byte that came of it."""
    client = connect()
    session = client.create(pair(), lr=0.1, amsgrad=True, weight_decay=0.01, durability=durability, labels={"a": "b"})
    came = []
    for k in range(4):
        gradient = pair(seed=k) if k != 2 else {"w": pair(seed=k)["w"]}
        params = session.step(gradient, loss=1 / (k + 1), lr=0.1 / (k + 1))
        came += [params["w"].tobytes(), params["b"].tobytes()]
    large = client.create(np.linspace(-1, 1, 700_001, dtype="f4"), lr=0.1, durability=durability)
    came.append(large.step(np.linspace(1, -1, 700_001, dtype="f4")).tobytes())
    document = session.info()
    for own in ("id", "incarnation", "chain", "created_at"):
        del document[own]
    large.delete(anyway=True)
    return came, document


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_the_same_work_gives_the_same_bytes_and_words(server, connect, durability):
    with shells.connect("http", server.url) as plain:
        wanted = work(lambda: plain, durability)
    assert work(connect, durability) == wanted


# -- one session, several clients


def test_a_step_that_was_applied_is_replayed_and_another_is_a_conflict(client):
    start, g = np.zeros(2, "f4"), np.ones(2, "f4")
    one = client.create(start)
    two = client.session(one.id)
    first = one.step(g)
    assert (two.step(g) == first).all()
    one.step(g)
    with pytest.raises(errors.StepConflict) as caught:
        two.step(2 * g)
    assert caught.value.step == 2
    one.step(g)
    with pytest.raises(errors.StepSuperseded) as caught:
        two.step(g)
    assert caught.value.extra["applied"] is True
    now = two.parameters()
    assert (two.step_number, two.chain) == (3, one.chain)
    assert (now == one.parameters()).all()
    two.step(g)


def test_lost_history_is_told_and_refresh_accepts_it(client, tmp_path, name):
    session = client.create(np.zeros(2, "f4"), name=name, ema_decay=0.9)
    session.step(np.ones(2, "f4"))
    session.export(tmp_path / "one")
    session.step(np.ones(2, "f4"))
    seen = client.session(name)
    session.delete(anyway=True)
    back = client.restore(tmp_path / "one", name=name)
    seen._track.now = replace(seen._track.now, id=back.id)  # what a store that went back looks like
    for call in (lambda: seen.step(np.ones(2, "f4")), seen.parameters, lambda: seen.parameters(at="ema")):
        with pytest.raises(errors.HistoryLost) as caught:
            call()
        assert caught.value.step == 1
    assert seen.refresh()["step"] == 1
    seen.step(np.ones(2, "f4"))


# -- sessions


def test_open_creates_then_resumes(client, name):
    made = client.open(name, pair(), lr=0.5)
    params = made.step(pair())
    again = client.open(name, pair(), lr=0.5)
    assert (again.id, again.step_number, again.chain, again.settings["lr"]) == (made.id, 1, made.chain, 0.5)
    assert (client.open(name).parameters()["w"] == params["w"]).all()
    with pytest.raises(errors.WrongLayout, match=name):
        client.open(name, {"w": pair()["w"]})
    with pytest.raises(errors.SessionExists) as caught:
        client.create(pair(), name=name)
    assert (caught.value.extra["id"], caught.value.step) == (made.id, 1)
    made.delete(anyway=True)
    for call in (lambda: client.session(name), lambda: client.session(made.id), made.info, made.delete):
        with pytest.raises(errors.SessionDeleted):
            call()
    with pytest.raises(errors.UnknownSession):
        client.open(f"{name}-other")


OTHERS = [
    ({"lr": 0.1}, "lr is 0.5 there and 0.1 here"),
    ({"betas": (0.8, 0.999)}, "betas is [0.9, 0.999] there and [0.8, 0.999] here"),
    ({"lr": 0.1, "eps": 1e-6}, "eps is 1e-08 there and 1e-06 here"),
    ({"optimizer": "sgd", "momentum": 0.9}, 'optimizer is "adam" there and "sgd" here'),
    ({"amsgrad": True}, "amsgrad is false there and true here"),
    ({"durability": "memory"}, 'durability is "committed" there and "memory" here'),
    ({"groups": []}, "groups is "),
    ({"groups": [{"tensors": ["b"], "lr": 0.25}]}, "groups is "),
    ({"schedule": {"name": "cosine", "total_steps": 50}}, "schedule is "),
    ({"stop": {"max_steps": 9}}, "stop is "),
    ({"lower": -3.5}, "lower is -2.5 there and -3.5 here"),
    ({"clip_norm": 0.5}, "clip_norm is 0"),
    ({"learningrate": 0.5}, "has no setting 'learningrate'"),
    ({"clip_nrom": 0.5}, "did you mean clip_norm?"),
    ({"momentum": 0.5}, "is adam, which has no setting 'momentum'"),
]


@pytest.mark.parametrize(("given", "said"), OTHERS, ids=[str(given) for given, _ in OTHERS])
def test_open_refuses_other_settings_than_the_sessions(client, made_with_settings, given, said):
    session = made_with_settings
    for parameters in (None, pair()):
        with pytest.raises(errors.InvalidSettings) as caught:
            client.open(session.name, parameters, **given)
        assert said in caught.value.detail and repr(session.name) in caught.value.detail
        assert caught.value.step == 1
    assert client.session(session.id).info() == session.info()  # nothing was changed
    assert client.open(session.name, **given, on_other_settings="keep").settings == client.session(session.id).settings


def test_open_takes_the_settings_that_the_session_has(client, made_with_settings):
    session = made_with_settings
    same = client.open(
        session.name,
        pair(),
        np.float64(0.5),
        optimizer="adam",
        betas=[0.9, 0.999],
        eps=1e-8,
        weight_decay=0,
        amsgrad=None,
        groups=[{"lr": 0.125, "tensors": ("b",)}],
        dtype="float32",
        durability="committed",
        schedule={"name": "cosine", "total_steps": 100},
        stop={"relative_loss": {"window": 5}},
        lower=-2.5,
        upper={"w": np.full((3, 2), 9.0)},
        clip_norm=0,
        keep_best=False,
        eps_form="outside",
        labels={"other": "words"},
    )
    assert (same.id, same.step_number) == (session.id, 1)
    with pytest.raises(errors.InvalidRequest, match="'raise' or 'keep'"):
        client.open(session.name, on_other_settings="ignore")
    with pytest.raises(errors.InvalidSettings, match="dtype"):
        client.open(session.name, dtype="float64")


@pytest.mark.parametrize("size", [2, 800_000])
def test_open_sends_the_parameters_that_its_maker_did_not_come_to_send(server, client, name, size):
    document = {"name": name, "layout": [{"name": "parameters", "shape": [size]}], "vector": True, "dtype": "float32"}
    request = urllib.request.Request(
        f"{server.url}/v1/sessions", json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(errors.ParametersMissing):
        client.open(name).step(np.ones(size, "f4"))
    session = client.open(name, np.full(size, 3, "f4"))
    assert (session.parameters() == 3).all()
    session.step(np.ones(size, "f4"))
    assert (client.open(name, np.zeros(size, "f4")).parameters() < 3).all()


def test_update_and_list(client, name):
    made = [client.create(np.zeros(3, "f4"), name=f"{name}-{k}", labels={"k": str(k)}) for k in range(3)]
    told = made[0].update(lr=0.5, betas=(0.8, 0.9), labels={"who": "me"})
    assert (told["labels"], told["optimizer"]["betas"], made[0].settings["lr"]) == ({"who": "me"}, [0.8, 0.9], 0.5)
    listed = {item["id"]: item for item in client.sessions(page_size=2)}
    assert {one.id for one in made} <= listed.keys()
    item = listed[made[1].id]
    assert (item["name"], item["step"], item["optimizer"]) == (f"{name}-1", 0, "adam")
    assert (item["parameters"], item["dtype"], item["durability"]) == (3, "float32", "committed")
    assert item["labels"] == {"k": "1"} and item["created_at"] > 1e9
    assert client.info()["version"] == adamd.__version__


@pytest.mark.parametrize("size", [3, 800_000])
def test_export_and_restore_keep_every_bit(client, tmp_path, size):
    session = client.create(np.ones(size, "f4"), amsgrad=True, labels={"a": "b"})
    for k in range(2):
        session.step(np.full(size, k + 1, "f4"))
    path = session.export(tmp_path / "state")
    assert path.read_bytes() == session.export()
    assert os.listdir(tmp_path) == ["state"]
    twin = client.restore(path)
    assert (twin.name, twin.step_number, twin.info()["labels"]) == (None, 2, {"a": "b"})
    changed = client.restore(path.read_bytes(), labels={}, durability="memory", settings={"lr": 0.5})
    assert (changed.settings["lr"], changed.info()["durability"]) == (0.5, "memory")
    assert (session.step(np.ones(size, "f4")) == twin.step(np.ones(size, "f4"))).all()
    changed.delete(anyway=True)


@pytest.mark.parametrize("size", [2, 800_000])
def test_parameters_can_be_set_before_step_1(client, size):
    session = client.create({"w": np.zeros(size, "f4"), "b": np.zeros(2, "f4")})
    session.set_parameters({"w": np.ones(size, "f2"), "b": np.full(2, 2, "f4")})
    assert (session.parameters()["w"] == 1).all() and (session.parameters()["b"] == 2).all()
    session.step({"w": np.ones(size, "f4"), "b": np.ones(2, "f4")})
    with pytest.raises(errors.ParametersFixed):
        session.set_parameters({"w": np.ones(size, "f4"), "b": np.ones(2, "f4")})


# -- errors


def test_bad_gradients_are_raised_or_skipped(connect):
    bad = np.float32([1, np.nan])
    session = connect().create(np.ones(2, "f4"))
    with pytest.raises(errors.BadGradient) as caught:
        session.step(bad)
    assert caught.value.extra["index"] == 1
    assert (session.skipped, session.step_number) == (0, 0)
    same = connect(on_bad_gradient="skip").session(session.id)
    before, out = same.step(np.ones(2, "f4")), np.empty(2, "f4")
    assert same.step(bad, out=out) is out
    assert (out == before).all()
    assert (same.skipped, same.step_number) == (1, 1)
    same.step(np.ones(2, "f4"))


@pytest.mark.parametrize("encoding", ["raw", "int8"])
def test_a_bad_element_is_told_by_its_tensor(client, encoding):
    session = client.create(
        {"b": np.ones(300, "f4"), "w": np.ones((2, 3), "f4"), "z": np.float32(1)}, encoding=encoding
    )
    gradient = {name: np.ones_like(value) for name, value in session.parameters().items()}
    for name, place in (("w", [1, 2]), ("b", [299]), ("z", [])):
        bad = {**gradient, name: gradient[name].copy()}
        bad[name][tuple(place)] = np.nan
        with pytest.raises(errors.BadGradient) as caught:
            session.step(bad)
        assert (caught.value.extra["tensor"], caught.value.extra["place"]) == (name, place)
        assert str(caught.value).startswith(f"gradient '{name}'" + (f" at {place}: " if place else ": "))
    if encoding == "raw":  # the others send every tensor
        with pytest.raises(errors.BadGradient, match=r"^gradient 'w' at \[0, 1\]: element 1 of the gradient"):
            session.step({"w": np.float32([[1, np.inf, 1], [1, 1, 1]])})
    for bad in ({**gradient, "w": [[1, 1, 1], [1, 1, 1e300]]}, {"w": adamd.Sparse([5], [1e300], lazy=True)}):
        with pytest.raises(
            errors.BadGradient, match=r"^gradient 'w'.* at \[(1, 2|0)\]: 1e\+300, which no float32 holds$"
        ):
            session.step(bad)  # the SDK itself refuses these
    session.step(gradient)


def refused(call):
    with pytest.raises(errors.AdamdError) as caught:
        call()
    return type(caught.value), caught.value.detail, caught.value.step, caught.value.extra


def faults(client):
    """Return what each wrong call of this shell is told. No whole numbers: protobuf would say 2.0 where JSON says 2."""
    session = client.create(np.zeros(2, "f4"))
    other = client.create(np.float32([3.3e38, 0]), lr=3e37)
    other.step(np.float32([-1, 0]))
    assert other.diverged
    return [
        refused(lambda: client.create(np.zeros(2, "f4"), lr=-1.5)),
        refused(lambda: client.create(np.zeros(2, "f4"), name="Not A Name")),
        refused(lambda: client.create(np.zeros(2, "f4"), groups=[{"tensors": ["x"], "lr": 1}])),
        refused(lambda: session.update(lr=1e300, betas=[2.5, 3.5])),
        refused(lambda: session.update(learning_rate=1)),
        refused(lambda: session.step(np.ones(2, "f4"), settings={"lr": -2.5})),
        refused(lambda: session.step(np.float32([np.inf, 1]))),
        refused(lambda: other.step(np.float32([1, 0])))[:2],
        refused(lambda: client.session("no-such-session")),
        refused(lambda: client.session("no such")),
        refused(lambda: client.restore(b"not safetensors at all")),
    ]


def test_errors_are_typed_and_worded_the_same(server, connect):
    with shells.connect("http", server.url) as plain:
        wanted = faults(plain)
    told = faults(connect())
    for one, two in zip(told, wanted, strict=True):
        assert one == two


# -- networks and servers that fail


@pytest.fixture
def through(server, kind):
    """A relay to the server: ``through(cut)`` gives what stands for the server, with its `relay`."""
    made = []

    def make(cut):
        port = server.grpc_port if kind.startswith("grpc") else server.port
        relay = Relay(port, cut)
        made.append(relay)
        return SimpleNamespace(port=relay.port, grpc_port=relay.port, relay=relay)

    yield make
    for relay in made:
        relay.close()


CUTS = [0, 1, 100, 300, 600, 1000, 2000]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_wherever_the_connection_is_cut_every_step_counts_once(client, connect, through, direction, reset):
    gradients = [np.random.default_rng(k).standard_normal(50).astype("f4") for k in range(4)]
    session = client.create(np.zeros(50, "f4"))
    twin = client.create(np.zeros(50, "f4"))
    wanted = [twin.step(gradient).tobytes() for gradient in gradients]

    def cut(n):
        limit = CUTS[n] if n < len(CUTS) else None
        return (limit, None, reset) if direction == "up" else (None, limit, reset)

    at = through(cut)
    same = connect(at, timeout=QUICK).session(session.id)
    assert [same.step(gradient).tobytes() for gradient in gradients] == wanted
    assert at.relay.connections > 3
    assert session.info()["step"] == 4


@pytest.mark.parametrize("cuts", [[2_000_000], [(None, 2_000_000)], [3_900_000, (None, 1_000_000)]], ids=str)
def test_large_bodies_are_cut_too(client, connect, through, cuts):
    gradient = np.linspace(1, -1, 1_000_000, dtype="f4")
    session, twin = (client.create(np.zeros(1_000_000, "f4"), durability="memory") for _ in range(2))
    wanted = twin.step(gradient)

    def cut(n):
        if n >= len(cuts):
            return None, None, False
        return (*cuts[n], False) if isinstance(cuts[n], tuple) else (cuts[n], None, False)

    at = through(cut)
    out = np.empty(1_000_000, "f4")
    assert connect(at, timeout=QUICK).session(session.id).step(gradient, out=out) is out
    assert (out == wanted).all()
    assert at.relay.connections == len(cuts) + 1
    assert session.info()["step"] == 1
    session.delete(anyway=True)
    twin.delete(anyway=True)


@pytest.mark.parametrize("size", [3, 800_000])
def test_a_creation_whose_answer_is_lost_is_made_once(client, connect, through, name, size):
    at = through(lambda n: (None, (60, 150, 200)[n] if n < 3 else None, False))
    session = connect(at, timeout=QUICK).create(np.ones(size, "f4"), name=name)
    assert at.relay.connections > 3
    assert [item["id"] for item in client.sessions() if item["name"] == name] == [session.id]
    assert (client.session(name).parameters() == 1).all()


def test_a_deletion_whose_answer_is_lost_has_happened(client, connect, through):
    session = client.create(np.ones(3, "f4"))
    at = through(lambda n: (None, None, False))
    same = connect(at, timeout=QUICK).session(session.id)
    at.relay.cut = lambda n: (None, 70 if n < 3 else None, False)
    at.relay.drop()
    same.delete(anyway=True)
    with pytest.raises(errors.SessionDeleted):
        session.info()


def test_an_export_that_is_cut_is_whole_in_the_end(client, connect, through, tmp_path):
    session = client.create(np.arange(300_000, dtype="f4"))
    wanted = session.export()
    at = through(lambda n: (None, 1_000_000 if n == 0 else None, False))
    path = connect(at, timeout=QUICK).session(session.id).export(tmp_path / "state")
    assert path.read_bytes() == wanted
    assert at.relay.connections == 2


def test_a_server_that_is_killed_is_waited_for(server_factory, connect):
    own = server_factory()
    client = connect(own)
    session = client.create(np.zeros(4, "f4"))
    params = session.step(np.ones(4, "f4"))
    for _ in range(2):
        own.kill()
        own.start()
        params = session.step(np.ones(4, "f4"))
    assert session.step_number == 3
    assert (session.parameters() == params).all()


@pytest.mark.parametrize("labels", [{"team": 7}, {7: "blue"}, ["blue"]])
def test_labels_that_are_no_texts_are_refused_alike(client, labels):
    session = client.create([0.0])
    for refused in (lambda: client.create([0.0], labels=labels), lambda: session.update(labels=labels)):
        with pytest.raises(errors.InvalidRequest, match="wanted a"):
            refused()
    assert session.info()["labels"] == {}


def test_nobody_there_is_told_soon(connect):
    from servers import free_port

    port = free_port()
    at = SimpleNamespace(port=port, grpc_port=port)
    client = connect(at, timeout=adamd.Timeout(first=0.5))
    with pytest.raises(errors.RetriesExhausted, match="adamd serve") as caught:
        client.info()
    assert isinstance(caught.value.extra["last"], errors.TransportError)


def test_the_other_protocols_port_is_told_at_the_first_attempt(server, connect, kind):
    there = server.url if kind.startswith("grpc") else server.grpc_url
    client = connect(SimpleNamespace(port=server.grpc_port, grpc_port=server.port))
    for call in (client.info, lambda: client.open("any", np.zeros(1_000_000, "f4")), lambda: client.create(pair())):
        with pytest.raises(errors.TransportError, match=there) as caught:
            call()
        assert not isinstance(caught.value, errors.RetriesExhausted)


def test_a_closed_client_says_so(connect):
    client = connect()
    session = client.create(np.zeros(1, "f4"))
    client.close()
    with pytest.raises(errors.TransportError, match="closed"):
        session.step(np.zeros(1, "f4"))


def test_a_session_is_deleted_without_being_opened(client, name):
    session = client.create(np.zeros(3), name=name)
    session.step(np.ones(3))
    client.delete(name)
    for call in (session.parameters, lambda: client.delete(session.id)):
        with pytest.raises(errors.SessionDeleted):
            call()
    with pytest.raises(errors.UnknownSession):
        client.delete(f"{name}-never")
    again = client.create(np.zeros(3), name=name)
    client.delete(again.id)
