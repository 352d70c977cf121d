"""What a session tells beside its parameters, through every shell: when to stop, its best parameters, its warnings."""

import warnings

import numpy as np
import pytest

import adamd
from adamd import errors
from contract import shells

ONE = np.ones(3, np.float32)


def walked(session, losses, gradient=ONE):
    """Take a step for each loss (None: it tells none); returns the parameters before each, and after the last."""
    before = [session.parameters().copy()]
    for loss in losses:
        before.append(session.step(gradient, loss).copy())
    return before


def test_a_rule_advises_and_refuses_nothing(client):
    session = client.create(ONE, lr=0.1, stop={"max_steps": 2})
    told = []
    for _ in range(3):
        session.step(ONE)
        told.append(session.stop)
    assert told == [None, "max_steps", "max_steps"]
    assert session.info()["stop"] == "max_steps"
    assert session.info()["optimizer"]["stop"] == {"max_steps": 2}
    assert client.session(session.id).stop == "max_steps"
    session.update(stop={"max_steps": 9})
    assert session.stop is None
    session.update(stop={})
    assert "stop" not in session.info()["optimizer"]


def test_a_target_a_plateau_and_the_gradients_norm(client):
    session = client.create(ONE, lr=0.1, stop={"target_loss": 0.5, "relative_loss": {"window": 2, "tolerance": 0.1}})
    told = []
    for loss in (4.0, 3.9, 3.8, 1.0, 0.5, 2.0):
        session.step(ONE, loss)
        told.append(session.stop)
    assert told == [None, None, "relative_loss", None, "target_loss", "target_loss"]
    assert session.info()["progress"] == {"loss": 2.0, "lowest": 0.5, "lowest_step": 4, "reference": 0.5, "stale": 1}

    session = client.create(ONE, lr=0.1, stop={"gradient_norm": 0.25})
    told = []
    for size in (4.0, 1.5, 1.0, 2.0):
        session.step(np.float32(size) * np.array([0, 0, 1], np.float32))
        told.append(session.stop)
    assert told == [None, None, "gradient_norm", None]
    assert session.info()["progress"] == {"norm": 2.0, "first_norm": 4.0}


def test_within_bounds_the_norm_is_that_of_the_gradient_that_they_leave(client):
    session = client.create(np.array([0.5, 0.5]), lr=0.25, optimizer="sgd", lower=0.0, stop={"gradient_norm": 0.5})
    told = []
    for gradient in ([3.0, 4.0], [3.0, 4.0], [3.0, -4.0]):
        session.step(np.array(gradient))
        told.append((session.stop, session.info()["progress"]["norm"]))
    assert told == [(None, 5.0), ("gradient_norm", 0.0), (None, 4.0)]


def test_a_step_carries_a_rule(client):
    session = client.create(ONE, lr=0.1)
    session.step(ONE, settings={"stop": {"max_steps": 1}})
    assert session.stop == "max_steps"
    assert session.settings["stop"] == {"max_steps": 1}


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_the_best_parameters(client, durability):
    session = client.create(ONE, lr=0.1, keep_best=True, durability=durability)
    with pytest.raises(errors.ParametersMissing, match="no step has told a loss"):
        session.best()
    before = walked(session, [3.0, 1.0, None, 2.0, 1.0])
    assert np.array_equal(session.best(), before[1])
    assert session.info()["progress"]["lowest_step"] == 1
    assert session.step_number == 5
    out = np.empty_like(ONE)
    assert session.best(out) is out
    assert np.array_equal(session.step(ONE, 0.5), session.parameters())
    assert np.array_equal(session.best(), before[5])
    session.answer_dtype = "float16"
    assert session.best().dtype == np.float16


def test_best_parameters_travel_with_an_export(client):
    session = client.create({"a": ONE, "b": ONE}, lr=0.1, keep_best=True, stop={"target_loss": 1.0})
    session.step({"a": ONE, "b": ONE}, 3.0)
    best = {name: array.copy() for name, array in session.parameters().items()}
    session.step({"a": ONE, "b": ONE}, 1.0)
    again = client.restore(session.export())
    assert again.stop == "target_loss"
    assert all(np.array_equal(again.best()[name], best[name]) for name in best)
    again.step({"a": ONE, "b": ONE}, 2.0)
    assert all(np.array_equal(again.best()[name], best[name]) for name in best)
    assert again.info()["progress"]["lowest"] == 1.0


