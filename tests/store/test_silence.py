"""A store that stands still: the first time-out is the last, nothing more is sent, and recovery is automatic."""

import asyncio
import socket
import threading
import time

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.records import Committed
from adamd_service.store import UnknownOutcome
from adamd_service.store.connection.silence import Silences
from servers import free_port

from .sessions import answering, commit_of, create, next_record, step

WAIT = 30


def until(happened):
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(ask):
    try:
        ask()
    except StoreUnavailable:
        return False
    return True


def calls(process, command):
    with process.client() as client:
        return client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


def test_a_silent_store_is_asked_no_more(store_factory, store_kind, connected):
    """Nor twice by one call: what a time-out leaves unknown is found out, or not, without another."""
    process = store_factory(store_kind)
    store = connected(process, timeout=0.5)
    head = step(store, create(store))
    before = calls(process, "hgetall"), calls(process, "evalsha")
    process.pause()
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    assert store.silences.knows(("127.0.0.1", process.port))
    for ask in (
        lambda: store.resolve(head.spec.id, "a", 2),  # repeatable three times
        lambda: store.load_head(head.spec.id),
        lambda: store.commit(head.spec.id, commit_of(head, next_record(head))),  # not sent, so nothing is unknown
        lambda: store.stage(head.spec.id, "upload", 3).write(memoryview(b"abc")),
        lambda: create(store),
        store.ping,
    ):
        with pytest.raises(StoreUnavailable, match="stopped answering") as told:
            ask()
        assert told.value.retry_after
    process.resume()
    answering(store)
    assert calls(process, "evalsha") == before[1] + 1, "the one commit whose answer did not come"
    assert calls(process, "hgetall") == before[0]
    assert store.load_head(head.spec.id).step == 2, "it was applied when the store went on, and nobody fenced it"


def test_a_call_that_waits_for_a_silent_store_is_told_with_the_first(store_factory, connected):
    """Sixty callers on four threads: each waits for one time-out at most, and most of them for none."""
    process = store_factory()
    store = connected(process, timeout=1.0, connections=4)
    head = create(store)
    before = calls(process, "hgetall")
    told, places = [], threading.Semaphore(4)

    def reader():
        with places:
            told.append(answers(lambda: store.load_head(head.spec.id)))

    process.pause()
    readers = [threading.Thread(target=reader) for _ in range(60)]
    for one in readers:
        one.start()
    for one in readers:
        one.join(WAIT)
    process.resume()
    answering(store)
    assert told == [False] * 60
    assert calls(process, "hgetall") - before <= 4


def test_the_loop_tells_it_too(store_factory, connected):
    process = store_factory()
    store = connected(process, timeout=0.5)
    head = step(store, create(store))

    async def scenario():
        for _ in range(2):
            await store.lines.grow(asyncio.to_thread)
            if not store.lines.at_hand:
                break
        call = commit_of(head, next_record(head))
        process.pause()
        with pytest.raises(UnknownOutcome):
            await store.commit_soon(head.spec.id, call)
        assert store.silences.knows(("127.0.0.1", process.port))
        assert await store.commit_soon(head.spec.id, call) is None
        with pytest.raises(StoreUnavailable, match="stopped answering"):
            await asyncio.to_thread(store.commit, head.spec.id, call)

    asyncio.run(scenario())
    process.resume()
    answering(store)
    assert store.load_head(head.spec.id).step == 2


def test_an_address_that_takes_connections_and_says_nothing(connected):
    """As a lost route does, or a port with another program: the greeting alone takes the time-out."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        store = connected(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", timeout=0.3)
        with pytest.raises(StoreUnavailable):
            store.ping()
        with pytest.raises(StoreUnavailable, match="stopped answering"):
            store.ping()
    until(lambda: not store.silences.knows(("127.0.0.1", store._client.connection_pool.connection_kwargs["port"])))
    with pytest.raises(StoreUnavailable, match="refused|reset|closed"):  # what it is now
        store.ping()


def test_a_store_that_is_not_there_is_not_silent(connected):
    """A refused connection costs nothing, so it is tried each time."""
    store = connected(f"redis://127.0.0.1:{free_port()}/0", timeout=0.3)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="refused"):
            store.ping()


def test_a_silent_store_goes_on_where_a_fenced_step_was(store_factory, connected):
    """What was answered 503 may be sent again, and counts once."""
    process = store_factory()
    store = connected(process, timeout=0.5)
    head = create(store)
    record = next_record(head)
    process.pause()
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))
    with pytest.raises(StoreUnavailable):
        store.resolve(head.spec.id, record.attempt, 1)
    process.resume()
    answering(store)
    verdict = store.resolve(head.spec.id, record.attempt, 1)
    now = store.load_head(head.spec.id)
    assert (verdict, now.step) in (("committed", 1), ("fenced", 0))
    if verdict == "fenced":
        assert store.commit(head.spec.id, commit_of(head, next_record(head))) == Committed()


def test_no_thread_to_ask_with_is_no_refusal_for_ever(monkeypatch):
    def full(_thread):
        raise RuntimeError("can't start new thread")

    silences = Silences()
    monkeypatch.setattr(threading.Thread, "start", full)
    silences.note_time_out(("localhost", 1), lambda patience: None)
    assert not silences.knows(("localhost", 1))
