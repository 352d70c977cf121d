"""What another replica does between a replica's look at the store and its own change."""

import asyncio

import numpy as np
import pytest

from adamd.errors import Moved, SessionDeleted

from .conftest import create_call, run, step_call

START = np.linspace(-1, 1, 50, dtype=np.float32)


def between(engine, method, first):
    """The next call of a method of the engine's store waits until ``first`` (a coroutine) is done elsewhere."""
    real, loop = getattr(engine.store, method), asyncio.get_running_loop()

    def delayed(*args, **more):
        setattr(engine.store, method, real)
        asyncio.run_coroutine_threadsafe(first, loop).result(20)
        return real(*args, **more)

    setattr(engine.store, method, delayed)


@pytest.mark.parametrize("change", ["patch", "delete"])
def test_if_match_holds_although_another_replica_steps_meanwhile(replica, change):
    """Who says If-Match wants that very state changed or ended, not one step further."""

    async def scenario():
        async with replica() as one, replica() as two:
            session = (await one.create(create_call(START))).head.spec.id
            chain = (await one.step(step_call(session, 1, START))).chain
            between(one, change, two.step(step_call(session, 2, START)))
            with pytest.raises(Moved) as told:
                await (
                    one.patch(session, {"lr": 0.5}, None, chain) if change == "patch" else one.delete(session, chain)
                )
            assert told.value.step == 2
            head = (await two.view(session)).head
            assert head.step == 2 and head.settings["lr"] == 0.01 and head.settings_revision == 0
            # and with the chain that there is, both are done
            await one.patch(session, {"lr": 0.5}, None, head.chain)
            await one.delete(session, head.chain)
            with pytest.raises(SessionDeleted):
                await two.view(session)

    run(scenario())
