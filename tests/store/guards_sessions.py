"""What each line of the Lua scripts is there for, as functions that fail without it: sessions and readers.

See test_guards.py.
"""

import json
import secrets
from dataclasses import replace

import pytest

from adamd.errors import Busy, SessionDeleted, StoreUnavailable, UnknownSession
from adamd_service.records import IdempotencyKey
from adamd_service.store import ChunkMissing, Created, Repeated, Taken, index
from adamd_service.store.scripts import Script

from .guards import full, key_of
from .sessions import array_of, body_of, create, new_head, params, snapshot, step, steps

# -- create.lua, parameters.lua, patch.lua


def creating_stops_at_a_tombstone(store, client):
    head = new_head()
    client.set(key_of(head, "gone"), index.NEVER_CREATED)
    with pytest.raises(StoreUnavailable):
        store.create(head, params(head), (0,), None)
    with pytest.raises(UnknownSession):
        store.load_head(head.spec.id)
    client.delete(key_of(head, "gone"))


def creating_never_replaces_a_session(store, client):
    head = step(store, create(store))
    with pytest.raises(StoreUnavailable):
        store.create(replace(head, incarnation="another", step=0), params(head), (0,), None)
    assert store.load_head(head.spec.id) == head
    assert store.create(head, params(head), (0,), None) == Created(), "the very same, again"


def creating_wants_every_chunk(store, client):
    head = new_head()
    write, lost = store.snapshots.write_array, []

    def write_and_lose(session_id, snapshot_id, name, data, pace=None):
        ref = write(session_id, snapshot_id, name, data, pace)
        lost.append(store._client.unlink(key_of(head, "snapshot", snapshot_id, name, 0)))
        return ref

    store.snapshots.write_array = write_and_lose
    try:
        with pytest.raises(StoreUnavailable):
            store.create(head, params(head), (0,), None)
    finally:
        del store.snapshots.write_array
    assert lost == [1]
    with pytest.raises(UnknownSession):
        store.load_head(head.spec.id)


def creating_makes_chunks_permanent(store, client):
    head = create(store)
    assert client.ttl(key_of(head, "snapshot", head.snapshots[0].id, "params", 0)) == -1


def _put(store, head, **wrong):
    after = replace(head, chain="c" * 64, parameters_missing=False)
    return store.put_parameters(replace(head, **wrong), after, params(head), (0,))


def putting_compares_the_incarnation(store, client):
    assert not _put(store, create(store), incarnation="another")


def putting_compares_the_chain(store, client):
    assert not _put(store, create(store), chain="0" * 64)


def putting_stops_at_step_1(store, client):
    assert not _put(store, step(store, create(store)))


def putting_makes_chunks_permanent(store, client):
    head = create(store, missing=True)
    assert _put(store, head)
    (ref,) = store.load_head(head.spec.id).snapshots
    assert client.ttl(key_of(head, "snapshot", ref.id, "params", 0)) == -1
    assert step(store, store.load_head(head.spec.id)), "parameters are no longer missing"


def putting_unnames_what_it_replaces(store, client):
    head = create(store)
    assert _put(store, head)
    assert store.collect(head.spec.id) == 1
    with pytest.raises(ChunkMissing):
        array_of(store, head.spec.id, head.snapshots[0], head.snapshots[0].arrays[0])


def putting_knows_itself(store, client):
    """Sent again because the first answer was lost, after steps and a snapshot: what it wrote is in use."""
    head = create(store, missing=True)
    run = Script.repeatably

    def twice(script, *call):
        Script.repeatably = run  # of what follows, too
        run(script, *call)
        snapshot(store, steps(store, store.load_head(head.spec.id), 2))
        return run(script, *call)

    Script.repeatably = twice
    try:
        assert _put(store, head)
    finally:
        Script.repeatably = run
    (ref, _) = store.load_head(head.spec.id).snapshots
    assert array_of(store, head.spec.id, ref, ref.arrays[0])


def patching_compares_the_incarnation(store, client):
    head = create(store)
    assert store.patch(head.spec.id, replace(head, incarnation="another"), head) is None


def patching_compares_the_revision(store, client):
    head = create(store)
    assert store.patch(head.spec.id, replace(head, settings_revision=3), head) is None


def patching_compares_the_chain_if_asked(store, client):
    head = step(store, create(store))
    after = replace(head, settings_revision=1)
    assert store.patch(head.spec.id, head, after, "0" * 64) is None
    assert store.patch(head.spec.id, head, after, head.chain) == 1


# -- delete.lua, claim.lua, release.lua


def deleting_compares_the_chain_if_asked(store, client):
    head = step(store, create(store))
    assert not store.delete(head.spec.id, "0" * 64)
    assert store.load_head(head.spec.id) == head
    assert store.delete(head.spec.id, head.chain)


