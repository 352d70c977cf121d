"""Checks for lines of the Lua scripts that guard against damage and stores that went back.

See test_guards.py.
"""

import secrets
from contextlib import suppress
from dataclasses import replace

import pytest
import redis

from adamd.errors import AdamdError, Damaged, InternalError
from adamd_service.records import Committed, IdempotencyKey
from adamd_service.store import garbage, index
from adamd_service.store.keys import IndexKeys, SessionKeys

from .guards import key_of
from .sessions import (
    array_of,
    body_of,
    commit_of,
    create,
    keys_of,
    new_head,
    next_record,
    params,
    snapshot,
    staged_record,
    step,
    steps,
)


def stripped(client, pattern):
    """Everything under a pattern, and whether it stays; a hash has no order that would last."""
    found = {}
    for key in client.scan_iter(match=pattern, count=1000):
        value = client.hgetall(key) if client.type(key) == b"hash" else client.dump(key)
        found[key] = value, client.ttl(key) < 0
    return found


def whole_or_nothing(client, pattern, damaged, work):
    """With a key of the wrong type the work fails, and everything else is as it was."""
    there = client.dump(damaged)
    client.delete(damaged)
    client.xadd(damaged, {"not": "ours"})
    before = stripped(client, pattern)
    try:
        with pytest.raises((AdamdError, redis.ResponseError)):
            work()
        after = stripped(client, pattern)
        assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()
    finally:
        client.delete(damaged)
        if there is not None:
            client.restore(damaged, 0, there)


# -- commit.lua, snapshot.lua, parameters.lua, patch.lua


def commit_is_whole_or_not_at_all(store, client):
    head = step(store, create(store), staged_body=True)
    record = staged_record(store, head, b"12345678")
    key = IdempotencyKey("k", "d" * 32)
    commit = commit_of(head, record, idempotency=key)
    names = SessionKeys(head.spec.id)
    chunk = names.chunk(record.attempt, 0)
    for damaged in (names.head, names.ring, names.record(2), names.idempotency("k"), chunk):
        whole_or_nothing(client, f"adamd:{{{head.spec.id}}}:*", damaged, lambda: store.commit(head.spec.id, commit))
    client.expire(chunk, 60)
    assert store.commit(head.spec.id, commit) == Committed()


def commit_counts_the_log_anew(store, client):
    """The step counts with its key; how much log there is only says when a snapshot is due."""
    head = create(store)
    for number, spoiled in enumerate(("x", "", "-1", "nan", "1e300", "inf"), 1):
        client.hset(key_of(head, "head"), "log_bytes", spoiled)
        key = IdempotencyKey(f"k{number}", "d" * 32)
        record = next_record(head, b"12345678")
        assert store.commit(head.spec.id, commit_of(head, record, idempotency=key)) == Committed()
        head = store.load_head(head.spec.id)
        assert (head.step, head.log_bytes) == (number, 8)
        assert store.idempotent(head.spec.id, f"k{number}") == ("d" * 32, number)


def commit_seals_the_settings(store, client):
    head = create(store)
    record = next_record(head)
    store.commit(head.spec.id, commit_of(head, record, settings={"lr": 0.5}, settings_revision=1))
    client.hset(key_of(head, "head"), "settings", '{"lr":0.7}')
    with pytest.raises(Damaged):
        store.load_head(head.spec.id)


def snapshot_is_whole_or_not_at_all(store, client):
    head = step(store, create(store))
    snapshot(store, head)
    head = step(store, head)
    names = SessionKeys(head.spec.id)
    for damaged in (names.head, names.record(2), names.garbage):
        client.delete(*client.scan_iter(match=f"adamd:{{{head.spec.id}}}:snapshot:left*"), "none")
        before = stripped(client, f"adamd:{{{head.spec.id}}}:*")
        there = client.dump(damaged)
        client.delete(damaged)
        client.xadd(damaged, {"not": "ours"})
        with pytest.raises(AdamdError):
            snapshot(store, head, snapshot_id=f"left{secrets.token_hex(4)}")
        client.delete(damaged)
        if there is not None:
            client.restore(damaged, 0, there)
        after = stripped(client, f"adamd:{{{head.spec.id}}}:*")
        assert {key: value for key, value in after.items() if b":left" not in key} == before
        assert not any(stays for key, (_, stays) in after.items() if b":left" in key)
    assert snapshot(store, head)[1]


def snapshot_looks_at_the_newest(store, client):
    """It would put it into the list."""
    head = step(store, create(store))
    newest = client.hget(key_of(head, "head"), "newest").decode()
    client.hset(key_of(head, "head"), "newest", newest.replace('"counts":[0]', '"counts":[7]'))
    before = client.hgetall(key_of(head, "head"))
    with pytest.raises(Damaged):
        snapshot(store, head)
    assert client.hgetall(key_of(head, "head")) == before


