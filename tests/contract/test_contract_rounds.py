"""Federations through every shell, on a real server: clients, coordinators, and what becomes of each reply."""

import uuid

import numpy as np
import pytest

import adamd
from adamd import errors, fed

START = {"b": np.zeros(3, np.float32), "w": np.zeros((2, 2), np.float32)}


@pytest.fixture
def name():
    return f"run-{uuid.uuid4().hex[:12]}"


def opened(client, name, parameters=START, **options):
    options = {"strategy": fed.FedAvg(), "quorum": 2, **options}
    return client.open_federation(name, parameters, **options)


def trained(task, by):
    return {key: value + np.float32(by) for key, value in task.parameters.items()}


def replied(client, name, who, by, **options):
    task = client.federation(name, client=who).task()
    return task.reply(parameters=trained(task, by), **options)


def test_a_federation_trains_to_its_last_round(client, name):
    run = opened(client, name, num_rounds=2, config={"epochs": 3, "rate": 0.5})
    a, b = (client.federation(name, client=who) for who in ("ward-1", "ward-2"))
    for number in (1, 2):
        first, second = a.task(), b.task()
        assert (first.kind, first.round, first.base_step, first.private) == ("train", number, number - 1, ())
        assert first.config == {"epochs": 3, "rate": 0.5} and type(first.config["epochs"]) is int
        assert first.deadline is None
        answer = first.reply(parameters=trained(first, 1), num_examples=30, loss=1.0)
        assert (answer.outcome, answer.counted, answer.round, answer.received, answer.wanted) == (
            "accepted",
            True,
            number,
            1,
            2,
        )
        assert second.reply(parameters=trained(second, 5), num_examples=10, loss=2.0).counted is True
    assert a.task() is None and b.task() is None  # the last round is over
    one, two = run.follow(after=0)
    assert (one.round, one.state, one.closed_by, one.step, one.base_step) == (1, "closed", "quorum", 1, 0)
    assert one.metrics == {"loss": 1.25} and two.round == 2
    counted = [(part.client, part.num_examples, part.counted) for part in one.contributions]
    assert counted == [("ward-1", 30.0, True), ("ward-2", 10.0, True)]
    assert one.closed_at >= one.opened_at
    for value in run.parameters().values():
        np.testing.assert_allclose(value, 4.0, rtol=1e-6)  # twice (30 x 1 + 10 x 5) / 40
    assert [done.round for done in run.history()][:2] == [1, 2]
    assert run.num_rounds == 2 and run.name == name


@pytest.mark.parametrize(("kind", "sign"), [("delta", 1), ("gradient", -1)])
def test_a_reply_may_be_a_delta_or_a_gradient(client, name, kind, sign):
    run = opened(client, name, quorum=1)
    task = client.federation(name, client="a").task()
    assert task.reply(**{kind: {key: np.full_like(value, 2) for key, value in task.parameters.items()}}).counted
    (done,) = first_of(run, 1)
    assert done.round == 1
    for value in run.parameters().values():
        np.testing.assert_array_equal(value, 2.0 * sign)


def first_of(run, count):
    """The first closed rounds: a federation without an end is followed for ever."""
    while True:
        closed = [done for done in run.history() if done.state == "closed"]
        if len(closed) >= count:
            return closed[:count]


def test_a_single_array_comes_as_one(client, name):
    run = opened(client, name, np.arange(4.0, dtype=np.float32), quorum=1)
    task = client.federation(name, client="a").task()
    task.reply(parameters=task.parameters * 2)
    first_of(run, 1)
    np.testing.assert_array_equal(run.parameters(), [0, 2, 4, 6])


def test_a_reply_is_sent_again_without_harm(client, name):
    opened(client, name)
    task = client.federation(name, client="a").task()
    values = trained(task, 1)
    assert task.reply(parameters=values, num_examples=3).outcome == "accepted"
    again = task.reply(parameters=values, num_examples=3)
    assert (again.outcome, again.counted, again.received) == ("duplicate", True, 1)
    other = task.reply(parameters=trained(task, 2), num_examples=3)
    assert (other.outcome, other.counted) == ("conflict", False) and "other bytes" in other.detail


