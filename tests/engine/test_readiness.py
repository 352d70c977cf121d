"""Readiness: the store is asked once for all callers, and not more often than needed."""

import asyncio

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.engine.readiness import FRESH, Readiness


class Probe:
    def __init__(self):
        self.asked, self.now, self.wrong = 0, 0.0, None
        self.check = Readiness(self, lambda: self.now).check

    async def __call__(self):
        self.asked += 1
        await asyncio.sleep(0)
        if self.wrong is not None:
            raise self.wrong


def test_an_answer_counts_for_a_while_and_for_all():
    async def scenario():
        probe = Probe()
        await asyncio.gather(*(probe.check() for _ in range(5)))
        probe.now += FRESH / 2
        await probe.check()
        assert probe.asked == 1
        probe.wrong = StoreUnavailable("away", retry_after=1.0)
        probe.now += FRESH / 2
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="away"):
                await probe.check()
        assert probe.asked == 2
        probe.wrong = None
        probe.now += FRESH
        await probe.check()
        assert probe.asked == 3

    asyncio.run(scenario())


def test_who_goes_away_does_not_end_it_for_the_others():
    async def scenario():
        probe = Probe()
        first, second = (asyncio.create_task(probe.check()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert probe.asked == 1

    asyncio.run(scenario())


def test_an_error_that_nobody_expected_is_not_kept_for_ever():
    async def scenario():
        probe = Probe()
        probe.wrong = ValueError("what is this")
        with pytest.raises(ValueError, match="what is this"):
            await probe.check()
        probe.wrong, probe.now = None, FRESH
        await probe.check()

    asyncio.run(scenario())