def snapshot_replaces_a_damaged_one(store, client):
    """The one before it is what the session was rebuilt from: it stays, and so does the log that follows it."""
    head = create(store)
    for _ in range(2):
        head = step(store, head, staged_body=True)
        snapshot(store, head)
    older, newest = store.load_head(head.spec.id).snapshots
    head = step(store, head, staged_body=True)
    assert not snapshot(store, head, damaged=older.id)[1], "another one was newer"
    ref, kept = snapshot(store, head, damaged=newest.id)
    assert kept
    after = store.load_head(head.spec.id)
    assert after.snapshots == (older, ref)
    store.collect(head.spec.id)
    assert [one.step for one in store.records(head.spec.id, 2, 3)] == [2, 3]
    stays = [key for key in keys_of(client, head.spec.id) if client.ttl(key_of(head, key)) < 0]
    assert {key.split(":")[1] for key in stays if key.startswith("snapshot:")} == {older.id, ref.id}


def putting_is_whole_or_not_at_all(store, client):
    head = create(store)
    names = SessionKeys(head.spec.id)
    before = client.hgetall(names.head)
    client.xadd(names.garbage, {"not": "ours"})
    with pytest.raises(AdamdError):
        store.put_parameters(head, replace(head, chain="c" * 64), params(head), (0,))
    assert client.hgetall(names.head) == before


def patching_wants_a_step(store, client):
    head = step(store, create(store))
    client.hset(key_of(head, "head"), "step", "1x")
    before = client.hgetall(key_of(head, "head"))
    head = replace(head, settings={"lr": 0.5})
    with suppress(AdamdError, ValueError):
        store.patch(head.spec.id, head, head)
    assert client.hgetall(key_of(head, "head")) == before


def patching_seals_the_settings(store, client):
    head = create(store)
    store.patch(head.spec.id, head, replace(head, settings={"lr": 0.5}, settings_revision=1))
    client.hset(key_of(head, "head"), "settings", '{"lr":0.7}')
    with pytest.raises(Damaged):
        store.load_head(head.spec.id)


# -- claim.lua, release.lua, delete.lua


def claiming_is_whole_or_not_at_all(store, client):
    tenant = f"t-{secrets.token_hex(4)}"
    head, names = new_head(name="one", tenant=tenant), IndexKeys(tenant)
    whole_or_nothing(
        client, f"adamd:{{index.{tenant}}}:*", names.sessions, lambda: index.claim(store._client, head.spec, None)
    )
    assert index.claim(store._client, head.spec, None) is None


def releasing_is_whole_or_not_at_all(store, client):
    tenant = f"t-{secrets.token_hex(4)}"
    head, names = create(store, name="one", tenant=tenant), IndexKeys(tenant)
    for damaged in (names.names, names.sessions):
        whole_or_nothing(
            client,
            f"adamd:{{index.{tenant}}}:*",
            damaged,
            lambda: index.release(store._client, tenant, head.spec.id, "one", remember=60),
        )
    assert store.find(tenant, "one") == head.spec.id


def deleting_is_whole_or_not_at_all(store, client):
    """Whatever its keys hold: it is gone, and nothing of it stays."""
    for damaged in ("head", "ring", "garbage", "readers", "record:2"):
        head = steps(store, create(store), 3, staged_body=True)
        snapshot(store, head)
        client.delete(key_of(head, damaged))
        client.xadd(key_of(head, damaged), {"not": "ours"})
        assert store.delete(head.spec.id, tenant="default")
        if damaged == "readers":
            assert client.exists(key_of(head, "readers")) == 0
        store.collect(head.spec.id)
        assert keys_of(client, head.spec.id) == ["gone"], damaged


def a_damaged_head_can_be_deleted(store, client):
    """What it names is not believed: it may name too little."""
    for field, spoiled in (("snapshots", "[]"), ("step", "x"), ("log_first", "9"), ("spec", "{"), (None, None)):
        name = f"n-{secrets.token_hex(4)}"
        head = steps(store, create(store, name=name), 2, staged_body=True)
        if field is None:
            client.set(key_of(head, "head"), "no hash")
        else:
            client.hset(key_of(head, "head"), field, spoiled)
        with pytest.raises(Damaged):
            store.load_head(head.spec.id)
        assert store.delete(head.spec.id, tenant="default")
        store.collect(head.spec.id)
        assert keys_of(client, head.spec.id) == ["gone"], field
        assert store.create(new_head(name=name), {}, (), None), "its name is free"
        assert client.zscore("adamd:{index.default}:sessions", head.spec.id) is None


