"""Work side by side: asyncio's cancellation, and steps that a script sends ahead of itself."""

import asyncio
import threading
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

import adamd
import adamd.aio
from adamd import errors
from contract.shells import url_of
from sdk.peers import Relay

PATIENT = adamd.Timeout(total=60)


@pytest.fixture(params=["http", "grpc"])
def wire(request):
    return request.param


@pytest.fixture
def relay(server, wire):
    with Relay(server.grpc_port if wire == "grpc" else server.port) as made:
        made.url = url_of(wire, made.port, made.port)
        yield made


def url(wire, server):
    return url_of(wire, server.port, server.grpc_port)


async def cancelled_midway(session, relay, gradient, out):
    """Start a step, hold its bytes back, cancel it."""
    relay.hold()
    task = asyncio.create_task(session.step(gradient, out=out))
    await asyncio.sleep(0.2)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    relay.hold(False)


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_a_cancelled_step_leaves_the_session_usable_and_the_memory_alone(relay, size):
    first, second = (np.full(size, value, "f4") for value in (1, -2))

    async def main():
        async with adamd.aio.connect(relay.url, timeout=PATIENT) as client:
            session, twin = [await client.create(np.zeros(size, "f4"), durability="memory") for _ in range(2)]
            wanted = [await twin.step(first), await twin.step(second)]
            out = np.full(size, 7, "f4")
            await cancelled_midway(session, relay, first, out)
            before = out.copy()
            assert session.step_number == 0
            await client.info()
            assert (out == before).all()  # nobody writes into it any more
            assert (await session.step(first) == wanted[0]).all()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    relay.hold()
                    await session.step(second)
            relay.hold(False)
            assert (await session.step(second) == wanted[1]).all()
            assert (await session.info())["step"] == 2
            await session.delete(anyway=True)
            await twin.delete(anyway=True)

    asyncio.run(main())


def test_a_step_cancelled_after_it_was_applied_is_replayed(server, wire, relay):
    async def main():
        async with adamd.aio.connect(relay.url, timeout=PATIENT) as client:
            session = await client.create(np.zeros(3, "f4"))
            await session.step(np.ones(3, "f4"))
            same = await client.session(session.id)
            relay.down.clear()
            task = asyncio.create_task(same.step(np.ones(3, "f4")))
            with adamd.connect(url(wire, server)) as other:
                while other.session(session.id).step_number < 2:
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            relay.hold(False)
            params = await same.step(np.ones(3, "f4"))
            assert same.step_number == 2 == (await session.info())["step"]
            assert (params == await same.parameters()).all()

    asyncio.run(main())


def test_sessions_side_by_side_and_one_sessions_calls_in_turn(server, wire):
    async def train(client, seed):
        session = await client.create(np.zeros(1000, "f4"), durability="memory")
        for k in range(10):
            params = await session.step(np.full(1000, seed + k + 1, "f4"))
            assert len(set(params.tolist())) == 1
        await session.delete(anyway=True)
        return session.step_number

    async def main():
        async with adamd.aio.connect(url(wire, server)) as client:
            shared = await client.create(np.zeros(3, "f4"))
            async with asyncio.TaskGroup() as group:
                own = [group.create_task(train(client, seed)) for seed in range(20)]
                group.create_task(_many(shared))
            assert {task.result() for task in own} == {10}
            assert shared.step_number == 20 == (await shared.info())["step"]

    async def _many(shared):
        await asyncio.gather(*(shared.step(np.ones(3, "f4")) for _ in range(20)))

    asyncio.run(main())


def test_a_watch_tells_what_has_moved(server, wire):
    async def main():
        async with adamd.aio.connect(url(wire, server)) as client:
            session = await client.create(np.zeros(3, "f4"), lr=0.5)
            told = []
            with pytest.raises(errors.SessionDeleted):
                async for seen in client.watch(session.id, every=0.01):
                    told.append((seen["step"], seen["chain"] == session.chain, seen["settings"]["lr"], seen["metrics"]))
                    if session.step_number == 2:
                        await session.delete(anyway=True)
                    else:
                        loss = 0.5 if session.step_number else None
                        await session.step(np.ones(3, "f4"), lr=0.25, loss=loss, metrics={"none": float("nan")})
            assert told == [(0, True, 0.5, {}), (1, True, 0.25, {}), (2, True, 0.25, {"loss": 0.5})]

    asyncio.run(main())


def away_for(relay, seconds):
    """End every connection, those that come in this time too; returns the thread that ends it."""

    def accept():
        relay.cut = lambda number: (None, None, False)

    relay.cut = lambda number: (0, 0, True)
    relay.drop()
    back = threading.Timer(seconds, accept)
    back.start()
    return back


