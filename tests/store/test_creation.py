"""A creation is two scripts in two slots; whatever dies between them is repaired by whoever meets it."""

import secrets
import threading

import pytest

from adamd.errors import Busy, SessionDeleted, StoreFull, StoreUnavailable, UnknownSession
from adamd_service.records import IdempotencyKey
from adamd_service.store import Created, Repeated, Taken, index
from adamd_service.store.keys import IndexKeys

from .sessions import create, keys_of, new_head, params


def fresh_name():
    return f"n-{secrets.token_hex(6)}"


def fresh_key(digest="d" * 32):
    return IdempotencyKey(secrets.token_hex(6), digest)


def torn(store, client, *, key=None, late=True, **more):
    """A creation whose server died after the claim; ``late``: longer ago than a creation may take."""
    head = new_head(**more)
    assert index.claim(store._client, head.spec, key) is None
    if late:
        client.delete(IndexKeys(head.spec.tenant).claim(head.spec.id))
    return head


def make(store, head, key=None):
    return store.create(head, params(head), (0,), key)


def test_a_name_without_a_session_is_taken_over(store, client, monkeypatch):
    name = fresh_name()
    dead, other = torn(store, client, name=name), new_head(name=name)
    assert make(store, other) == Created()
    assert store.find("default", name) == other.spec.id
    # The dead one's server was only slow: its late creation fails, and what it wrote is unlinked.
    monkeypatch.setattr(index, "claim", lambda *_: None)  # it has claimed already
    with pytest.raises(StoreUnavailable):
        make(store, dead)
    with pytest.raises(UnknownSession):
        store.load_head(dead.spec.id)
    assert keys_of(client, dead.spec.id) == ["gone"]
    assert store.find("default", name) == other.spec.id


def test_a_creation_under_way_is_waited_for(store, client):
    name, key = fresh_name(), fresh_key()
    slow = torn(store, client, name=name, key=key, late=False)
    for other_key in (None, key):
        with pytest.raises(Busy, match="being created") as told:
            make(store, new_head(name=name), other_key)
        assert told.value.retry_after
    assert make(store, slow, key) == Created()
    assert make(store, new_head(name=name), key) == Repeated(slow.spec.id)


def test_patience_is_the_stores_own_clock(store, client):
    """A server whose clock is wrong by years neither loses its claim at once nor keeps it for ever."""
    for created_at in (1.0, 4e9):
        name = fresh_name()
        torn(store, client, name=name, late=False, created_at=created_at)
        with pytest.raises(Busy, match="being created"):
            make(store, new_head(name=name))
        dead = torn(store, client, name=fresh_name(), created_at=created_at)
        assert make(store, new_head(name=dead.spec.name)) == Created()


def test_a_key_without_a_session_is_taken_over(store, client):
    key = fresh_key()
    torn(store, client, key=key)
    other = new_head()
    assert make(store, other, key) == Created()
    assert make(store, new_head(), key) == Repeated(other.spec.id)


@pytest.mark.parametrize("died", ["after the fence", "after the name's release"])
def test_a_repair_that_died_halfway_is_repaired(store, client, died):
    """The dead session has its tombstone already, and its key still points there: "never made" is not "deleted"."""
    name, key = fresh_name(), fresh_key()
    dead = torn(store, client, name=name, key=key)
    assert index._ended(store._client, dead.spec.id)
    if died == "after the name's release":
        index.release(store._client, "default", dead.spec.id, name)
    other = new_head(name=name)
    assert make(store, other, key) == Created()
    assert store.find("default", name) == other.spec.id


def test_a_key_whose_session_was_deleted_is_used_up(store, client):
    key = fresh_key()
    head = create(store, key=key)
    store.delete(head.spec.id)
    with pytest.raises(SessionDeleted):
        make(store, new_head(), key)
    assert make(store, new_head(), IdempotencyKey(key.key, "e" * 32)) == Taken("idempotency", head.spec.id)


def test_a_deletion_that_died_halfway_frees_the_name(store, client):
    name = fresh_name()
    head = create(store, name=name)
    names = f"adamd:{{{head.spec.id}}}:"
    client.set(f"{names}gone", index.DELETED)
    client.delete(f"{names}head")
    assert store.find("default", name) == head.spec.id
    with pytest.raises(SessionDeleted):
        store.load_head(head.spec.id)
    other = new_head(name=name)
    assert make(store, other) == Created()
    assert store.find("default", name) == other.spec.id


def test_the_list_drops_what_was_never_made(store, client):
    tenant = f"t{secrets.token_hex(4)}"
    live = create(store, tenant=tenant)
    torn(store, client, tenant=tenant)
    slow = torn(store, client, tenant=tenant, late=False)
    heads, token = store.list_sessions(tenant, 10, None)
    assert ([head.spec.id for head in heads], token) == ([live.spec.id], None)
    listed = {member.decode() for member in client.zrange(IndexKeys(tenant).sessions, 0, -1)}
    assert listed == {live.spec.id, slow.spec.id}, "who is on the way stays"
    assert make(store, slow) == Created()
    assert len(store.list_sessions(tenant, 10, None)[0]) == 2


def test_one_of_many_gets_a_name(store):
    for key in (None, fresh_key()):
        name, told = fresh_name(), []
        start = threading.Barrier(8)

        def race(key=key, name=name, told=told, start=start):
            head = new_head(name=name)
            start.wait()
            try:
                outcome = make(store, head, key)
            except (Busy, StoreUnavailable) as error:
                outcome = error.detail
            told.append((head.spec.id, outcome))

        racers = [threading.Thread(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        (winner,) = [session for session, outcome in told if outcome == Created()]
        assert store.find("default", name) == winner
        for session, outcome in told:
            if session == winner:
                continue
            if isinstance(outcome, str):
                assert "being created" in outcome
            else:
                assert outcome == (Taken("name", winner) if key is None else Repeated(winner))
            with pytest.raises(UnknownSession):
                store.load_head(session)


def test_more_sessions_of_one_moment_than_a_page_looks_at(store, client):
    """Created at the very same time: pages still go through all of them (claims of theirs are enough to see it)."""
    tenant = f"t{secrets.token_hex(4)}"
    count = index.SAME_TIME_SESSIONS + 20
    client.zadd(IndexKeys(tenant).sessions, {f"s_{n:04}": 5.0 for n in range(count)})
    listed, after = [], None
    while True:
        page = index.page(store._client, tenant, 3, after)
        listed += [session for session, _ in page[:3]]
        if len(page) <= 3:
            break
        after = (page[2][1], page[2][0])
    assert listed == [f"s_{n:04}" for n in range(count)]


def test_there_are_only_so_many_sessions(store_factory, connected):
    """Names and keys that are known are answered as ever: who opens a session by name must find it."""
    store = connected(store_factory())
    store.most_sessions = 2
    first, key = new_head(name="first"), IdempotencyKey("k", "d")
    assert store.create(first, params(first), (0,), key) == Created()
    create(store)
    with pytest.raises(StoreFull, match="2 sessions, as many as this server keeps; .*ADAMD_MAX_SESSIONS"):
        create(store)
    again = new_head(name="first")
    assert store.create(again, params(again), (0,), None) == Taken("name", first.spec.id, 0)
    assert store.create(again, params(again), (0,), key) == Repeated(first.spec.id)
    store.delete(first.spec.id)
    create(store)
