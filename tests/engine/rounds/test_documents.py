"""Documents of rounds: bounded, honest about what they leave out, and of one moment."""

import asyncio

import pytest

from adamd_service.engine.rounds import EvaluateCall, reports
from adamd_service.engine.rounds.service import RoundsService

from ..conftest import run
from .conftest import contribute, opened, stepped

BOUND = 4096


async def made(engine, clients, told, **rounds):
    """Make round 1 of these clients, each with its metrics; returns the session."""
    session = await opened(engine, quorum=len(told), **rounds)
    for (client, metrics), delta in zip(told.items(), clients(len(told)).values(), strict=True):
        await contribute(engine, session, 1, client, delta, metrics=metrics)
    await stepped(engine, session, 1)
    return session


def test_who_tells_the_most_is_left_out_first(replica, clients, valkey, monkeypatch):
    """A client cannot fill the store by its metrics, nor take others' out of the history."""
    monkeypatch.setattr(reports, "MOST_BYTES", BOUND)
    told = {"loud": {f"{i:0128}": 1.0 for i in range(16)}, **{f"ward-{i}": {"loss": 0.5} for i in range(5)}}

    async def scenario():
        async with replica() as engine:
            session = await made(engine, clients, told)
            document = await engine.rounds.read(session, 1)
            assert (document.left_out.metrics, document.left_out.contributions) == (1, 0)
            assert [row.metrics for row in document.contributions] == [{}, *[{"loss": 0.5}] * 5]
            assert document.metrics["loss"] == 0.5
            with valkey.client() as client:
                assert client.strlen(f"adamd:{{{session}}}:rounds:1") <= BOUND

    run(scenario())


def test_a_round_of_many_lists_some(replica, clients, valkey, monkeypatch):
    """All of them count, and their later repetitions are known; the document says how many it does not list."""
    monkeypatch.setattr(reports, "MOST_BYTES", BOUND)
    told = {f"ward-{i:02}": {"loss": float(i)} for i in range(30)}

    async def scenario():
        async with replica() as engine:
            session = await made(engine, clients, told)
            document = await engine.rounds.read(session, 1)
            listed = [row.client for row in document.contributions]
            assert listed == sorted(told)[: len(listed)] and 5 < len(listed) < 30
            assert (document.left_out.contributions, document.received) == (30 - len(listed), 30)
            assert document.metrics == {"loss": pytest.approx(14.5)}
            with valkey.client() as client:
                assert client.strlen(f"adamd:{{{session}}}:rounds:1") <= BOUND
                assert client.hlen(f"adamd:{{{session}}}:counted") == 30
            (delta,) = clients(1, seed=9).values()
            for client in told:
                await contribute(engine, session, 2, client, delta, metrics={"loss": 1.0})
                open_round = await engine.rounds.read(session, 2)
                if open_round.state == "open":
                    assert len(open_round.contributions) + open_round.left_out.contributions == open_round.received

    run(scenario())


def test_means_of_so_many_metrics(replica, clients):
    """Clients may all name theirs in another way: what most of them tell stays."""
    told = {f"ward-{i}": {"loss": 0.5, **{f"{i}-{j}": 1.0 for j in range(60)}} for i in range(3)}

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3, evaluate=3)
            for client, metrics in told.items():
                await engine.rounds.evaluate(EvaluateCall(session, 1, client, 1.0, metrics))
            for (client, metrics), delta in zip(told.items(), clients(3).values(), strict=True):
                await contribute(engine, session, 1, client, delta, metrics=metrics)
            await stepped(engine, session, 1)
            document = await engine.rounds.read(session, 1)
            assert len(document.metrics) == len(document.evaluation.metrics) == 64
            assert document.metrics["loss"] == document.evaluation.metrics["loss"] == 0.5
            assert document.left_out.names == 2 * (181 - 64)

    run(scenario())


@pytest.mark.parametrize("how", ["read", "list"])
def test_a_round_that_closes_between_two_looks(replica, clients, monkeypatch, how):
    """An open round is told as it was at one moment, or as closed: never as open, and without what it had."""
    (delta,) = clients(1).values()
    look = RoundsService._open

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            await contribute(engine, session, 1, "a", delta)

            async def closing(self, session_id, client=""):
                found = await look(self, session_id, client)
                if found.standing.number == 1:
                    monkeypatch.setattr(RoundsService, "_open", look)
                    await engine.rounds.close(session_id, 1)
                return found

            monkeypatch.setattr(RoundsService, "_open", closing)
            if how == "read":
                document = await engine.rounds.read(session, 1)
            else:
                documents, following = await engine.rounds.list(session)
                assert (documents, following) == ([], 1)
                (document, after), following = await engine.rounds.list(session, following)
                assert (after.round, after.state, following) == (2, "open", None)
            assert (document.state, [row.client for row in document.contributions]) == ("closed", ["a"])

    run(scenario())


def test_a_clock_that_goes_back_moves_a_deadline_by_its_length_at_most(replica, clients, valkey):
    """An hour back: the round is closed one deadline from the first look after that, not an hour later."""
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3, min_contributions=1, deadline_s=2.0)
            await contribute(engine, session, 1, "a", one)
            with valkey.client() as client:
                key = f"adamd:{{{session}}}:round"
                client.hset(key, "first_at", repr(float(client.hget(key, "first_at")) + 3600.0))
            await contribute(engine, session, 1, "b", two)
            document = await engine.rounds.read(session, 1)
            assert document.deadline is not None
            await stepped(engine, session, 1)
            assert (await engine.rounds.read(session, 1)).closed_by == "deadline"

    run(scenario())


def test_an_open_round_that_is_read_is_whole(replica, clients):
    """What waits and what was measured come by one call of the store, at whichever moment."""
    deltas = clients(6)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=1, evaluate=1)

            async def write():
                for number, (client, delta) in enumerate(deltas.items(), 1):
                    await engine.rounds.evaluate(EvaluateCall(session, number, client, 1.0, {"loss": float(number)}))
                    await contribute(engine, session, number, client, delta)
                    await stepped(engine, session, number)

            writing = asyncio.create_task(write())
            while not writing.done():
                found, _ = await engine.rounds.list(session)
                for one in found:
                    assert all(row.staleness == 0 for row in one.contributions)
                    if one.state == "closed":
                        assert len(one.contributions) == 1
                    if one.contributions:
                        assert one.evaluation.metrics == {"loss": float(one.round)}
            await writing

    run(scenario())
