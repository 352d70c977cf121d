"""Small steps that the event loop makes itself, their commits too: no thread, and nobody waits for them."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import StoreUnavailable
from adamd.wire import layout
from adamd_service.engine import step
from adamd_service.engine.step import Stepper
from adamd_service.optim.kernels import numba_kernel
from adamd_service.store import loop_connections

from .conftest import create_call, fold, run, step_call

RNG = np.random.default_rng(11)
SIZE = 300


def given(count, size=SIZE):
    return [RNG.standard_normal(size).astype(np.float32) for _ in range(count)]


async def begun(engine, **more):
    """A session after its first step, and the connection that its next commits go over."""
    (start, gradient) = given(2)
    session = (await engine.create(create_call(start, **more))).head.spec.id
    await engine.step(step_call(session, 1, gradient))
    while more.get("durability") != "memory" and not engine.store.lines._idle:
        await asyncio.sleep(0.005)
    return session, start, [gradient]


def in_no_thread(engine):
    def refuse(*_):
        raise AssertionError("a thread was asked")

    engine.store.commit = refuse


def test_after_the_first_steps_no_thread_commits(replica):
    async def scenario():
        async with replica() as engine:
            session, start, made = await begun(engine)
            in_no_thread(engine)
            for number, gradient in enumerate(given(300), 2):
                made.append(gradient)
                answer = await engine.step(step_call(session, number, gradient))
            assert answer.parameters.tobytes() == fold(start, made)
            async with replica() as other:
                assert (await other.parameters(session)).parameters.tobytes() == fold(start, made)

    run(scenario())


def test_a_store_that_stands_still_holds_up_no_one_else(replica, store_factory):
    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=60.0) as engine:
            session, start, made = await begun(engine)
            beside, _, _ = await begun(engine, durability="memory")
            in_no_thread(engine)
            made += given(1)
            store.pause()
            try:
                waiting = asyncio.create_task(engine.step(step_call(session, 2, made[1])))
                for number, gradient in enumerate(given(20), 2):
                    await engine.step(step_call(beside, number, gradient))
                assert not waiting.done()
            finally:
                store.resume()
            assert (await waiting).parameters.tobytes() == fold(start, made)

    run(scenario())


def test_the_same_step_twice_at_once_is_committed_once_and_the_second_waits(replica, store_factory):
    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=60.0) as engine:
            session, start, made = await begun(engine)
            made += given(1)
            sent = []

            def counting(way):
                return lambda *args: [sent.append(args), way(*args)][1]

            for name in ("commit", "commit_soon"):
                setattr(engine.store, name, counting(getattr(engine.store, name)))
            store.pause()
            try:
                both = [asyncio.create_task(engine.step(step_call(session, 2, made[1]))) for _ in range(2)]
                await asyncio.sleep(0.2)
                assert len(sent) == 1 and engine.hot.find(session).lock.locked()
            finally:
                store.resume()
            answers = await asyncio.gather(*both)
            assert len(sent) == 1 and sorted(answer.replayed for answer in answers) == [False, True]
            assert {answer.parameters.tobytes() for answer in answers} == {fold(start, made)}

    run(scenario())


def test_a_caller_that_goes_away_while_the_commit_is_on_its_way(replica, store_factory):
    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=60.0) as engine:
            session, start, made = await begun(engine)
            in_no_thread(engine)
            made += given(2)
            store.pause()
            leaving = asyncio.create_task(engine.step(step_call(session, 2, made[1])))
            await asyncio.sleep(0.05)
            leaving.cancel()
            await asyncio.sleep(0.05)
            assert not leaving.done()  # what it holds is not given back before it is over
            store.resume()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            answer = await engine.step(step_call(session, 2, made[1]))
            assert answer.replayed
            answer = await engine.step(step_call(session, 3, made[2]))
            assert answer.parameters.tobytes() == fold(start, made)

    run(scenario())


def test_a_store_that_went_away_and_came_back(replica, store_factory):
    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=2.0) as engine:
            session, start, made = await begun(engine)
            made += given(2)
            store.kill()
            with pytest.raises(StoreUnavailable):
                await engine.step(step_call(session, 2, made[1]))
            await asyncio.to_thread(store.start)
            for number in (2, 3):
                answer = await engine.step(step_call(session, number, made[number - 1]))
            assert answer.parameters.tobytes() == fold(start, made)

    run(scenario())


def test_as_many_at_once_as_come_and_no_more_connections_than_there_may_be(replica, store_factory, monkeypatch):
    monkeypatch.setattr(loop_connections, "MAX_CONNECTIONS", 3)

    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=60.0) as engine:
            sessions = [await begun(engine) for _ in range(12)]
            for number in range(2, 22):
                if number < 6:  # whoever comes finds those before it waiting
                    store.pause()
                    asyncio.get_running_loop().call_later(0.05, store.resume)
                gradients = given(len(sessions))
                await asyncio.gather(
                    *(
                        engine.step(step_call(session, number, gradient))
                        for (session, _, _), gradient in zip(sessions, gradients, strict=True)
                    )
                )
                for (_, _, made), gradient in zip(sessions, gradients, strict=True):
                    made.append(gradient)
                while engine.store.lines._growing:
                    await asyncio.sleep(0.001)
                assert engine.store.lines._open <= 3
            assert engine.store.lines._open == 3
            for session, start, made in sessions:
                assert (await engine.parameters(session)).parameters.tobytes() == fold(start, made)

    run(scenario())


def test_a_key_and_settings_that_want_a_kernel_go_the_long_way(replica):
    """The store is asked for a key before the commit, and a compiler takes its time: neither on the loop."""

    async def scenario():
        async with replica() as engine:
            session, start, made = await begun(engine)
            soon, taken = engine.store.commit_soon, []

            async def counted(*args):
                taken.append(args)
                return await soon(*args)

            engine.store.commit_soon = counted
            made += given(3)
            first = await engine.step(step_call(session, None, made[1], key="k"))
            again = await engine.step(step_call(session, None, made[1], key="k"))
            assert again.replayed and again.applied_step == first.step == 2
            await engine.step(step_call(session, 3, made[2], settings={"clip_value": 1e30}))
            assert not taken
            answer = await engine.step(step_call(session, 4, made[3]))
            assert len(taken) == 1
            assert answer.parameters.tobytes() == fold(start, made)

    run(scenario())


def test_a_session_of_many_tensors_goes_the_long_way(replica):
    """Each of them may have a count and scalars of its own: 16,384 held up everybody for a second."""

    async def scenario():
        async with replica() as engine:
            for tensors in (step.TENSORS, step.TENSORS + 1):
                start, first, second = given(3, tensors)
                one_each = layout.named_layout({f"t{i:03}": (1,) for i in range(tensors)})
                session = (await engine.create(replace(create_call(start), layout=one_each))).head.spec.id
                await engine.step(step_call(session, 1, first))
                while not engine.store.lines.at_hand:
                    await asyncio.sleep(0.005)
                soon, taken = engine.store.commit_soon, []
                engine.store.commit_soon = lambda *args, soon=soon, taken=taken: (taken.append(args), soon(*args))[1]
                answer = await engine.step(step_call(session, 2, second))
                assert len(taken) == (tensors == step.TENSORS)
                assert answer.parameters.tobytes() == fold(start, [first, second])

    run(scenario())


def test_settings_that_another_replica_changed_are_compiled_off_the_loop(replica, monkeypatch):
    async def scenario():
        async with replica() as engine, replica() as other:
            session, start, made = await begun(engine)
            await other.patch(session, {"clip_value": 1e30}, None)
            monkeypatch.setattr(numba_kernel, "_LOOPS", {})  # this process is `engine`'s, which has not seen them
            compiled, where = numba_kernel._compile, []

            def compiling(*args):
                where.append(threading.current_thread())
                return compiled(*args)

            monkeypatch.setattr(numba_kernel, "_compile", compiling)
            assert (await engine.view(session)).head.settings["clip_value"] == 1e30
            made += given(1)
            in_no_thread(engine)
            answer = await engine.step(step_call(session, 2, made[1]))
            assert where and threading.current_thread() not in where
            assert answer.parameters.tobytes() == fold(start, made)

    run(scenario())


def test_who_finds_no_connection_makes_no_record_before_there_is_a_thread(replica, store_factory, monkeypatch):
    """A record has a copy of the body: as many as there are threads, not as many as there are calls."""
    monkeypatch.setattr(loop_connections, "MAX_CONNECTIONS", 0)
    records, record = [], Stepper._record
    monkeypatch.setattr(Stepper, "_record", lambda *args, **more: records.append(args) or record(*args, **more))

    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=60.0, threads=2) as engine:
            starts = given(6)
            sessions = [(await engine.create(create_call(start))).head.spec.id for start in starts]
            gradients = given(len(sessions))
            for session in sessions:
                await engine.parameters(session)
            store.pause()
            try:
                steps = [
                    asyncio.create_task(engine.step(step_call(session, 1, gradient)))
                    for session, gradient in zip(sessions, gradients, strict=True)
                ]
                await asyncio.sleep(0.1)
                assert len(records) <= 2
            finally:
                store.resume()
            for answer, start, gradient in zip(await asyncio.gather(*steps), starts, gradients, strict=True):
                assert answer.parameters.tobytes() == fold(start, [gradient])

    run(scenario())


def test_who_closes_waits_for_the_threads_without_holding_up_the_loop(replica, store_factory):
    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=10.0) as engine:
            session, start, made = await begun(engine)
            store.pause()
            reading = asyncio.create_task(engine.parameters(session))
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0.05)
            store.resume()
            assert (await reading).parameters.tobytes() == fold(start, made)
            await closing

    run(scenario())