# -- collect.lua, unlink.lua, discard.lua


def damaged_garbage_stops_nothing(store, client):
    head = create(store)
    client.rpush(
        key_of(head, "garbage"), "{", '"text"', "5", "null", '{"kind":"records","at":1,"first":"x","last":"y"}', b"\xff"
    )
    for _ in range(3):
        head = step(store, head, staged_body=True)
        snapshot(store, head)
    try:
        with store.lease(head.spec.id):
            store.collect(head.spec.id)
        store.collect(head.spec.id)
    except InternalError as error:
        pytest.fail(f"one damaged entry stopped the collection: {error}")
    left = client.lrange(key_of(head, "garbage"), 0, -1)
    assert left and all(b'"kind":"everything"' in entry for entry in left), left
    assert [key for key in keys_of(client, head.spec.id) if key.startswith("record")] == ["record:3"]


def damaged_garbage_goes_with_its_session(store, client):
    head = create(store)
    for _ in range(3):
        head = step(store, head, staged_body=True)
        snapshot(store, head)
    entry = client.lindex(key_of(head, "garbage"), 0)
    client.lset(key_of(head, "garbage"), 0, entry.replace(b'"id"', b'"ix"'))
    store.collect(head.spec.id)
    assert array_of(store, head.spec.id, (ref := store.load_head(head.spec.id).snapshots[-1]), ref.arrays[0])
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    assert keys_of(client, head.spec.id) == ["gone"]


def _listed_then(store, client, head, change):
    """A collector reads the list; before it unlinks anything, the store is another one."""
    there = garbage.script
    real = there("unlink")

    def unlink(client_, keys, *args):
        if real_changes:
            real_changes.pop()()
        return real(client_, keys, *args)

    real_changes = [change]
    garbage.script = lambda name: unlink if name == "unlink" else there(name)
    try:
        store.collect(head.spec.id)
    finally:
        garbage.script = there


def unlinking_wants_the_entry(store, client):
    """The store went back to before a deletion: the session is there, and its garbage list is not."""
    head = steps(store, create(store), 2, staged_body=True)
    fields = client.hgetall(key_of(head, "head"))
    store.delete(head.spec.id)

    def back():
        client.delete(key_of(head, "garbage"), key_of(head, "gone"))

    _listed_then(store, client, head, back)
    client.hset(key_of(head, "head"), mapping=fields)
    ref = store.load_head(head.spec.id).snapshots[0]
    assert array_of(store, head.spec.id, ref, ref.arrays[0])
    assert [body_of(store, head.spec.id, one) for one in store.records(head.spec.id, 1, 2)] == [b"gradient"] * 2


def _back_to(client, head, fields):
    def back():
        client.hset(key_of(head, "head"), mapping=fields)

    return back


def unlinking_spares_a_named_snapshot(store, client):
    head = step(store, create(store))
    fields = client.hgetall(key_of(head, "head"))
    first = store.load_head(head.spec.id).snapshots[0]
    for _ in range(2):
        snapshot(store, head)
        head = step(store, head)
    _listed_then(store, client, head, _back_to(client, head, fields))
    assert array_of(store, head.spec.id, first, first.arrays[0])


def unlinking_spares_named_records(store, client):
    head = steps(store, create(store), 2, staged_body=True)
    fields = client.hgetall(key_of(head, "head"))
    for _ in range(2):
        snapshot(store, head)
        head = step(store, head, staged_body=True)
    client.lpop(key_of(head, "garbage"))
    _listed_then(store, client, head, _back_to(client, head, fields))
    assert [body_of(store, head.spec.id, one) for one in store.records(head.spec.id, 1, 2)] == [b"gradient"] * 2


def unlinking_compares_the_attempt(store, client):
    """The list was read where another attempt had made this step."""
    head = steps(store, create(store), 2, staged_body=True)
    for _ in range(2):
        snapshot(store, head)
        head = step(store, head, staged_body=True)
    client.lpop(key_of(head, "garbage"))

    def other():
        client.hset(key_of(head, "record", 1), "attempt", "other")

    _listed_then(store, client, head, other)
    assert client.exists(key_of(head, "record", 1))


def discarding_spares_what_is_named(store, client):
    """Who discards has asked a store that is another one by now, where the attempt was committed."""
    head = step(store, create(store), staged_body=True)
    record = store.records(head.spec.id, 1, 1)[0]
    store.discard(head.spec.id, record.attempt, record.bulk)
    assert body_of(store, head.spec.id, record) == b"gradient"
    ref = head.snapshots[0]
    store.snapshots.discard(head.spec.id, ref.id, ref.arrays)
    assert array_of(store, head.spec.id, ref, ref.arrays[0])
