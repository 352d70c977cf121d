"""Rounds of which no step can be made: they begin again, and say why."""

import asyncio

import numpy as np
import pytest

from adamd.errors import AdamdError, BadGradient, Diverged, TooFewContributions
from adamd_service.engine.rounds.closing import NOT_TOLD, Closer
from adamd_service.rounds import Failure

from ..conftest import run
from .conftest import SIZE, contribute, opened, settled_keys, stepped

SCALED = {"name": "sgd", "lr": 1.0, "gradient_scale": 1e30}  # the square of what is above 1e-11 overflows float32
LARGE, SMALL = np.full(SIZE, 1e3, np.float32), np.full(SIZE, 1e-30, np.float32)


@pytest.fixture
def nothing_closes(monkeypatch):
    """Keep every round open until the test closes it."""
    monkeypatch.setattr(Closer, "begin", lambda self, session_id: None)


async def failed(engine, session, within=20.0):
    """Wait until the open round says why its last try failed; returns its document."""
    async with asyncio.timeout(within):
        while (document := await engine.rounds.read(session, 1)).failure is None:
            await asyncio.sleep(0.01)
    return document


async def spoil(engine, valkey, session, wanted):
    """Change a byte of these clients' contributions in the store."""
    with valkey.client() as client:
        for one in await asyncio.to_thread(engine.store.rounds.waiting, session):
            if one.client in wanted:
                key = f"adamd:{{{session}}}:contribution:{one.attempt}"
                client.set(key, b"\xff" + client.get(key)[1:])


def test_a_round_whose_aggregate_is_refused_begins_again(replica, valkey):
    """Nobody tries the same again for ever, and nobody's update waits for it: it is told, and clients are asked anew."""

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, optimizer=SCALED, quorum=2)
            for client in ("a", "b"):
                await contribute(engine, session, 1, client, LARGE)
            document = await failed(engine, session)
            assert (document.failure.code, document.state, document.received) == ("bad_gradient", "open", 0)
            assert "gradient_scale" in document.failure.detail
            keys = await settled_keys(valkey, session, ("contribution:", "pending", "garbage"))
            assert not [key for key in keys if key.startswith(("contribution:", "pending"))]
            assert (await engine.rounds.task(session, "a", 5.0)).kind == "train"
            assert dict(engine.rounds.tally.failed) == {"bad_gradient": 1}
            for client in ("a", "b"):
                assert (await contribute(engine, session, 1, client, SMALL)).outcome == "accepted"
            await stepped(engine, session, 1)
            closed = await engine.rounds.read(session, 1)
            assert (closed.state, closed.failure) == ("closed", document.failure)
            assert (await engine.rounds.read(session, 2)).failure is None

    run(scenario())


def test_a_failure_is_an_event(replica):
    async def scenario():
        async with replica() as engine:
            session, seen = await opened(engine, optimizer=SCALED), []

            async def follow():
                async for event in engine.rounds.events(session):
                    seen.append(event)
                    if event.data.get("failure"):
                        return

            following = asyncio.create_task(follow())
            while not seen:
                await asyncio.sleep(0.01)
            await contribute(engine, session, 1, "a", LARGE)
            await asyncio.wait_for(following, 20)
            assert (seen[-1].kind, seen[-1].data["round"], seen[-1].data["state"]) == ("round", 1, "open")
            assert seen[-1].data["failure"]["code"] == "bad_gradient"

    run(scenario())


def test_a_hand_that_closes_is_told_and_two_fail_once(replica, nothing_closes):
    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine, optimizer=SCALED)
            await contribute(engine, session, 1, "a", LARGE)
            found = await asyncio.gather(
                *(one.rounds.close(session, 1) for one in (engine, other)), return_exceptions=True
            )
            assert BadGradient in map(type, found)
            for one in found:  # who comes after the failure is told of a round that has begun again
                assert isinstance(one, AdamdError) or (one.state, one.failure.code) == ("open", "bad_gradient"), found
            head = (await engine.view(session)).head
            assert (await asyncio.to_thread(engine.store.rounds.look, head)).standing.tries == 1

    run(scenario())


@pytest.mark.parametrize(
    ("aggregate", "quorum", "spoilt", "makes_it"),
    [
        ("mean", 2, "ab", False),
        ("mean", 2, "a", True),
        ({"name": "krum", "byzantine": 1}, 5, "a", False),
        ({"name": "krum", "byzantine": 1}, 6, "a", True),
    ],
)
def test_too_few_that_are_undamaged(replica, valkey, clients, nothing_closes, aggregate, quorum, spoilt, makes_it):
    """Krum with fewer than 2 f + 3 would withstand less than it promises."""

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=quorum, aggregate=aggregate)
            for client, delta in zip("abcdef", clients(quorum).values(), strict=False):
                await contribute(engine, session, 1, client, delta)
            await spoil(engine, valkey, session, spoilt)
            if makes_it:
                assert (await engine.rounds.close(session, 1)).state == "closed"
                return
            with pytest.raises(TooFewContributions):
                await engine.rounds.close(session, 1)
            document = await engine.rounds.read(session, 1)
            assert (document.failure.code, document.received) == ("too_few_contributions", 0)

    run(scenario())


def test_what_is_known_of_a_contribution_is_damaged(replica, valkey, clients, nothing_closes):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            await contribute(engine, session, 1, "a", delta)
            with valkey.client() as client:
                client.hset(f"adamd:{{{session}}}:pending", "1:a", "{")
            with pytest.raises(TooFewContributions, match="damaged"):
                await engine.rounds.close(session, 1)
            await contribute(engine, session, 1, "a", delta)
            assert (await engine.rounds.close(session, 1)).state == "closed"

    run(scenario())


def test_a_diverged_session_keeps_nobodys_update(replica, valkey):
    """A replica that has not loaded it takes a contribution, and finds out when it closes."""

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, optimizer={"name": "sgd", "lr": 1e30})
            await contribute(engine, session, 1, "a", np.full(SIZE, 1e18, np.float32))
            await stepped(engine, session, 1)
        async with replica() as other:
            await contribute(other, session, 2, "a", SMALL)
            async with asyncio.timeout(20):
                while (document := await other.rounds.read(session, 2)).failure is None:
                    await asyncio.sleep(0.01)
            assert (document.failure.code, document.received) == ("diverged", 0)
            with pytest.raises(Diverged):
                await contribute(other, session, 2, "a", SMALL)
            keys = await settled_keys(valkey, session, ("contribution:", "pending"))
            assert not [key for key in keys if key.startswith(("contribution:", "pending"))]

    run(scenario())


def test_a_private_round_says_no_numbers(replica, monkeypatch):
    pytest.importorskip("dp_accounting", reason="an extra of the server; CI installs it")

    async def scenario():
        async with replica() as engine:
            privacy = {"noise_multiplier": 1e6, "clip_norm": 1e15, "delta": 1e-5}
            session = await opened(engine, privacy=privacy)
            await contribute(engine, session, 1, "a", SMALL)
            assert (await failed(engine, session)).failure == Failure("bad_gradient", NOT_TOLD)

    run(scenario())
