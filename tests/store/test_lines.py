"""Commits from the event loop: the same as from a thread, or nothing has happened, or nobody knows."""

import asyncio
import time

import pytest

from adamd.errors import InternalError
from adamd_service.records import Committed
from adamd_service.store import RedisStore, UnknownOutcome, redis_store
from adamd_service.store.keys import SessionKeys
from adamd_service.store.scripts import Script

from . import guards
from .contract import StoreContract
from .sessions import answering, commit_of, create, moved_on, next_record, step


class OnTheLoop(RedisStore):
    """A store whose commits are the loop's."""

    def commit(self, session_id, commit):
        async def soon():
            await self.lines.grow(asyncio.to_thread)
            return await self.commit_soon(session_id, commit)

        outcome = asyncio.run(soon())
        if outcome is None:  # the store did not know the script, or refused
            outcome = super().commit(session_id, commit)
        return outcome


@pytest.fixture(scope="module")
def store(store_process):
    store = OnTheLoop.connect(store_process.url, timeout=10.0)
    yield store
    store.close()


class TestTheContract(StoreContract):
    pass


@pytest.mark.parametrize("check", [name for name in vars(guards) if name.startswith("commit_") and name != "commit_of"])
def test_what_the_script_guards(check, store, client):
    getattr(guards, check)(store, client)


async def soon(store, head, record):
    return await store.commit_soon(head.spec.id, commit_of(head, record))


def test_without_a_connection_nothing_is_sent(store_process, connected):
    store = connected(store_process)
    head = create(store)
    assert asyncio.run(soon(store, head, next_record(head))) is None
    assert store.load_head(head.spec.id) == head


def test_a_store_that_does_not_know_the_script_has_not_run_it(store_process, connected, client):
    store = connected(store_process)
    head = create(store)
    client.script_flush()

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        assert await soon(store, head, next_record(head)) is None
        assert store.load_head(head.spec.id) == head
        now = step(store, head)  # a thread teaches it
        assert await soon(store, now, next_record(now)) == Committed()

    asyncio.run(scenario())


def test_a_full_store_has_not_run_it_either(store_process, connected, client):
    store = connected(store_process)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        with guards.full(client):
            assert await soon(store, head, next_record(head)) is None
        assert store.load_head(head.spec.id) == head
        assert await soon(store, head, next_record(head)) == Committed()

    asyncio.run(scenario())


def test_a_script_that_failed_half_way_is_not_sent_again(store_process, connected, client):
    """Its record is there, so a second copy would be told that all was done; the head has not moved."""
    store = connected(store_process)
    head = step(store, create(store))
    ring = SessionKeys(head.spec.id).ring
    client.delete(ring)
    client.set(ring, "damaged")

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        with pytest.raises(InternalError, match="WRONGTYPE"):
            await soon(store, head, next_record(head))
        assert store.load_head(head.spec.id) == head

    asyncio.run(scenario())


def test_no_answer_in_time_is_an_unknown_outcome_and_the_connection_is_gone(store_factory, connected):
    running = store_factory()
    store = connected(running, timeout=0.3)
    head = step(store, create(store))
    record = next_record(head)

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        running.pause()
        try:
            with pytest.raises(UnknownOutcome):
                await soon(store, head, record)
        finally:
            running.resume()
        assert (store.lines._open, store.lines._idle) == (0, [])

    asyncio.run(scenario())
    answering(store)
    until(lambda: store.load_head(head.spec.id).step == 2)  # it was on its way
    assert store.resolve(head.spec.id, record.attempt, 2) == "committed"


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("more", [b"PING\r\n", b"EVAL 'return 7' 0\r\n", b"EVAL 'return {\"no nonce\"}' 0\r\n"])
def test_another_calls_answer_is_not_taken_for_its_own(store_process, connected, more):
    store = connected(store_process)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        (line,) = store.lines._idle
        line.is_quiet = lambda: True  # it comes after the look
        line._socket.sendall(more)
        with pytest.raises(UnknownOutcome):
            await soon(store, head, next_record(head))
        assert not store.lines._idle

        await store.lines.grow(asyncio.to_thread)
        (line,) = store.lines._idle
        line._socket.sendall(more)
        while line.is_quiet():
            await asyncio.sleep(0.01)
        again = moved_on(head, next_record(head)) if store.load_head(head.spec.id).step > head.step else head
        assert await soon(store, again, next_record(again)) is None  # seen before anything is sent
        assert store.lines._open == 0

    asyncio.run(scenario())


def test_an_answer_too_many_that_came_with_the_right_one_is_seen(store_process, connected):
    store = connected(store_process)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        (line,) = store.lines._idle
        assert await line.ask(b"PING\r\nPING\r\n") == b"PONG"
        until(lambda: not line.is_quiet())  # read with the first, or still on its way
        assert await soon(store, head, next_record(head)) is None
        assert store.lines._open == 0
        await store.lines.grow(asyncio.to_thread)
        (line,) = store.lines._idle
        line._reader.feed(b"+PONG\r\n")
        assert await soon(store, head, next_record(head)) is None
        assert store.load_head(head.spec.id) == head

    asyncio.run(scenario())


def test_what_cannot_be_packed_takes_no_connection(store_process, connected):
    store = connected(store_process)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        with pytest.raises(UnicodeEncodeError):
            await store.lines.run(Script("", "0" * 40), [], ["\ud800"])
        assert store.lines._open == len(store.lines._idle) == 1
        assert await soon(store, head, next_record(head)) == Committed()

    asyncio.run(scenario())


def test_who_is_cancelled_leaves_no_connection_with_an_answer_under_way(store_factory, connected):
    running = store_factory()
    store = connected(running)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        running.pause()
        task = asyncio.create_task(soon(store, head, next_record(head)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        running.resume()
        assert (store.lines._open, store.lines._idle) == (0, [])

    asyncio.run(scenario())


@pytest.mark.parametrize("unread", [b"", b"PING\r\n"], ids=["closed", "reset"])
def test_connections_that_ended_are_seen_before_anything_is_sent(store_factory, connected, unread):
    running = store_factory()
    store = connected(running)
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        running.pause()
        store.lines._idle[0]._socket.sendall(unread)  # whoever dies with something unread resets the connection
        running.kill()
        assert await soon(store, head, next_record(head)) is None
        await store.lines.grow(asyncio.to_thread)  # nobody answers: that is all
        assert store.lines._open == 0 and store.lines.should_grow

    asyncio.run(scenario())


def test_each_is_made_once_however_many_ask(store_process, connected):
    store = connected(store_process)

    async def scenario():
        await asyncio.gather(*(store.lines.grow(asyncio.to_thread) for _ in range(8)))
        assert store.lines._open == len(store.lines._idle) == 1 and not store.lines.should_grow

    asyncio.run(scenario())
    store.close()
    assert store.lines._open == 0


@pytest.mark.parametrize("scheme", ["rediss", "redis+sentinel"])
def test_only_to_a_single_server_and_without_tls(scheme):
    path = "/service" if scheme == "redis+sentinel" else ""
    store = RedisStore.connect(f"{scheme}://127.0.0.1:1{path}", timeout=0.1)
    assert not store.lines.should_grow
    store.close()


def test_the_script_is_the_one_that_threads_run(monkeypatch, store_process, connected):
    store = connected(store_process)
    head = create(store)
    own = Script("return {ARGV[1], 'moved'}", "0" * 40)
    monkeypatch.setattr(redis_store, "script", lambda name: own)

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        assert await soon(store, head, next_record(head)) is None  # it has never heard of that one

    asyncio.run(scenario())
