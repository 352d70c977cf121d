"""Buffered sessions: contributions of earlier rounds count, with the weight of their staleness."""

import asyncio

import numpy as np
import pytest

from adamd.errors import RoundClosed
from adamd_service.store.rounds import RoundStore

from ..conftest import run
from .conftest import contribute, opened, stepped

POLYNOMIAL = {"mode": "buffered", "staleness": {"name": "polynomial", "exponent": 1.0}}


def test_a_late_contribution_counts_less(replica, clients):
    """FedBuff: the mean of scaled deltas, each by (1 + staleness)^-exponent."""
    one, two, three = clients(3).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2, **POLYNOMIAL)
            await contribute(engine, session, 1, "a", one)
            await contribute(engine, session, 1, "b", two)
            first = await stepped(engine, session, 1)
            await contribute(engine, session, 1, "c", three)  # made for round 1, counted in 2
            with pytest.raises(RoundClosed) as again:
                await contribute(engine, session, 1, "a", one)
            assert again.value.extra["counted"] is True
            await contribute(engine, session, 2, "a", one)
            document = (
                await engine.rounds.read(session, 2) if await engine.rounds.wait_for_step(session, 2, 20) else None
            )
            assert [(row.client, row.staleness) for row in document.contributions] == [("c", 1), ("a", 0)]
            found = await stepped(engine, session, 2)
            np.testing.assert_allclose(found, first + (three / 2 + one) / 2, rtol=1e-4, atol=1e-5)

    run(scenario())


def test_too_late_is_too_late(replica, clients):
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=1, **POLYNOMIAL, max_staleness=1)
            for number in (1, 2):
                await contribute(engine, session, number, "a", one)
                await stepped(engine, session, number)
            with pytest.raises(RoundClosed) as late:
                await contribute(engine, session, 1, "b", two)
            assert late.value.extra == {"round": 3, "counted": False}
            assert (await contribute(engine, session, 2, "b", two)).outcome == "accepted"

    run(scenario())


def test_parameters_become_a_gradient_at_once(replica, clients):
    """What they were made from is gone later; after their round has closed they are refused."""
    one, two = clients(2).values()
    start = np.linspace(-1, 1, len(one), dtype=np.float32)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2, start=start, **POLYNOMIAL)
            await contribute(engine, session, 1, "a", start + one, kind="parameters")
            assert (await contribute(engine, session, 1, "a", start + one, kind="parameters")).outcome == "duplicate"
            await contribute(engine, session, 1, "b", start + two, kind="parameters")
            np.testing.assert_allclose(await stepped(engine, session, 1), start + (one + two) / 2, atol=1e-5)
            with pytest.raises(RoundClosed, match="delta"):
                await contribute(engine, session, 1, "c", start + one, kind="parameters")

    run(scenario())


def test_what_comes_while_a_round_closes_waits_for_the_next(replica, clients, monkeypatch):
    one, two, three = clients(3).values()
    members, gate = RoundStore.members, asyncio.Event()

    async def scenario():
        async with replica() as engine:
            loop = asyncio.get_running_loop()

            def slow(self, session_id, frozen):
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
                return members(self, session_id, frozen)

            monkeypatch.setattr(RoundStore, "members", slow)
            session = await opened(engine, quorum=2, max_contributions=9, **POLYNOMIAL)
            await contribute(engine, session, 1, "a", one)
            await contribute(engine, session, 1, "b", two)
            while (
                await asyncio.to_thread(engine.store.rounds.look, (await engine.view(session)).head)
            ).standing.frozen is None:
                await asyncio.sleep(0.01)
            assert (await contribute(engine, session, 1, "c", three)).outcome == "accepted"
            gate.set()
            await stepped(engine, session, 1)
            document = await engine.rounds.read(session, 2)
            assert [(row.client, row.staleness) for row in document.contributions] == [("c", 1)]

    run(scenario())
