"""What the settings of a session's rounds do: cohorts, aggregates, privacy, changes; and what is told meanwhile."""

import asyncio
import json

import numpy as np
import pytest

from adamd.errors import (
    Diverged,
    HistoryLost,
    InvalidRequest,
    InvalidSettings,
    NoRounds,
    NotSelected,
    PrivacySpent,
    ShuttingDown,
)
from adamd_service.rounds.settings import shown_to_all

from ..conftest import create_call, run, step_call
from .conftest import SIZE, contribute, opened, stepped

MULTI_KRUM = {"name": "multi_krum", "byzantine": 1, "keep": 2}


@pytest.mark.parametrize(
    ("rounds", "path"),
    [
        ({"quorum": 0}, "rounds.quorum"),
        ({"quorum": 2, "cohort": 1}, "rounds.cohort"),
        ({"quorum": 2, "averaged": ["nothing*"]}, "rounds.averaged[0]"),
        ({"quorum": 4, "aggregate": {"name": "krum", "byzantine": 1}}, "rounds.aggregate.byzantine"),
        (
            {"quorum": 5, "min_contributions": 4, "deadline_s": 1, "aggregate": {"name": "krum", "byzantine": 1}},
            "rounds.min_contributions",
        ),
        ({"quorum": 2, "max_staleness": 3}, "rounds.max_staleness"),
        ({"mode": "buffered", "quorum": 2, "max_staleness": 101}, "rounds.max_staleness"),
        ({"quorum": 2, "quorom": 2}, "rounds.quorom"),
        ({"quorum": 1001, "aggregate": {"name": "krum", "byzantine": 1}}, "rounds.quorum"),
        ({"quorum": 9, "max_contributions": 1001, "aggregate": MULTI_KRUM}, "rounds.max_contributions"),
    ],
)
def test_what_is_refused_makes_no_session(replica, rounds, path):
    async def scenario():
        async with replica() as engine:
            with pytest.raises(InvalidSettings) as refused:
                await opened(engine, **rounds)
            assert refused.value.extra["path"] == path and refused.value.detail.startswith(path)
            with pytest.raises(InvalidSettings, match="committed"):
                await engine.create(create_call(np.zeros(3, np.float32), rounds={"quorum": 1}, durability="memory"))

    run(scenario())


def test_a_cohort_is_drawn_from_the_known(replica, clients):
    deltas = clients(6)

    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine, quorum=2, cohort=2, seed=7)
            assert await engine.rounds.task(session, "ward-0") is None  # too few are known
            with pytest.raises(NotSelected):
                await contribute(engine, session, 1, "ward-0", deltas["ward-0"])
            drawings = []
            for number in (1, 2, 3, 4):
                tasks = {c: await (engine, other)[number % 2].rounds.task(session, c) for c in deltas}
                tasks = {c: task or await engine.rounds.task(session, c) for c, task in tasks.items()}
                chosen = [client for client, task in tasks.items() if task is not None]
                if number > 1:
                    assert len(chosen) == 2
                    drawings.append(tuple(chosen))
                else:  # the first two that asked were all that were known
                    assert set(chosen) == {"ward-0", "ward-1"}
                with pytest.raises(NotSelected):
                    await contribute(
                        engine, session, number, next(c for c in deltas if c not in chosen), deltas["ward-0"]
                    )
                for client in chosen:
                    await contribute(engine, session, number, client, deltas[client])
                await stepped(engine, session, number)
            assert len(set(drawings)) > 1

    run(scenario())


@pytest.mark.parametrize(
    ("aggregate", "wanted"),
    [
        ("mean", np.mean),
        ("median", np.median),
        ({"name": "trimmed_mean", "trim": 0.2}, lambda a, axis: np.sort(a, axis=0)[1:-1].mean(axis=0)),
    ],
)
def test_aggregates(replica, clients, aggregate, wanted):
    deltas = clients(5)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=5, aggregate=aggregate)
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta)
            found = await stepped(engine, session, 1)
            np.testing.assert_allclose(found, wanted(np.array(list(deltas.values())), axis=0), rtol=1e-5, atol=1e-6)

    run(scenario())


