"""Loops over a federation's rounds, blocking and for asyncio, and what a coordinator sees of rounds in the making."""

import asyncio
import threading
import uuid
import warnings

import numpy as np
import pytest

import adamd
import adamd.aio
from adamd import errors, fed

START = {"w": np.zeros(5, np.float32)}


@pytest.fixture
def name():
    return f"run-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client(server):
    with adamd.connect(server.url) as made:
        yield made


def test_the_loop_of_the_guide(client, name):
    run = client.open_federation(name, START, strategy=fed.FedAvg(), num_rounds=3, cohort=3, evaluate=1)
    seen = []

    def take_part(ward):
        for task in client.federation(name, client=ward).rounds():
            if task.kind == "evaluate":
                task.reply(num_examples=1, norm=np.abs(task.parameters["w"]).sum())
                continue
            seen.append((task.round, ward))
            task.parameters["w"] += 1  # in place: the arrays are the caller's
            task.reply(parameters=task.parameters, num_examples=10, loss=0.5)

    wards = [threading.Thread(target=take_part, args=(f"ward-{number}",)) for number in range(3)]
    for ward in wards:
        ward.start()
    closed = list(run.follow(every=0.02))
    for ward in wards:
        ward.join(60)
    assert not any(ward.is_alive() for ward in wards)
    assert [(done.round, done.closed_by, done.metrics) for done in closed] == [
        (n, "quorum", {"loss": 0.5}) for n in (1, 2, 3)
    ]
    assert sorted(seen) == [(n, f"ward-{who}") for n in (1, 2, 3) for who in range(3)]
    np.testing.assert_array_equal(run.parameters()["w"], 3)
    assert run.history()[-1].evaluation.metrics == {"norm": 15.0}  # of the final parameters


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_many_clients_in_one_event_loop(server, name, scheme):
    async def main():
        async with adamd.aio.connect(server.url if scheme == "http" else server.grpc_url) as client:
            run = await client.open_federation(name, START, strategy=fed.FedAvg(), num_rounds=2, quorum=40)

            async def take_part(number):
                member = await client.federation(name, client=f"phone-{number}")
                replies = []
                async for task in member.rounds():
                    replies.append(await task.reply(delta={"w": np.full(5, number, np.float32)}))
                return replies

            *replies, closed = await asyncio.gather(*map(take_part, range(40)), all_of(run.follow(every=0.02)))
            assert [done.round for done in closed] == [1, 2]
            assert {answer.counted for mine in replies for answer in mine} == {True}
            assert {len(mine) for mine in replies} == {2}
            return await run.parameters()

    np.testing.assert_allclose(asyncio.run(main())["w"], 2 * np.mean(range(40)), rtol=1e-6)


async def all_of(items):
    return [item async for item in items]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_wait_for_a_task_can_be_cancelled(server, name, scheme):
    async def main():
        async with adamd.aio.connect(server.url if scheme == "http" else server.grpc_url) as client:
            await client.open_federation(name, START, quorum=2)
            member = await client.federation(name, client="a")
            task = await member.task()
            await task.reply(delta=START)
            waiting = asyncio.create_task(member.task())  # the round is not full: there is nothing to do
            await asyncio.sleep(0.3)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            other = await client.federation(name, client="b")
            await (await other.task()).reply(delta=START)
            assert (await member.task()).round == 2  # and it goes on

    asyncio.run(main())