def test_a_watch_tells_once_that_the_server_is_away_and_goes_on_when_it_is_back(server, wire, client):
    with Relay(server.grpc_port if wire == "grpc" else server.port) as relay:
        with adamd.connect(url_of(wire, relay.port, relay.port), timeout=PATIENT) as watching:
            session, away = client.create(np.zeros(3, "f4")), []
            seen = watching.watch(session.id, every=0.01, away=away.append)
            assert next(seen)["step"] == 0
            for times in (1, 2):
                back = away_for(relay, 0.5)  # several attempts
                session.step(np.ones(3, "f4"), loss=times)
                assert next(seen)["metrics"] == {"loss": times}
                back.join()
                assert [isinstance(error, errors.TransportError) for error in away] == [True] * times


def test_where_a_session_stands_is_told_again_after_an_absence_and_without_a_listener_it_is_a_warning(server):
    with Relay(server.port) as relay, adamd.connect(relay.url, timeout=PATIENT) as client:
        seen = client.watch(client.create(np.zeros(3, "f4")).id, every=0.01)
        first = next(seen)
        away_for(relay, 0.5)
        with pytest.warns(RuntimeWarning, match="no answer from .*; it is tried again"):
            assert next(seen) == first


# -- step_async


@pytest.fixture
def client(server, wire):
    with adamd.connect(url(wire, server)) as made:
        yield made


def test_steps_sent_ahead_come_in_order_and_other_calls_after_them(client):
    gradients = [np.random.default_rng(k).standard_normal(5).astype("f4") for k in range(6)]
    session, twin = client.create(np.zeros(5, "f4")), client.create(np.zeros(5, "f4"))
    wanted = [twin.step(gradient) for gradient in gradients]
    futures = [session.step_async(gradient, loss=0.5) for gradient in gradients[:-1]]
    last = session.step(gradients[-1])
    assert all(future.done() for future in futures)
    assert [future.result().tobytes() for future in futures] == [params.tobytes() for params in wanted[:-1]]
    assert (last == wanted[-1]).all()
    assert session.step_number == 6


def test_a_failed_step_cancels_those_behind_it(relay):
    with adamd.connect(relay.url) as client:
        session = client.create(np.zeros(2, "f4"))
        session.step(np.ones(2, "f4"))
        relay.hold()
        bad = session.step_async(np.float32([1, np.nan]))
        behind = [session.step_async(np.ones(2, "f4")) for _ in range(2)]
        relay.hold(False)
        assert isinstance(bad.exception(), errors.BadGradient)
        for future in behind:
            assert isinstance(future.exception(), CancelledError)
        assert session.step_number == 1
        session.step_async(np.ones(2, "f4")).result()
        assert session.info()["step"] == 2


def test_a_step_behind_a_failure_that_nobody_saw_is_not_sent(client):
    """The script queues on, and does not know yet: what it sends was computed for parameters that never came."""
    session = client.create(np.zeros(2, "f4"))
    session.step(np.ones(2, "f4"))
    bad = session.step_async(np.float32([1, np.nan]))
    wait([bad])  # it has failed; nobody has asked how
    behind = session.step_async(np.ones(2, "f4"))
    wait([behind])
    assert session.info()["step"] == 1
    assert isinstance(behind.exception(), CancelledError)  # and so the failure is known
    session.step_async(np.ones(2, "f4")).result()
    wait([session.step_async(np.float32([1, np.nan]))])
    session.step(np.ones(2, "f4"))  # as it is by another call
    session.step_async(np.ones(2, "f4")).result()
    assert session.info()["step"] == 4
    assert isinstance(bad.exception(), errors.BadGradient)


def test_a_queued_step_is_sent_as_it_was_asked_for(relay):
    with adamd.connect(relay.url) as client:
        session, twin = client.create(np.zeros(3, "f4")), client.create(np.zeros(3, "f4"))
        gradient, changed = np.float32([1e-3, 1.0, 3.0]), {"lr": 0.5}
        twin.step(gradient)
        wanted = twin.step(gradient, settings={"lr": 0.5})
        relay.hold()
        session.step_async(gradient)  # the other waits behind it, and is not begun
        queued = session.step_async(gradient, settings=changed)
        session.encoding, session.answer_dtype = adamd.TopK(0.1), "bfloat16"
        changed["lr"] = 0.25
        relay.hold(False)
        assert queued.result().tobytes() == wanted.tobytes() and queued.result().dtype == np.float32
        assert session.settings["lr"] == 0.5


def test_a_callback_may_use_the_session(relay):
    """It runs in the thread that makes the steps, while others are queued behind it."""
    came, over = [], threading.Event()

    def then(future):
        came.extend([future.result(), session.step(np.ones(2, "f4"))])
        over.set()

    with adamd.connect(relay.url) as client:
        session = client.create(np.zeros(2, "f4"))
        relay.hold()
        session.step_async(np.ones(2, "f4")).add_done_callback(then)
        behind = session.step_async(np.ones(2, "f4"))
        relay.hold(False)
        assert over.wait(30)
        behind.result()
        assert session.step_number == 3 and came[0][0] > came[1][0] > behind.result()[0]


def test_what_does_not_fit_is_told_by_the_future(client):
    session = client.create(np.zeros(2, "f4"))
    with pytest.raises(errors.WrongLayout):
        session.step_async(np.ones(3, "f4")).result()
    assert session.step_number == 0