def test_a_client_that_starts_again_is_given_what_it_owes(client, name, connect):
    opened(client, name)
    task = client.federation(name, client="a").task()
    with connect() as afterwards:  # it died before it replied
        again = afterwards.federation(name, client="a").task()
        assert (again.round, again.kind) == (task.round, "train")
        assert replied(afterwards, name, "b", 1).counted
        assert again.reply(parameters=trained(again, 1)).counted
        following = afterwards.federation(name, client="a").task()
        assert following.round == 2


def test_an_answer_says_that_a_reply_came_too_late(client, name):
    run = opened(client, name)
    slow = client.federation(name, client="slow").task()
    kept = trained(slow, 9)
    assert replied(client, name, "a", 1).counted and replied(client, name, "b", 1).counted
    first_of(run, 1)
    late = slow.reply(parameters=kept)
    assert (late.outcome, late.counted, late.round, late.current) == ("too_late", False, 1, 2)
    task = client.federation(name, client="a").task()
    assert task.round == 2
    mine = trained(task, 1)
    assert task.reply(parameters=mine).outcome == "accepted" and replied(client, name, "b", 1).counted
    first_of(run, 2)
    again = task.reply(parameters=mine)
    assert (again.outcome, again.counted, again.current) == ("too_late", True, 3)  # its first copy counted


def test_evaluations_come_in_the_same_loop(client, name):
    run = opened(client, name, quorum=1, num_rounds=1, evaluate=1)
    member = client.federation(name, client="a")
    task = member.task()
    assert task.kind == "train"
    task.reply(parameters=trained(task, 1))
    task = member.task()
    assert (task.kind, task.base_step) == ("evaluate", 1)
    np.testing.assert_array_equal(task.parameters["b"], 1.0)
    with pytest.raises(errors.InvalidRequest, match="evaluate: reply with metrics, without delta"):
        task.reply(delta=trained(task, 1), accuracy=1.0)
    assert task.reply(num_examples=8, accuracy=0.75).outcome == "accepted"
    assert task.reply(num_examples=8, accuracy=0.75).outcome == "duplicate"
    assert member.task() is None
    evaluated = run.history()[-1].evaluation
    assert (evaluated.num_examples, evaluated.metrics) == (8.0, {"accuracy": 0.75})


def test_a_coordinator_closes_and_cancels_by_hand(client, name):
    run = opened(client, name)
    with pytest.raises(errors.TooFewContributions):
        run.close_round()
    assert replied(client, name, "a", 1).counted
    open_round = run.current()
    assert (open_round.state, open_round.received, open_round.step) == ("open", 1, None)
    assert run.cancel_round().received == 0
    assert replied(client, name, "a", 3).counted  # it is asked anew
    closed = run.close_round()
    assert (closed.round, closed.closed_by, closed.received) == (1, "hand", 1)
    assert run.close_round(1).step == 1  # again: it stays what it is
    with pytest.raises(errors.RoundClosed):
        run.cancel_round(1)
    with pytest.raises(errors.UnknownRound):
        run.round(7)
    np.testing.assert_array_equal(run.parameters()["b"], 3.0)


def test_a_federation_is_opened_again_by_its_name(client, name):
    opened(client, name, num_rounds=5, min_replies=1, timeout=600, seed=7)
    assert opened(client, name, num_rounds=5, min_replies=1, timeout=600).num_rounds == 5
    assert opened(client, name, None, num_rounds=5, min_replies=1, timeout=600.0).settings["seed"] == 7
    assert client.open_federation(name).settings["quorum"] == 2
    with pytest.raises(errors.InvalidSettings) as refused:
        opened(client, name, num_rounds=6, aggregate=fed.Median(clip_norm=1.5))
    words = str(refused.value)
    for said in ("num_rounds is 5 there and 6 here", '"median"', "clip_norm is null there and 1.5 here", "timeout"):
        assert said in words, words
    with pytest.raises(errors.InvalidSettings, match="optimizer is"):
        opened(client, name, strategy=fed.FedAdam(), num_rounds=5, min_replies=1, timeout=600)
    with pytest.raises(errors.WrongLayout):
        opened(client, name, {"b": START["b"]}, num_rounds=5, min_replies=1, timeout=600)
    with pytest.raises(errors.UnknownSession):
        client.open_federation(f"{name}-x")
    with pytest.raises(errors.UnknownSession):
        client.federation(f"{name}-x", client="a")


