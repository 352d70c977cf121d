"""What another replica does between a replica's look at the store and its own change."""

import asyncio

import numpy as np
import pytest
from structlog.testing import capture_logs

from adamd.errors import Moved, SessionDeleted

from .conftest import body_of, create_call, run, step_call

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


@pytest.mark.parametrize("end", ["delete", "close"])
def test_a_snapshot_that_is_for_nothing_is_given_up_and_says_why(replica, valkey, end):
    """Of a session that is deleted meanwhile, and at the end of the server: not after the whole of it was written."""
    big = np.ones(1_000_000, np.float32)

    async def scenario():
        async with replica(snapshot_records=2, snapshot_pace=2e5) as engine:  # many seconds, were it written
            session = (await engine.create(create_call(big))).head.spec.id
            for number in (1, 2):
                await engine.step(step_call(session, number, big))
            hot = engine.hot.find(session)
            while len([key for key in chunks(valkey, session) if ttl(valkey, key) > 0]) == 0:
                await asyncio.sleep(0.01)
            assert hot.snapshotting
            await (engine.delete(session) if end == "delete" else engine.close())
            while hot.snapshotting:
                await asyncio.sleep(0.01)
            assert [key for key in chunks(valkey, session) if ttl(valkey, key) > 0] == []

    with capture_logs() as logged:
        run(asyncio.wait_for(scenario(), 30))
    why = {"delete": "the session is deleted", "close": "the server is shutting down"}[end]
    assert [entry["reason"] for entry in logged if entry["event"] == "snapshot given up"] == [why]


def chunks(valkey, session):
    with valkey.client() as client:
        return list(client.scan_iter(match=f"adamd:{{{session}}}:snapshot:*"))


def ttl(valkey, key):
    with valkey.client() as client:
        return client.ttl(key)


def test_a_post_whose_key_was_not_kept_is_applied_once(replica, valkey):
    """The store's user lost a command that the commit ends with: the step is there, and its key is not."""
    rules = "reset on >word ~adamd:* +@all".split()

    async def scenario():
        with valkey.client() as client:
            client.execute_command("ACL", "SETUSER", "keyless", *rules)
            async with replica(url=valkey.url.replace("//", "//keyless:word@")) as engine:
                session = (await engine.create(create_call(START))).head.spec.id
                client.execute_command("ACL", "SETUSER", "keyless", *rules, "-set")
                try:
                    answer = await engine.step(step_call(session, None, START, key="k"))
                finally:
                    client.execute_command("ACL", "SETUSER", "keyless", *rules)
                assert (answer.step, answer.applied_step) == (1, 1)
                assert (await engine.view(session)).head.step == 1

    run(scenario())


def test_parameters_that_are_set_answer_with_the_settings_of_one_head(replica, monkeypatch):
    """Another replica changes the settings after the parameters are set, and before they are read back."""

    async def scenario():
        async with replica() as one, replica() as two:
            session = (await one.create(create_call(START))).head.spec.id
            real, loop = one.store.put_parameters, asyncio.get_running_loop()

            def put(*args):
                done = real(*args)
                asyncio.run_coroutine_threadsafe(two.patch(session, {"lr": 0.5}, None), loop).result(20)
                return done

            monkeypatch.setattr(one.store, "put_parameters", put)
            view = await one.set_parameters(session, body_of(START.tobytes()), None, None)
            assert view.head.settings["lr"] == view.settings.hyper.lr == 0.5

    run(scenario())
