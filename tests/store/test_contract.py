"""The contract on one server of each kind, and what only a look behind the store's back can see."""

import secrets
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import StoreUnavailable
from adamd.wire import layout
from adamd_service.records import BulkRef, Committed, IdempotencyKey, SnapshotRef
from adamd_service.store import UnknownOutcome, chunks

from .contract import StoreContract
from .sessions import (
    array_of,
    body_of,
    commit_of,
    create,
    keys_of,
    moved_on,
    new_head,
    next_record,
    params,
    snapshot,
    staged,
    staged_record,
    step,
    steps,
)


class TestOneServer(StoreContract):
    """On valkey and on redis-server."""


def test_what_is_committed_lasts_and_what_is_not_goes_away(store, client):
    head = create(store, 200_000)
    names = head.spec.id
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    uncommitted = [f"adamd:{{{names}}}:body:{record.attempt}:{i}" for i in range(2)]
    assert [0 < client.ttl(key) <= chunks.lifetime(chunks.CHUNK_BYTES + 1) for key in uncommitted] == [True, True]
    written = store.snapshots.write_array(names, "snap", "params", np.zeros(10, np.uint8))
    assert 0 < client.ttl(f"adamd:{{{names}}}:snapshot:snap:params:0") <= chunks.CHUNK_TTL_SECONDS
    key = IdempotencyKey("k", "d" * 32)
    assert store.commit(names, commit_of(head, record, idempotency=key)) == Committed()
    ref = SnapshotRef("snap", 1, record.chain, (1,), (written,))
    assert store.snapshots.commit(head.spec, head.incarnation, ref, 0)
    left = {key: client.ttl(f"adamd:{{{names}}}:{key}") for key in keys_of(client, names)}
    ends = {name for name, ttl in left.items() if ttl != -1}
    assert {name.split(":")[0] for name in ends} == {"key"}, "the client's key, for a day"
    assert 86_000 < left[ends.pop()] <= 86_400
    assert {name.split(":")[0] for name in left} == {"head", "ring", "record", "body", "snapshot", "key"}


def test_a_deleted_session_leaves_its_tombstone_only(store, client):
    head = steps(store, create(store, name=f"n-{secrets.token_hex(4)}"), 3, staged_body=True)
    for _ in range(2):
        assert snapshot(store, head)[1]
        head = steps(store, head, 2, staged_body=True)
    with store.lease(head.spec.id):
        store.delete(head.spec.id)
        store.collect(head.spec.id)
    assert keys_of(client, head.spec.id) == ["gone"]
    assert 86_000 < client.ttl(f"adamd:{{{head.spec.id}}}:gone") <= 86_400


def test_a_fence_and_a_key_go_by_themselves(store, client):
    head = create(store)
    assert store.resolve(head.spec.id, "someone", 1) == "fenced"
    record = next_record(head)
    store.commit(head.spec.id, commit_of(head, record, idempotency=IdempotencyKey("k", "d" * 32)))
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    left = keys_of(client, head.spec.id)
    assert {key.split(":")[0] for key in left} == {"gone", "fence", "key"}
    assert all(0 < client.ttl(f"adamd:{{{head.spec.id}}}:{key}") <= 86_400 for key in left)


def test_what_came_to_nothing_is_unlinked_at_once(store, client):
    """A refused creation, put, snapshot, or upload leaves nothing behind that waits for its TTL."""
    name = f"n-{secrets.token_hex(4)}"
    head = create(store, name=name)
    loser = new_head(name=name)
    store.create(loser, params(loser), (0,), None)
    assert keys_of(client, loser.spec.id) == []

    before = keys_of(client, head.spec.id)
    store.put_parameters(replace(head, chain="0" * 64), head, params(head), (0,))
    attempt, ref = staged(store, head.spec.id, b"x" * 10)
    store.discard(head.spec.id, attempt, ref)
    store.discard(head.spec.id, attempt, BulkRef())
    ref, kept = snapshot(store, replace(head, chain="0" * 64))
    assert not kept
    store.snapshots.discard(head.spec.id, ref.id, ref.arrays)

    class Stop(Exception):
        pass

    def stop(nbytes):
        raise Stop

    with pytest.raises(Stop):
        store.snapshots.write_array(head.spec.id, "snap", "params", np.zeros(10, np.uint8), stop)
    assert keys_of(client, head.spec.id) == before


def test_many_tensors(store):
    """The largest layout there is, with a record and snapshots to match."""
    count = layout.MAX_TENSORS
    tensors = {f"layer.{n}.weight": (1,) for n in range(count)}
    head = create(store, tensors=tensors, arrays={"params": np.zeros(count, "f4")})
    assert store.load_head(head.spec.id) == head
    updates = [[n, n + 1, {"lr": 0.1, "step_size": n / 7}] for n in range(count)]
    for _ in range(3):
        record = staged_record(store, head, bytes(4 * count), updates=updates)
        assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
        assert store.records(head.spec.id, record.step, record.step) == [record]
        head = moved_on(head, record)
        assert snapshot(store, head)[1]
    assert store.load_head(head.spec.id).snapshots[-1].counts == (3,) * count
    assert store.collect(head.spec.id) > 0