def test_who_does_not_keep_them_is_told_so(client):
    session = client.create(ONE)
    with pytest.raises(errors.InvalidRequest, match="keep_best: true"):
        session.best()
    with pytest.raises(errors.InvalidSettings, match="fixed when it was created"):
        session.update(keep_best=True)


@pytest.mark.parametrize(
    ("settings", "path", "said"),
    [
        ({"stop": {"max_step": 1}}, "stop.max_step", "did you mean max_steps"),
        ({"stop": {"relative_loss": {"window": 0}}}, "stop.relative_loss.window", "is 0"),
        ({"stop": 5}, "stop", "wanted an object"),
        ({"keep_best": "yes"}, "keep_best", "wanted true or false"),
        ({"keep_best": True, "maximize": True}, "keep_best", "lowest loss"),
        ({"stop": {"target_loss": 1.0}, "maximize": True}, "stop.target_loss", "lowest loss"),
        ({"groups": [{"tensors": ["parameters"], "stop": {}}]}, "groups[0].stop", "outside the groups"),
    ],
)
def test_what_is_no_rule_makes_no_session(client, settings, path, said):
    with pytest.raises(errors.InvalidSettings, match=said) as refused:
        client.create(ONE, **settings)
    assert refused.value.extra["path"] == path
    session = client.create(ONE)
    if "groups" not in settings:
        with pytest.raises(errors.InvalidSettings):
            session.step(ONE, settings=settings)
        assert session.info()["step"] == 0


def test_a_session_that_would_stall_is_told_once(client):
    tiny = np.full(3, 1e-20, np.float32)
    with pytest.warns(adamd.StallWarning) as told:
        session = client.create(ONE, lr=0.1)
        session.step(tiny)
        session.step(tiny)
    assert [str(one.message).split("(")[1].split(")")[0] for one in told] == [
        "gradient_below_eps",
        "second_moment_underflow",
    ]
    assert "eps=1e-20, or a gradient_scale, would help" in str(told[0].message)
    found = session.info()["warnings"]
    assert [one["code"] for one in found] == ["gradient_below_eps", "second_moment_underflow"]
    assert all(one["eps"] == 1e-20 and "1e-20" in one["detail"] for one in found)
    session.step(ONE)
    assert session.info()["warnings"] == []


def test_who_does_not_stall_is_not_warned(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = client.create(ONE, lr=0.1)
        session.step(ONE)
        session.step(np.full(3, 1e-12, np.float32))  # that may have converged
        session.step(np.zeros(3, np.float32))
        for optimizer in ("sgd", "lion"):
            client.create(ONE, optimizer=optimizer).step(np.full(3, 1e-20, np.float32))


def test_all_of_it_survives_kill_9_and_goes_on_at_another_replica(kind, store_factory, server_factory):
    store = store_factory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adamd.StallWarning)
        first = server_factory("--redis-url", store.url)
        second = server_factory("--redis-url", store.url)
        rules = {"gradient_norm": 0.5, "target_loss": 0.25, "relative_loss": {"window": 3}}
        with shells.connect(kind, shells.url_of(kind, first.port, first.grpc_port)) as client:
            session = client.create(ONE, lr=0.1, keep_best=True, stop=rules)
            before = walked(session, [3.0, 1.0, 2.0])
            session.step(np.full(3, 1e-20, np.float32), 2.0)
            told, stop = session.info(), session.stop
            state = session.export()
        assert stop == "gradient_norm"
        assert [one["code"] for one in told["warnings"]]
        first.kill()
        with shells.connect(kind, shells.url_of(kind, second.port, second.grpc_port)) as client:
            again = client.session(session.id)
            assert np.array_equal(again.best(), before[1])
            assert again.info() == told
            assert again.export() == state
            again.step(ONE, 0.125)
            assert again.stop == "target_loss"
            after, best = again.info(), again.best().copy()
            assert after["progress"]["lowest_step"] == 4
        first.start()
        with shells.connect(kind, shells.url_of(kind, first.port, first.grpc_port)) as client:
            third = client.session(session.id)
            assert third.info() == after
            assert np.array_equal(third.best(), best)
