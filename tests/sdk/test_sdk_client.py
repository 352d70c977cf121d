"""The SDK against a real server."""

import os
import sys
import threading
import uuid
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

import adamd
from adamd import errors
from adamd.errors import (
    BadGradient,
    HistoryLost,
    InvalidRequest,
    InvalidSettings,
    SessionDeleted,
    SessionExists,
    StepConflict,
    StepSuperseded,
    UnknownSession,
    WrongDtype,
    WrongLayout,
)
from adamd.sansio import opening
from servers import ended


@pytest.fixture
def client(server):
    with adamd.connect(server.url) as made:
        yield made


@pytest.fixture
def name():
    return f"sdk-{uuid.uuid4().hex[:12]}"


def pair(dtype="f4"):
    rng = np.random.default_rng(7)
    return {"w": rng.standard_normal((3, 2)).astype(dtype), "b": rng.standard_normal(2).astype(dtype)}


def adam(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """The textbook, in float64."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def test_it_is_adam(client):
    start, gradients = np.float64([1, -2, 3]), [np.float64([0.5, 1, -1]) * k for k in (1, 2, -3)]
    session = client.create(start, lr=0.1)
    for n, gradient in enumerate(gradients, 1):
        params = session.step(gradient, loss=0.5)
        assert session.step_number == n
    np.testing.assert_allclose(params, adam(start, gradients, 0.1), rtol=1e-13)
    assert (session.parameters() == params).all()


@pytest.mark.parametrize("durability", ["committed", "memory"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5, 6), (300_000,)])
def test_arrays_in_arrays_out_in_the_same_shape(client, durability, shape):
    session = client.create(np.ones(shape, "f4"), lr=0.5, durability=durability)
    params = session.step(np.ones(shape, "f4"))
    assert (params.shape, params.dtype) == (shape, np.float32)
    np.testing.assert_allclose(params, 0.5, atol=1e-6)
    assert params.flags.writeable
    session.delete(anyway=True)


def test_named_tensors_groups_and_tensors_left_out(client):
    start = pair()
    session = client.create(start, lr=0.01, groups=[{"tensors": ["b"], "lr": 0.5}])
    first = session.step({name: np.ones_like(array) for name, array in start.items()})
    np.testing.assert_allclose(start["w"] - first["w"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(start["b"] - first["b"], 0.5, rtol=1e-4)
    second = session.step({"b": np.ones(2, "f4"), "w": None})
    assert (second["w"] == first["w"]).all()
    assert not (second["b"] == first["b"]).any()
    assert session.step_number == 2


def test_a_dict_comes_back_in_the_callers_order(client, name):
    """Where torch's order is p1, p2, p10, a zip over two dicts must not mix tensors of one shape."""
    start = {f"p{n}": np.full(2, n, "f4") for n in range(12)}
    ones, turned = dict.fromkeys(start, np.ones(2, "f4")), dict(reversed(start.items()))
    session = client.create(start, lr=0.0, name=name, ema_decay=0.5)
    narrow = client.open(name, start, answer_dtype="bfloat16")
    for mine in (session.step(ones), session.parameters(), session.parameters(at="ema"), narrow.parameters()):
        assert list(mine) == list(start)
        assert all((a == b).all() for a, b in zip(start.values(), mine.values(), strict=True))
    assert list(client.open(name, turned).parameters()) == list(turned)
    again = client.session(name)  # nobody says an order here
    assert list(again.parameters()) == list(again.layout.names) == sorted(start)
    assert (session.parameters(out=again.parameters())["p10"] == 10).all()


def test_a_gradient_goes_as_it_is_where_it_widens_exactly(client):
    exact = np.float32([0.5, 0.25])
    wanted = client.create(np.zeros(2)).step(exact.astype("f8"))
    for dtype in ("f2", "f4"):
        assert (client.create(np.zeros(2)).step(exact.astype(dtype)) == wanted).all()
    mixed = client.create(pair("f8")).step({"w": np.ones((3, 2), "f2"), "b": np.ones(2, "f4")})
    same = client.create(pair("f8")).step({"w": np.ones((3, 2)), "b": np.ones(2)})
    assert all((mixed[k] == same[k]).all() for k in same)
    with pytest.raises(WrongDtype, match="Convert"):
        client.create(np.zeros(2, "f4")).step(exact.astype("f8"))


def test_out_is_reused_and_may_be_the_gradient_itself(client):
    start = pair()
    session, twin = client.create(start), client.create(start)
    out = session.step(start)
    again = session.step(start, out=out)
    assert again is out
    gradient = {name: array.copy() for name, array in start.items()}
    twin.step(start)
    assert twin.step(gradient, out=gradient) is gradient
    assert all((gradient[k] == again[k]).all() for k in start)


def test_settings_travel_with_a_step_and_stay(client):
    session = client.create(np.zeros(2, "f4"), lr=0.1)
    params = session.step(np.ones(2, "f4"), lr=np.float64(0.25), settings={"weight_decay": 0.0}, metrics={"acc": 1})
    np.testing.assert_allclose(params, -0.25, rtol=1e-5)
    assert session.settings["lr"] == 0.25 == session.info()["optimizer"]["lr"]
    assert session.update(lr=0.5, betas=(0.8, 0.9), labels={"who": "me"})["labels"] == {"who": "me"}
    assert session.settings["betas"] == [0.8, 0.9]
    session.step(np.ones(2, "f4"))
    with pytest.raises(errors.InvalidSettings, match="lr"):
        session.update(lr=-1)
    with pytest.raises(errors.InvalidSettings, match="lr"):
        session.update(learning_rate=1)
    with pytest.raises(InvalidRequest, match="nothing to update"):
        session.update()
    with pytest.raises(errors.InvalidSettings, match="lr is nan"):
        session.step(np.ones(2, "f4"), lr=float("nan"))
    assert session.step_number == 2


def test_every_setting_of_create_arrives(client, name):
    session = client.create(
        np.zeros(2, "f4"),
        lr=0.1,
        name=name,
        optimizer="adamw",
        betas=(0.5, 0.75),
        eps=1e-4,
        weight_decay=0.5,
        amsgrad=True,
        maximize=True,
        labels={"a": "b"},
    )
    wanted = {"name": "adamw", "lr": 0.1, "betas": [0.5, 0.75], "eps": 1e-4, "weight_decay": 0.5}
    assert session.settings == wanted | {"amsgrad": True, "maximize": True, "groups": []}
    info = session.info()
    assert (info["name"], info["labels"], info["dtype"], info["vector"]) == (name, {"a": "b"}, "float32", True)
    assert session.name == name


def test_a_loss_that_is_nan_does_not_cost_the_step(client):
    session = client.create(np.zeros(2, "f4"))
    session.step(np.ones(2, "f4"), loss=float("nan"), metrics={"big": np.float64(1e308), "n": np.int64(3)})
    with pytest.raises(InvalidRequest, match="metric 'loss'"):
        session.step(np.ones(2, "f4"), loss="low")
    assert session.step_number == 1


def test_bad_gradients_are_raised_or_skipped(server, client):
    bad = np.float32([1, np.nan])
    session = client.create(np.ones(2, "f4"))
    with pytest.raises(BadGradient) as caught:
        session.step(bad)
    assert caught.value.extra["index"] == 1
    assert (session.skipped, session.step_number) == (0, 0)
    with adamd.connect(server.url, on_bad_gradient="skip") as other:
        same = other.session(session.id)
        before = same.step(np.ones(2, "f4"))
        out = np.empty(2, "f4")
        assert same.step(bad, out=out) is out
        assert (out == before).all()
        assert (same.skipped, same.step_number) == (1, 1)
        same.step(np.ones(2, "f4"))
        assert same.info()["step"] == 2
    with pytest.raises(InvalidRequest, match="'raise' or 'skip'"):
        adamd.connect(server.url, on_bad_gradient="ignore")


def test_open_creates_then_resumes_and_checks_the_layout(client, name):
    start = pair()
    made = client.open(name, start, lr=0.5)
    params = made.step(start)
    again = client.open(name, start, lr=0.5)
    assert (again.id, again.step_number, again.chain, again.settings["lr"]) == (made.id, 1, made.chain, 0.5)
    assert (client.open(name).parameters()["w"] == params["w"]).all()
    assert client.session(made.id).name == name
    for other in (
        {"w": start["w"]},
        start | {"w": np.zeros((2, 3), "f4")},
        pair("f8"),
        np.zeros(8, "f4"),
    ):
        with pytest.raises(WrongLayout, match=name):
            client.open(name, other)
    with pytest.raises(SessionExists) as caught:
        client.create(start, name=name)
    assert (caught.value.extra["id"], caught.value.step) == (made.id, 1)
    made.delete(anyway=True)
    for ref in (name, made.id):
        with pytest.raises(SessionDeleted):
            client.session(ref)
    with pytest.raises(SessionDeleted):
        client.open(name)
    with pytest.raises(UnknownSession):
        client.open(f"{name}-other")
    assert client.open(name, start).id != made.id


def test_who_comes_second_to_make_a_session_is_told_of_its_settings(client, name):
    logic = opening.open_(name, pair(), 0.25, {}, "raise")
    wanted = next(logic)
    with pytest.raises(UnknownSession) as absent:
        client._shell._call(wanted)
    client.create(pair(), name=name, lr=0.5)  # another client, between looking and making
    wanted = logic.throw(absent.value)
    with pytest.raises(SessionExists) as taken:
        client._shell._call(wanted)
    wanted = logic.throw(taken.value)
    with pytest.raises(InvalidSettings, match=r"lr is 0\.5 there and 0\.25 here"):
        logic.send(client._shell._call(wanted))


def test_two_clients_of_one_session_are_told_about_each_other(client):
    start, g = np.zeros(2, "f4"), np.ones(2, "f4")
    one = client.create(start)
    two = client.session(one.id)
    first = one.step(g)
    assert (two.step(g) == first).all()  # the very same gradient: it is a replay
    one.step(g)
    with pytest.raises(StepConflict) as caught:
        two.step(2 * g)
    assert caught.value.step == 2
    one.step(g)
    with pytest.raises(StepSuperseded) as caught:
        two.step(g)
    assert caught.value.extra["applied"] is True
    now = two.parameters()
    assert (two.step_number, two.chain) == (3, one.chain)
    assert (now == one.parameters()).all()
    two.step(g)
    with pytest.raises(StepConflict):
        one.step(2 * g)
    assert one.refresh()["step"] == 4
    one.step(2 * g)


def test_another_history_is_told_and_refresh_accepts_it(client, tmp_path, name):
    session = client.create(np.zeros(2, "f4"), name=name)
    session.step(np.ones(2, "f4"))
    session.export(tmp_path / "one.safetensors")
    session.step(np.ones(2, "f4"))
    seen = client.session(name)
    session.delete(anyway=True)
    back = client.restore(tmp_path / "one.safetensors", name=name)
    # What a store that went back looks like: the session that was seen at 2 is at 1 again.
    seen._track.now = replace(seen._track.now, id=back.id)
    for call in (lambda: seen.step(np.ones(2, "f4")), seen.parameters):
        with pytest.raises(HistoryLost) as caught:
            call()
        assert caught.value.step == 1
    seen._track.now = replace(seen._track.now, step=1)
    with pytest.raises(HistoryLost, match="another history"):
        seen.parameters()
    assert seen.refresh()["step"] == 1
    seen.step(np.ones(2, "f4"))


def test_export_and_restore_keep_every_bit(client, tmp_path, name):
    session = client.create(pair(), amsgrad=True, name=name, labels={"a": "b"})
    for k in range(3):
        session.step({"w": np.full((3, 2), k + 1, "f4"), "b": None if k == 1 else np.ones(2, "f4")})
    path = session.export(tmp_path / "state.safetensors")
    assert path.read_bytes() == session.export()
    assert os.listdir(tmp_path) == ["state.safetensors"]
    for source in (path, str(path), path.read_bytes()):
        twin = client.restore(source)
        assert (twin.name, twin.step_number, twin.info()["labels"]) == (None, 3, {"a": "b"})
        assert twin.settings == session.settings
    changed = client.restore(path, name=f"{name}-2", labels={}, durability="memory", settings={"lr": 0.5})
    info = changed.info()
    assert (info["name"], info["labels"], info["durability"]) == (f"{name}-2", {}, "memory")
    assert info["optimizer"]["lr"] == 0.5
    one, two = session.step(pair()), twin.step(pair())
    assert all((one[k] == two[k]).all() for k in one)
    vector = client.create(np.ones((2, 2)))
    assert client.restore(vector.export()).parameters().shape == (2, 2)


def test_what_is_no_export_is_refused(client, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"")
    with pytest.raises(InvalidRequest, match="empty"):
        client.restore(path)
    with pytest.raises(errors.MalformedBody):
        client.restore(b"not safetensors at all")
    with pytest.raises(InvalidRequest, match="no exported state"):
        client.restore(save({"w": np.zeros(2, "f4")}))
    with pytest.raises(FileNotFoundError):
        client.restore(tmp_path / "absent")


def test_a_failed_export_leaves_the_old_file(client, tmp_path):
    session = client.create(np.zeros(2, "f4"))
    path = tmp_path / "state"
    path.write_text("old")
    session.delete(anyway=True)
    with pytest.raises(SessionDeleted):
        session.export(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_parameters_can_be_set_before_step_1(client):
    session = client.create(pair())
    session.set_parameters({"w": np.ones((3, 2), "f2"), "b": np.ones(2, "f4")})
    assert (session.parameters()["w"] == 1).all()
    with pytest.raises(InvalidRequest, match="lack w"):
        session.set_parameters({"b": np.ones(2, "f4")})
    session.step(pair())
    with pytest.raises(errors.ParametersFixed):
        session.set_parameters(pair())


def test_the_list_follows_its_pages(client, name):
    made = {client.create(np.zeros(1, "f4"), name=f"{name}-{k}").id for k in range(5)}
    assert made <= {item["id"] for item in client.sessions(page_size=2)}
    listed = [item["id"] for item in client.sessions(page_size=2)]
    assert len(listed) == len(set(listed))
    assert client.info()["version"] == adamd.__version__


def test_a_diverged_session_says_so(client):
    session = client.create(np.float32([3.3e38, 0]), lr=3e37)
    session.step(np.float32([-1, 0]))
    assert session.diverged
    with pytest.raises(errors.Diverged):
        session.step(np.float32([1, 0]))
    assert np.isinf(session.parameters()[0])


def test_odd_references_reach_the_server_whole(client):
    for ref in ("no such", "a/b", "../info", "ä", "x?y=z", "%2e"):
        with pytest.raises(UnknownSession):
            client.session(ref)
    for ref in ("", None, 3):
        with pytest.raises(InvalidRequest):
            client.session(ref)


def test_many_threads_share_a_client_and_a_session(client):
    shared = client.create(np.zeros(3, "f4"), durability="memory")
    own = [client.create(np.zeros(1000, "f4"), durability="memory") for _ in range(4)]
    wrong = []

    def work(session):
        try:
            for k in range(25):
                params = session.step(np.full(1000, k + 1, "f4"))
                if len(set(params.tolist())) != 1:
                    wrong.append(params)
                shared.step(np.ones(3, "f4"))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(session,)) for session in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shared.step_number == 100 == shared.info()["step"]
    assert {session.step_number for session in own} == {25}


def test_a_forked_child_opens_connections_of_its_own(server):
    said = ended([sys.executable, "-W", "ignore", "-c", FORKED, server.url], within=60)
    assert said.stdout.split() == ["200", "200"], said


FORKED = """
import os, sys, numpy, adamd
client = adamd.connect(sys.argv[1])
mine = client.create(numpy.zeros(1000, "f4"), durability="memory")
child = os.fork()
if child == 0:
    mine = client.create(numpy.zeros(1000, "f4"), durability="memory")
for k in range(200):
    assert set(mine.step(numpy.full(1000, k + (child == 0), "f4")).shape) == {1000}
if child:
    assert os.waitpid(child, 0)[1] == 0
print(mine.step_number, flush=True)
os._exit(0)
"""


def test_torch_is_imported_when_it_is_used_and_only_that():
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        _ = adamd.tensorflow
    said = ended([sys.executable, "-c", "import adamd, sys; print(*sys.modules)"]).stdout.split()
    assert "adamd" in said
    assert not {"torch", "rich", "asyncio", "numba", "fastapi", "pydantic", "redis", "adamd_service"} & set(said)


def test_a_closed_client_says_so(server):
    client = adamd.connect(server.url)
    assert server.url in repr(client)
    session = client.create(np.zeros(1, "f4"))
    client.close()
    with pytest.raises(errors.TransportError, match="closed"):
        session.step(np.zeros(1, "f4"))


@pytest.mark.torch
def test_torch_tensors_go_as_they_are(client):
    import torch

    start = {"w": torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True), "b": torch.arange(4.0)[::2]}
    session = client.create(start, lr=0.5)
    assert session.dtype == "float32"
    assert (session.parameters()["b"] == [0, 2]).all()
    params = session.step({"w": torch.full((3, 2), 3.0, dtype=torch.bfloat16), "b": None}, loss=torch.tensor(0.5))
    np.testing.assert_allclose(params["w"], 0.5, rtol=1e-6)
    twin = client.create({"w": np.ones((3, 2), "f4"), "b": np.float32([0, 2])}, lr=0.5)
    assert (twin.step({"w": np.full((3, 2), 3, "f4")})["w"] == params["w"]).all()


def test_errors_are_the_built_in_kind_too_and_the_setting_that_is_wrong_is_blamed(client):
    for lr, said in (
        (float("nan"), "lr is nan; wanted finite"),
        (1j, "lr is 1j"),
        ("0.1", "lr is '0.1'"),
        (-1, "lr is -1"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            client.create(np.zeros(2, "f4"), lr=lr, eps=1e-8)
        assert type(caught.value) is adamd.errors.InvalidSettings and caught.value.extra["path"] == "lr"
    with pytest.raises(LookupError):
        client.session("never-made")
    with pytest.raises(TypeError):
        client.create(np.zeros(2, "c8"))
    session = client.create(np.zeros(2, "f4"))
    for wrong in ({"settings": 3}, {"metrics": 3}):
        with pytest.raises(ValueError, match="wanted a dict"):
            session.step(np.ones(2, "f4"), **wrong)