def test_the_config_of_later_rounds_can_be_changed(client, name):
    run = opened(client, name, quorum=1, config={"epochs": 1})
    run.configure({"epochs": 2, "names": ["a", 1, None, 0.5]})
    assert replied(client, name, "a", 1).counted
    task = client.federation(name, client="a").task()
    assert (task.round, task.config) == (2, {"epochs": 2, "names": ["a", 1, None, 0.5]})
    assert opened(client, name, quorum=1, config={"epochs": 1}).settings["config"]["epochs"] == 2  # it is not compared


def test_plain_sessions_and_federations_are_told_apart(client, name):
    session = client.create(START, name=name)
    with pytest.raises(errors.NoRounds, match="plain steps"):
        client.federation(name, client="a")
    with pytest.raises(errors.NoRounds, match="plain steps"):
        client.open_federation(name)
    session.delete()
    opened(client, name)
    with pytest.raises(errors.RoundsOnly):
        client.session(name).step({key: value + 1 for key, value in START.items()})


def test_counters_and_private_tensors(client, name):
    start = {
        **START,
        "head": np.ones(2, np.float32),
        "bn.running_mean": np.zeros(1, np.float32),
        "bn.count": np.array(4),
    }
    run = opened(client, name, start, private=["head"])
    assert run.settings["carry"] == ["bn.count"] and run.settings["averaged"] == ["bn.running_mean"]
    for who, count in (("a", 9), ("b", 7)):
        task = client.federation(name, client=who).task()
        assert "head" not in task.parameters and task.private == ("head",)
        mine = trained(task, count) | {"head": np.full(2, 5, np.float32), "bn.count": np.array(count)}
        assert task.reply(parameters=mine).counted
    first_of(run, 1)
    now = run.parameters()
    assert (now["bn.count"], now["bn.running_mean"], list(now["head"])) == (9, 8, [1, 1])
    assert list(now) == list(start)


@pytest.mark.parametrize("encoding", ["float16", "int8", adamd.TopK(0.5)])
def test_a_lossy_encoding_sends_what_training_changed(client, name, encoding):
    """Error feedback: what is dropped comes later, so the sum of the deltas is the sum of what was applied, nearly."""
    start = np.linspace(100, 101, 512, dtype=np.float32)
    run = opened(client, name, start, quorum=1)
    member = client.federation(name, client="a", encoding=encoding)
    change = np.linspace(-1e-3, 1e-3, 512, dtype=np.float32)
    for _ in range(8):
        task = member.task()
        assert task.reply(parameters=task.parameters + change).counted
    first_of(run, 8)
    np.testing.assert_allclose(run.parameters(), start + 8 * change, atol=3e-3)


@pytest.mark.parametrize("options", [{"encoding": "float16"}, {"answer_dtype": "bfloat16"}])
def test_private_tensors_stay_where_rounded_ones_travel(client, name, options):
    run = opened(client, name, {**START, "head": np.ones(2, np.float32)}, quorum=1, private=["head"])
    task = client.federation(name, client="a", **options).task()
    assert task.reply(parameters=trained(task, 2) | {"head": np.full(2, 9, np.float32)}).counted
    first_of(run, 1)
    now = run.parameters()
    assert {key: value.max() for key, value in now.items()} == {"b": 2.0, "w": 2.0, "head": 1.0}
    with pytest.raises(errors.WrongLayout, match="parameters lack b"):
        task.reply(parameters={"w": task.parameters["w"]})
    with pytest.raises(errors.InvalidRequest, match="covers the whole vector"):
        client.federation(name, client="a", encoding="int8")