def test_an_attacker_is_held(replica, clients):
    """One client of six sends fifty times as much, the other way round."""
    deltas = clients(6)
    deltas["ward-3"] = -50 * deltas["ward-3"]

    async def scenario():
        async with replica() as engine:
            for rules in ({"norm_filter": 3.0}, {"aggregate": {"name": "krum", "byzantine": 1}}):
                session = await opened(engine, quorum=6, **rules)
                for client, delta in deltas.items():
                    await contribute(engine, session, 1, client, delta)
                found = await stepped(engine, session, 1)
                assert np.abs(found).max() < 5
                rows = {row.client: row for row in (await engine.rounds.read(session, 1)).contributions}
                assert rows["ward-3"].counted is False and rows["ward-3"].reason in ("norm_filter", "not_chosen")
                again = await contributed_late(engine, session, "ward-3", deltas["ward-3"])
                assert again.extra["counted"] is False

    run(scenario())


async def contributed_late(engine, session, client, delta):
    with pytest.raises(Exception, match="left out") as refused:
        await contribute(engine, session, 1, client, delta)
    return refused.value


def test_privacy_adds_noise_and_counts_it(replica, clients):
    pytest.importorskip("dp_accounting", reason="an extra of the server; CI installs it")
    deltas = clients(4)
    privacy = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}

    async def scenario():
        async with replica() as engine:
            found, spent = [], []
            for _ in range(2):
                session = await opened(engine, quorum=4, privacy=privacy)
                head = (await engine.view(session)).head
                assert "seed" in head.spec.rounds["privacy"]
                assert "seed" not in shown_to_all(head.spec.rounds)["privacy"]
                for number in (1, 2):
                    for client, delta in deltas.items():
                        await contribute(engine, session, number, client, delta)
                    found.append((await stepped(engine, session, number)).tobytes())
                    document = await engine.rounds.read(session, number)
                    spent.append(document.epsilon)
                    assert all(row.clipped and row.weight == 1 for row in document.contributions)
            assert len(set(found)) == 4
            assert 0 < spent[0] < spent[1]
            session = await opened(engine, quorum=4, privacy={**privacy, "max_epsilon": 1.1 * spent[0]})
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta)
            await stepped(engine, session, 1)
            with pytest.raises(PrivacySpent):
                await contribute(engine, session, 2, "ward-0", deltas["ward-0"])
            assert (await engine.rounds.task(session, "ward-0")).kind == "stop"

    run(scenario())


def test_the_config_changes_with_the_next_round(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, config={"epochs": 1})
            assert (await engine.rounds.task(session, "a")).config == {"epochs": 1}
            changed = await engine.patch(session, None, None, rounds={"config": {"epochs": 5}})
            assert changed.head.spec.rounds["config"] == {"epochs": 5}
            assert (await engine.rounds.task(session, "a")).config == {"epochs": 1}
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)
            assert (await engine.rounds.task(session, "a")).config == {"epochs": 5}
            assert (await engine.rounds.read(session, 1)).config == {"epochs": 1}
            for wrong in ({"quorum": 2}, {"config": 3}, {"config": {"text": "x" * 20_000}}, 7):
                with pytest.raises(InvalidSettings):
                    await engine.patch(session, None, None, rounds=wrong)
            plain = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            with pytest.raises(NoRounds):
                await engine.patch(plain, None, None, rounds={"config": {}})

    run(scenario())


def test_sessions_without_rounds_keep_their_bytes(replica, valkey):
    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            await engine.step(step_call(session, 1, np.ones(SIZE, np.float32)))
        with valkey.client() as client:
            spec = json.loads(client.hget(f"adamd:{{{session}}}:head", "spec"))
            meta = json.loads(client.hget(f"adamd:{{{session}}}:record:1", "meta"))
            assert "rounds" not in spec and "assigned" not in meta
            keys = {key.decode().rpartition("}:")[2] for key in client.scan_iter(match=f"adamd:{{{session}}}:*")}
            assert not any(key.startswith(("round", "pending", "counted", "clients")) for key in keys)

    run(scenario())