def test_a_client_that_may_not_wait_long_is_not_taken_for_dead(server, name):
    with adamd.connect(server.url, timeout=adamd.Timeout(inactivity=1.0)) as client:
        client.open_federation(name, START, quorum=2)
        member = client.federation(name, client="a")
        member.task().reply(delta=START)
        found = []
        waiting = threading.Thread(target=lambda: found.append(member.task()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            waiting.start()
            waiting.join(2.5)
            assert waiting.is_alive()  # longer than its connection may be silent
            client.federation(name, client="b").task().reply(delta=START)
            waiting.join(30)
        assert found[0].round == 2


def test_a_round_whose_time_is_up_with_too_few_is_overdue(client, name):
    run = client.open_federation(name, START, strategy=fed.FedAvg(), quorum=3, min_replies=2, timeout=0.2)
    a, b = (client.federation(name, client=who) for who in "ab")
    a.task().reply(delta={"w": START["w"] + 1})
    while run.current().state != "overdue":
        pass
    task = b.task()
    assert task.deadline is not None and task.round == 1
    assert task.reply(delta={"w": START["w"] + 3}).counted  # nobody's work is thrown away
    done = next(run.follow(every=0.02))
    assert (done.round, done.closed_by, done.received) == (1, "deadline", 2)
    np.testing.assert_array_equal(run.parameters()["w"], 2)


def test_a_cohort_is_drawn_and_others_wait(client, name):
    run = client.open_federation(name, START, strategy=fed.FedAvg(), cohort=1, num_rounds=4, seed=5)
    counted = {}

    def take_part(who):
        for task in client.federation(name, client=who).rounds():
            counted[task.round] = who
            assert task.reply(delta=START).outcome == "accepted"

    members = [threading.Thread(target=take_part, args=(who,)) for who in "abc"]
    for member in members:
        member.start()
    for member in members:
        member.join(60)
    assert sorted(counted) == [1, 2, 3, 4]
    assert [done.contributions[0].client for done in run.follow(after=0)] == [counted[n] for n in (1, 2, 3, 4)]


def test_a_robust_aggregate_leaves_out_an_attacker(client, name):
    run = client.open_federation(name, START, strategy=fed.FedAvg(), quorum=5, aggregate=fed.Krum(1, norm_filter=10.0))
    for who, change in zip("abcde", (1.0, 1.1, 1.2, 1.05, -500.0), strict=True):
        client.federation(name, client=who).task().reply(delta={"w": START["w"] + np.float32(change)})
    done = next(run.follow(after=0, every=0.02))
    attacker = next(part for part in done.contributions if part.client == "e")
    assert (attacker.counted, attacker.reason) == (False, "norm_filter")
    assert np.all(run.parameters()["w"] < 1.3) and np.all(run.parameters()["w"] > 0.9)


def test_a_private_federation_tells_what_it_has_spent(client, name):
    pytest.importorskip("dp_accounting", reason="the accountant is an extra of the server")
    privacy = fed.Privacy(2.0, 1.0, delta=1e-5)
    run = client.open_federation(name, START, strategy=fed.FedAvg(), quorum=1, num_rounds=2, privacy=privacy)
    member = client.federation(name, client="a")
    for task in member.rounds():
        task.reply(delta={"w": START["w"] + 1})
    first, second = run.follow(after=0, every=0.02)
    assert 0 < first.epsilon < second.epsilon


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_run_whose_privacy_is_spent_ends(server, name, scheme):
    pytest.importorskip("dp_accounting", reason="the accountant is an extra of the server")
    privacy = fed.Privacy(2.0, 1.0, delta=1e-5, max_epsilon=3.5)  # one round spends 2.1, two 3.1
    with adamd.connect(server.url if scheme == "http" else server.grpc_url) as client:
        run = client.open_federation(name, START, strategy=fed.FedAvg(), quorum=1, num_rounds=9, privacy=privacy)
        for task in client.federation(name, client="a").rounds():
            task.reply(delta={"w": START["w"] + 1})
        done = [item.round for item in run.follow(after=0, every=0.02)]
        assert done == [1, 2] and (run.current().round, run.current().state) == (2, "closed")


def test_what_comes_after_the_last_round_is_not_closed(client, name):
    run = client.open_federation(name, START, quorum=1, num_rounds=1)
    client.federation(name, client="a").task().reply(delta=START)
    assert [done.round for done in run.follow(after=0, every=0.02)] == [1]
    assert run.close_round(1).state == run.close_round().state == "closed"
    with pytest.raises(errors.RoundClosed, match="last round is over"):
        run.close_round(2)


def test_a_wrong_name_or_setting_is_told_in_the_words_of_the_options(client, name):
    with pytest.raises(errors.UnknownSession, match="open_federation"):
        client.federation(name, client="a")
    with pytest.raises(errors.UnknownSession, match="first parameters"):
        client.open_federation(name, quorum=2)
    with pytest.raises(errors.InvalidSettings, match=r"^num_rounds \(rounds.total\) is -1"):
        client.open_federation(name, START, quorum=2, num_rounds=-1)
    with pytest.raises(errors.InvalidSettings, match="^config is .*plain values"):
        client.open_federation(name, START, quorum=2, config={"epochs": {1}})
    client.open_federation(name, START, quorum=2)
    differing = "lr is 1.0 there and 0.5 here; quorum is 2 there and 3 here; timeout is null there"
    with pytest.raises(errors.InvalidSettings, match=differing) as said:
        client.open_federation(name, START, strategy=fed.FedAvg(0.5), quorum=3, timeout=5)
    assert not any(word in said.value.detail for word in ("max_replies", "contributions", "on_other_settings"))
    client.open(f"{name}-plain", START, lr=0.1)
    with pytest.raises(errors.NoRounds, match="client.session"):
        client.open_federation(f"{name}-plain", START, quorum=2)


def test_a_closed_client_ends_its_loop(client, name, server):
    client.open_federation(name, START, quorum=2)
    other = adamd.connect(server.url)
    member = other.federation(name, client="a")
    other.close()
    with pytest.raises(errors.TransportError, match="closed"):
        member.task()


def quarter(client, name, path, **options):
    return client.federation(name, client="a", encoding=adamd.TopK(0.2), residuals=path, **options)


@pytest.mark.parametrize("killed", ["before", "after"])
@pytest.mark.parametrize("closed", [False, True])
def test_what_an_encoding_dropped_survives_a_restart(client, name, tmp_path, monkeypatch, killed, closed):
    """Killed before its second reply came, or after: the server's record tells which residual counts."""
    path = tmp_path / "a.residuals"
    run = client.open_federation(name, START, strategy=fed.FedAvg(), quorum=2)
    change = np.array([5, 4, 3, 2, 1], np.float32)

    def others():
        client.federation(name, client="b").task().reply(delta=START)

    assert quarter(client, name, path).task().reply(delta={"w": change}).counted  # sends 5; keeps 4, 3, 2, 1
    others()
    member = quarter(client, name, path)
    task = member.task()
    assert task.round == 2
    with monkeypatch.context() as patched:
        if killed == "before":
            patched.setattr(task, "_run", dying(client))
            with pytest.raises(Killed):
                task.reply(delta=START)
        else:
            assert task.reply(delta=START).counted  # sends 4; keeps 3, 2, 1
    if closed:
        if killed == "before":
            client.federation(name, client="c").task().reply(delta=START)
        others()
        next(run.follow(after=1, every=0.02))
    elif killed == "after":
        others()
    task = quarter(client, name, path).task()
    task.reply(delta=START)  # the largest of what was dropped
    client.federation(name, client="d").task().reply(delta=START)
    next(run.follow(after=task.round - 1, every=0.02))
    sent = np.rint(run.parameters()["w"] * 2)
    assert list(sent) == ([5, 4, 0, 0, 0] if killed == "before" else [5, 4, 3, 0, 0])


class Killed(BaseException):
    """The process ends here."""


def dying(client):
    """Runs a reply up to the moment when its file is written and nothing has been sent."""
    from adamd.sansio.operations import Contribute

    def run(logic):
        outcome = None
        while True:
            effect = logic.send(outcome)
            if isinstance(effect, Contribute):
                raise Killed
            outcome = effect.run()

    return run


def test_a_file_of_residuals_is_one_clients(client, name, tmp_path):
    path = tmp_path / "a.residuals"
    client.open_federation(name, START, quorum=1)
    quarter(client, name, path).task().reply(delta={"w": START["w"] + 1})
    assert path.exists() and not list(tmp_path.glob(".*"))
    with pytest.raises(errors.InvalidRequest, match=r"residuals of client 'a' .* this is 'b'"):
        client.federation(name, client="b", residuals=path)
    client.open_federation(f"{name}-2", {"w": np.zeros(6, np.float32)}, quorum=1)
    with pytest.raises(errors.InvalidRequest, match="no file of residuals"):
        client.federation(f"{name}-2", client="a", residuals=path)
    for broken in (b"", b"hello, world", path.read_bytes()[:-1]):
        path.write_bytes(broken)
        with pytest.raises(errors.InvalidRequest, match="no file of residuals"):
            quarter(client, name, path)


def test_a_raw_encoding_keeps_no_file(client, name, tmp_path):
    path = tmp_path / "a.residuals"
    client.open_federation(name, START, quorum=1)
    client.federation(name, client="a", residuals=path).task().reply(delta=START)
    assert not path.exists()