def test_buffered_rounds_take_older_replies(client, name):
    run = client.open_federation(
        name, START, strategy=fed.FedAvg(), buffered=fed.Buffered(1, fed.Polynomial(1.0), max_staleness=4)
    )
    slow = client.federation(name, client="slow").task()
    kept = trained(slow, 4)
    assert replied(client, name, "a", 1).counted
    first_of(run, 1)
    answer = slow.reply(delta=kept)
    assert (answer.outcome, answer.counted) == ("accepted", True)
    done = first_of(run, 2)[1]
    assert [(part.client, part.staleness, part.weight) for part in done.contributions] == [("slow", 1, 0.5)]


def test_a_bad_reply_is_refused_and_changes_nothing(client, name):
    run = opened(client, name)
    task = client.federation(name, client="a").task()
    values = trained(task, 1)
    for wrong, kind, words in [
        ({"parameters": values, "delta": values}, errors.InvalidRequest, "wanted one of"),
        ({}, errors.InvalidRequest, "none of them"),
        ({"parameters": values, "num_examples": 0}, errors.InvalidRequest, "num_examples is 0"),
        ({"parameters": values, "num_examples": float("nan")}, errors.InvalidRequest, "num_examples is nan"),
        ({"parameters": {**values, "b": values["w"]}}, errors.WrongLayout, "shape"),
        ({"parameters": {**values, "c": values["w"]}}, errors.WrongLayout, "no tensor 'c'"),
        ({"delta": {**values, "b": values["b"] * np.float32(np.nan)}}, errors.BadGradient, r"delta 'b' at \[0\]: elem"),
        ({"parameters": {"w": values["w"] * np.float32(np.inf)}}, errors.BadGradient, r"parameters 'w' at \[0"),
        ({"parameters": values, "loss": "low"}, errors.InvalidRequest, "metric 'loss'"),
    ]:
        with pytest.raises(kind, match=words):
            task.reply(**wrong)
    assert run.current().received == 0
    assert task.reply(parameters=values, loss=float("nan")).counted
    with pytest.raises(errors.InvalidRequest, match="client is 'a/b'"):
        client.federation(name, client="a/b")


def test_a_deleted_federation_is_told(client, name):
    run = opened(client, name)
    member = client.federation(name, client="a")
    run.delete()
    with pytest.raises(errors.SessionDeleted):
        member.task()
    with pytest.raises(errors.SessionDeleted):
        run.current()


def test_a_round_of_which_no_step_can_be_made_asks_anew(client, name, caplog):
    """The coordinator is told why, once of each, and a client that replies in a loop goes on by itself."""
    scaled = fed.Optimizer(
        "sgd", {"lr": 1.0, "gradient_scale": 1e30}
    )  # what is above 1e-11 has a square that overflows
    run = opened(client, name, strategy=scaled, quorum=1, num_rounds=2)
    assert run.current().failure is None and run.current().left_out == {}
    member, failures = client.federation(name, client="a"), []
    for number in (1, 2):
        assert member.task().reply(delta={key: value + 1e3 for key, value in START.items()}).counted
        task = member.task()  # is asked again once the round has begun again
        failures.append(run.current().failure)
        assert (task.round, failures[-1].code) == (number, "bad_gradient") and "gradient_scale" in failures[-1].detail
        assert task.reply(delta={key: value - 1e-30 for key, value in START.items()}).counted
    for _ in range(2):
        done = list(run.follow(after=0))
        assert [(one.round, one.state, one.failure) for one in done] == [
            (number, "closed", failures[number - 1]) for number in (1, 2)
        ]
    told = [one.getMessage() for one in caplog.records if "began again" in one.getMessage()]
    assert told == [
        f"round {number} of federation {name} began again: {failures[number - 1].detail}" for number in (1, 2)
    ]