@pytest.mark.slow
def test_as_many_chunks_as_there_may_be(store, client, monkeypatch):
    """1,000 for a body and 4,000 for a state: thousands of KEYS and ARGV go through every script."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8)
    size = 2000
    arrays = {name: np.arange(size, dtype="f4") for name in ("params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    head = create(store, size, arrays=arrays)
    assert [len(array.bulk.chunks) for array in head.snapshots[0].arrays] == [1000] * 4
    record = staged_record(store, head, arrays["params"].tobytes())
    assert len(record.bulk.chunks) == 1000
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    assert body_of(store, head.spec.id, record) == arrays["params"].tobytes()
    head = moved_on(head, record)
    refs = tuple(
        store.snapshots.write_array(head.spec.id, "snap", name, data.view("u1")) for name, data in arrays.items()
    )
    ref = SnapshotRef("snap", 1, head.chain, (1,), refs)
    assert store.snapshots.commit(head.spec, head.incarnation, ref, 0)
    for array in ref.arrays:
        assert array_of(store, head.spec.id, ref, array) == arrays[array.name].tobytes()
    store.delete(head.spec.id)
    assert store.collect(head.spec.id) == 4000 + 4000 + 1001
    assert keys_of(client, head.spec.id) == ["gone"]


@pytest.mark.parametrize("near", [2**31, 10**14, 2**53 - 8], ids=["2^31", "14 digits", "2^53"])
def test_large_step_numbers_stay_exact(store, near):
    """Lua counts in doubles, and its JSON prints 14 digits: neither may touch a step, a count or a length of log."""
    head = create(store, step=near)
    for _ in range(3):
        head = replace(step(store, head, staged_body=True), log_bytes=0)
        ref, kept = snapshot(store, head)
        assert kept
    found = store.load_head(head.spec.id)
    assert found.step == near + 3
    assert [snapshot.step for snapshot in found.snapshots] == [near + 2, near + 3]
    assert found.snapshots[-1] == ref
    assert store.collect(head.spec.id) == 1 + 2 + 2 * 2  # two snapshots, the records of near + 1 and near + 2
    assert [record.step for record in store.records(head.spec.id, near + 3, near + 3)] == [near + 3]
    store.delete(head.spec.id)
    assert store.collect(head.spec.id) == 2 * 2 + 2


def test_the_log_is_counted_exactly(store):
    head = create(store)
    head = steps(store, head, 3, body=b"12345678")
    ref, _ = snapshot(store, head, covered=2**60)
    assert store.load_head(head.spec.id).log_bytes == 0, "never below zero"
    head = steps(store, head, 2, body=b"1" * 100)
    assert store.load_head(head.spec.id).log_bytes == 200
    snapshot(store, head, covered=150)
    assert store.load_head(head.spec.id).log_bytes == 50


def test_a_snapshot_committed_twice_by_a_lost_answer_stays(store):
    head = steps(store, create(store), 2)
    ref, kept = snapshot(store, head)
    assert kept
    head = steps(store, head, 2)
    assert snapshot(store, head)[1]
    assert store.snapshots.commit(head.spec, head.incarnation, ref, 0), "named, though not the newest any more"


def test_an_answer_that_belongs_to_another_call_is_not_taken(store_process, connected):
    """A connection that lost its place: the nonce shows it. The commit's outcome is unknown, and is found out."""
    store = connected(store_process, connections=1)
    head = create(store)
    record = next_record(head)
    pool = store._client.connection_pool
    connection = pool.get_connection()
    # Nothing to read yet when the connection comes back to the pool: redis-py cannot see that an answer will come.
    connection.send_command("BLPOP", f"nothing:{secrets.token_hex(4)}", "0.2")
    pool.release(connection)
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))
    verdict = store.resolve(head.spec.id, record.attempt, 1)
    assert verdict == ("committed" if store.load_head(head.spec.id).step == 1 else "fenced")


def test_a_connection_that_lost_its_place_is_thrown_away(store_process, connected):
    """In the middle of pipelined GETs and SETs: what is under way must not be the next call's answer."""
    store = connected(store_process, connections=1)
    head = create(store)
    record = staged_record(store, head, bytes(3))
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            body_of(store, head.spec.id, replace(record, bulk=BulkRef((3, 3, 3))))
        staging = store.stage(head.spec.id, secrets.token_hex(8), 3 * chunks.CHUNK_BYTES)
        staging.write(memoryview(bytes(3 * chunks.CHUNK_BYTES)))
        staging.abort()
        staging.abort()
        assert store.load_head(head.spec.id) == head
        assert store.standing(head.spec.id).step == 0