def test_waiting_ends_when_something_comes(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine)
            await contribute(engine, session, 1, "a", delta)
            waiting = [
                asyncio.create_task(engine.rounds.task(session, "a", 20)),
                asyncio.create_task(other.rounds.task(session, "b", 20)),
                asyncio.create_task(other.rounds.wait_for_step(session, 2, 20)),
            ]
            await stepped(engine, session, 1)
            assert [(await task).round for task in waiting[:2]] == [2, 1] or (await waiting[1]).round == 2
            assert not await engine.rounds.wait_for_step(session, 2, 0.01)
            await contribute(engine, session, 2, "a", delta)
            assert await waiting[2]
            with pytest.raises(InvalidRequest):
                await engine.rounds.task(session, "no name", 0)

    run(scenario())


def test_if_match_names_the_history(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            chain = (await engine.rounds.task(session, "a")).chain
            with pytest.raises(HistoryLost):
                await contribute(engine, session, 1, "a", delta, if_match="0" * 64)
            with pytest.raises(HistoryLost):
                await contribute(engine, session, 2, "a", delta, if_match=chain)
            assert (await contribute(engine, session, 1, "a", delta, if_match=chain)).outcome == "accepted"

    run(scenario())


def test_events_tell_what_happens(replica, clients):
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine, quorum=2)
            seen = []

            async def follow(from_engine):
                mine = []
                seen.append(mine)
                async for event in from_engine.rounds.events(session):
                    mine.append(
                        (event.kind, event.data.get("round"), event.data.get("client") or event.data.get("state"))
                    )
                    if mine[2:].count(("step", None, None)) == mine.count(("round", 2, "open")) == 1:
                        return  # a look that began before the step tells of the round first

            following = [asyncio.create_task(follow(where)) for where in (engine, other)]
            while not all(len(mine) >= 2 for mine in seen) or len(seen) < 2:
                await asyncio.sleep(0.01)
            await contribute(engine, session, 1, "a", one)
            await contribute(engine, session, 1, "b", two)
            await asyncio.wait_for(asyncio.gather(*following), 20)
            for mine in seen:
                assert mine[:2] == [("step", None, None), ("round", 1, "open")]
                assert ("contribution", 1, "a") in mine and ("contribution", 1, "b") in mine
                assert [one for one in mine if one[0] == "round"][-2:] == [("round", 1, "closed"), ("round", 2, "open")]

    run(scenario())


def test_a_server_that_goes_down_lets_nobody_wait(replica):
    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2, cohort=2)
            waiting = asyncio.create_task(engine.rounds.task(session, "a", 60))
            await asyncio.sleep(0.1)
            engine.draining = True
            engine._watchers.moved(session)
            with pytest.raises(ShuttingDown):
                await waiting

    run(scenario())


def test_an_adaptive_clip_goes_on_after_an_export(replica, clients):
    pytest.importorskip("dp_accounting", reason="an extra of the server; CI installs it")
    deltas = clients(4)
    privacy = {"noise_multiplier": 1.0, "adaptive": {"initial": 1.0, "count_noise": 2.0}, "delta": 1e-5}

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=4, privacy=privacy)
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta)
            await stepped(engine, session, 1)
            head = (await engine.view(session)).head
            now = (await asyncio.to_thread(engine.store.rounds.look, head)).standing.clip_norm
            assert now not in (None, 1.0)
            told = (await engine.export(session)).head.spec.rounds
            assert told["privacy"]["adaptive"]["initial"] == now
            assert {**told, "privacy": None} == {**head.spec.rounds, "privacy": None}

    run(scenario())


def test_a_diverged_session_takes_no_contribution(replica):
    async def scenario():
        async with replica() as engine:
            session = await opened(engine, optimizer={"name": "sgd", "lr": 1e30})
            huge = np.full(SIZE, 1e18, np.float32)
            await contribute(engine, session, 1, "a", huge)
            await stepped(engine, session, 1)
            with pytest.raises(Diverged):
                await contribute(engine, session, 2, "a", huge)

    run(scenario())