def deleting_works_in_a_full_store(store, client):
    head = step(store, create(store, name=f"n-{secrets.token_hex(4)}"), staged_body=True)
    with full(client):
        store.delete(head.spec.id)
        assert store.collect(head.spec.id) == 3
    with pytest.raises(SessionDeleted):
        store.load_head(head.spec.id)
    with pytest.raises(SessionDeleted):
        store.find("default", head.spec.name)


def fencing_spares_a_session_that_has_come(store, client):
    """Its head came between two looks of whoever met the claim: it is there, and keeps its name."""
    head = create(store, name=f"n-{secrets.token_hex(4)}")
    assert not index._ended(store._client, head.spec.id)
    assert store.load_head(head.spec.id) == head


def a_name_is_claimed_once(store, client):
    name = f"n-{secrets.token_hex(4)}"
    head, other = create(store, name=name), new_head(name=name)
    assert store.create(other, params(other), (0,), None) == Taken("name", head.spec.id, 0)
    assert store.find("default", name) == head.spec.id


def a_key_is_claimed_once(store, client):
    key = IdempotencyKey(secrets.token_hex(4), "d" * 32)
    head, other = create(store, key=key), new_head()
    assert store.create(other, params(other), (0,), key) == Repeated(head.spec.id)
    assert store.create(other, params(other), (0,), replace(key, digest="e")) == Taken("idempotency", head.spec.id)


def a_claim_under_way_is_left_alone(store, client):
    """For as long as a creation may take; see test_creation.py for what happens after it."""
    name = f"n-{secrets.token_hex(4)}"
    claimed, other = new_head(name=name), new_head(name=name)
    assert index.claim(store._client, claimed.spec, None) is None
    with pytest.raises(Busy, match="being created"):
        store.create(other, params(other), (0,), None)
    assert 0 < client.pttl(f"adamd:{{index.default}}:claim:{claimed.spec.id}") <= index.CLAIM_SECONDS * 1000
    assert store.create(claimed, params(claimed), (0,), None) == Created()


def a_name_that_is_used_again_is_not_gone(store, client):
    name = f"n-{secrets.token_hex(4)}"
    store.delete(create(store, name=name).spec.id)
    head = create(store, name=name)
    client.hdel("adamd:{index.default}:names", name)
    with pytest.raises(UnknownSession):
        store.find("default", name)
    assert store.load_head(head.spec.id)


def releasing_spares_what_is_another_ones(store, client):
    name, key = f"n-{secrets.token_hex(4)}", IdempotencyKey(secrets.token_hex(4), "d" * 32)
    head = create(store, name=name, key=key)
    index.release(store._client, "default", "s_other", name, key, remember=60)
    assert store.find("default", name) == head.spec.id
    other = new_head()
    assert store.create(other, params(other), (0,), key) == Repeated(head.spec.id)


# -- lease.lua, collect.lua


def a_lease_holds_garbage_back(store, client):
    head = create(store)
    with store.lease(head.spec.id):
        for _ in range(2):
            head = step(store, head, staged_body=True)
            snapshot(store, head)
        assert store.collect(head.spec.id) == 0
        assert body_of(store, head.spec.id, store.records(head.spec.id, 1, 1)[0])
        assert 0 < client.ttl(key_of(head, "readers")) <= 120
    assert store.collect(head.spec.id) == 3


def a_lease_of_the_same_second_holds_it_back_too(store, client):
    head = create(store, missing=True)
    now = client.time()[0]
    client.rpush(
        key_of(head, "garbage"), json.dumps({"kind": "snapshot", "at": now, "snapshot": {"id": "f0", "arrays": []}})
    )
    client.zadd(key_of(head, "readers"), {"reader": now})
    store.collect(head.spec.id)
    assert client.llen(key_of(head, "garbage")) == 1


def a_lease_that_nobody_gave_back_ends(store, client):
    head = steps(store, create(store), 2)
    client.zadd(key_of(head, "readers"), {"dead": client.time()[0] - 121})
    store.delete(head.spec.id)
    client.zadd(key_of(head, "readers"), {"dead": client.time()[0] - 121})
    assert store.collect(head.spec.id) == 3


def a_lease_begins_in_a_full_store(store, client):
    """Reading goes on without a lease too, so the lease itself is looked for."""
    head = step(store, create(store), staged_body=True)
    with full(client), store.lease(head.spec.id):
        assert client.zcard(f"adamd:{{{head.spec.id}}}:readers") == 1
        assert body_of(store, head.spec.id, store.records(head.spec.id, 1, 1)[0]) == b"gradient"
