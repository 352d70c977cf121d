"""The contract on a primary that Sentinel watches, and what a failover does to it."""

import signal

import pytest
import redis

from adamd.errors import StoreUnavailable
from adamd_service.records import Lost
from adamd_service.store import RedisStore, UnknownOutcome
from adamd_service.store.keys import SessionKeys

from .clusters import Watched, until
from .contract import StoreContract
from .sessions import answering, commit_of, create, next_record, staged_record, step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def watched(store_kind):
    running = Watched(store_kind)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def store(watched):
    store = RedisStore.connect(watched.url, timeout=5.0)
    yield store
    store.close()


class TestSentinel(StoreContract):
    """The same, through the address that Sentinel tells."""


def test_its_promise_names_the_failover(store):
    store.check()
    assert "appendfsync everysec" in store.promise
    assert "failover to an asynchronous replica may lose steps" in store.promise


def test_a_store_that_is_closed_has_left_its_sentinels_too(watched, connected):
    def clients_of_sentinel():
        with redis.Redis(port=watched.port, host="127.0.0.1", protocol=2) as asking:
            return len(asking.client_list())

    before = clients_of_sentinel()
    store = connected(watched.url)
    store.ping()
    assert clients_of_sentinel() == before + 1
    store.close()
    until(lambda: clients_of_sentinel() == before)


def test_a_service_that_sentinel_does_not_know(watched, connected):
    store = connected(f"redis+sentinel://127.0.0.1:{watched.port}/another/0")
    with pytest.raises(StoreUnavailable):
        store.ping()


def test_a_sentinel_that_stands_still_is_asked_no_more(watched, connected):
    store = connected(watched.url, timeout=0.5)
    watched.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            store.ping()
        assert store.silences.knows(("127.0.0.1", watched.port))
        with pytest.raises(StoreUnavailable, match="stopped answering"):
            store.ping()
    finally:
        watched.process.send_signal(signal.SIGCONT)
    answering(store)


def test_the_primary_dies(watched, store):
    """The last test of the module. The same client finds the new primary; what is not there is known as not there."""
    head = step(store, create(store))
    with watched.replica.client() as client:
        until(lambda: client.hget(SessionKeys(head.spec.id).head, "step") == b"1")
    ahead = step(store, head, staged_body=True)
    record = staged_record(store, ahead, b"gradient")
    old = watched.primary_port
    watched.primary.kill()
    with pytest.raises((UnknownOutcome, StoreUnavailable)):
        store.commit(head.spec.id, commit_of(ahead, record))
    until(lambda: watched.primary_port != old)

    def back():
        try:
            return store.standing(head.spec.id)
        except StoreUnavailable:
            return None

    until(back)
    assert store.resolve(head.spec.id, record.attempt, 3) == "fenced"
    here = store.load_head(head.spec.id)
    assert here.step in (1, 2), "an asynchronous replica may have missed the last step"
    if here.step == 1:
        assert store.commit(head.spec.id, commit_of(ahead, next_record(ahead))) == Lost("moved")
    assert step(store, here, staged_body=True)
