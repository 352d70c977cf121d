"""What each line of the Lua scripts is there for, as functions that fail without it: steps and snapshots.

See test_guards.py.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from adamd.errors import StoreFull
from adamd_service.records import BulkRef, Committed, IdempotencyKey, Lost
from adamd_service.store import chunks
from adamd_service.store.keys import SessionKeys

from .sessions import (
    commit_of,
    create,
    keys_of,
    moved_on,
    next_record,
    snapshot,
    staged_record,
    step,
)

MOVED, CHUNKS = Lost("moved"), Lost("chunks")


def key_of(head, *parts):
    return ":".join(("adamd", f"{{{head.spec.id}}}", *map(str, parts)))


@contextmanager
def full(client):
    """A store without memory: it refuses what may enlarge it."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def refused(store, head, outcome, **wrong):
    """A commit with this wrong about it is answered so, and nothing has changed."""
    at = {name: wrong.pop(name) for name in ("chain", "step") if name in wrong}
    record = next_record(replace(head, **at))
    assert store.commit(head.spec.id, commit_of(head, record, **wrong)) == outcome
    assert store.load_head(head.spec.id) == head
    assert store.records(head.spec.id, record.step, record.step) == []


# -- commit.lua


def commit_compares_the_incarnation(store, client):
    refused(store, create(store), MOVED, incarnation="another")


def commit_compares_the_chain(store, client):
    refused(store, step(store, create(store)), MOVED, chain="0" * 64)


def commit_compares_the_step(store, client):
    refused(store, step(store, create(store)), MOVED, step=2)


def commit_compares_the_revision(store, client):
    refused(store, step(store, create(store)), MOVED, expect_revision=7)


def commit_wants_parameters(store, client):
    refused(store, create(store, missing=True), MOVED)


def commit_wants_every_chunk(store, client):
    head = create(store)
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    store._client.unlink(key_of(head, "body", record.attempt, 1))
    assert store.commit(head.spec.id, commit_of(head, record)) == CHUNKS
    assert store.load_head(head.spec.id) == head


def commit_wants_every_byte(store, client):
    head = create(store)
    record = staged_record(store, head, b"12345678")
    assert store.commit(head.spec.id, commit_of(head, replace(record, bulk=BulkRef((7,))))) == CHUNKS
    assert store.load_head(head.spec.id) == head


def commit_respects_the_fence(store, client):
    head = create(store)
    record = next_record(head)
    assert store.resolve(head.spec.id, record.attempt, 1) == "fenced"
    assert store.commit(head.spec.id, commit_of(head, record)) == Lost("fenced")
    assert store.load_head(head.spec.id) == head


def commit_knows_its_attempt(store, client):
    head = create(store)
    commit = commit_of(head, next_record(head))
    assert store.commit(head.spec.id, commit) == Committed()
    assert store.commit(head.spec.id, commit) == Committed(again=True)


def commit_knows_a_key(store, client):
    head, key = create(store), IdempotencyKey("k", "d" * 32)
    record = next_record(head)
    assert store.commit(head.spec.id, commit_of(head, record, idempotency=key)) == Committed()
    assert store.idempotent(head.spec.id, "k") == ("d" * 32, 1)
    assert 86_000 < client.ttl(SessionKeys(head.spec.id).idempotency("k")) <= 86_400
    after = moved_on(head, record)
    assert store.commit(head.spec.id, commit_of(after, next_record(after), idempotency=key)) == Lost("idempotency")


def commit_makes_chunks_permanent(store, client):
    head = create(store)
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    store.commit(head.spec.id, commit_of(head, record))
    assert [client.ttl(key_of(head, "body", record.attempt, n)) for n in (0, 1)] == [-1, -1]


def commit_is_refused_whole_by_a_full_store(store, client):
    head = create(store)
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    with full(client), pytest.raises(StoreFull):
        store.commit(head.spec.id, commit_of(head, record))
    assert store.load_head(head.spec.id) == head
    assert client.ttl(key_of(head, "body", record.attempt, 0)) > 0
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()


def commit_moves_everything(store, client):
    head = create(store)
    record = staged_record(store, head, b"12345678", settings={"lr": 0.5})
    store.commit(head.spec.id, commit_of(head, record, settings={"lr": 0.5}, settings_revision=1))
    after = replace(moved_on(head, record), settings={"lr": 0.5}, settings_revision=1)
    assert after.log_bytes == 8
    assert store.load_head(head.spec.id) == after
    assert [entry.attempt for entry in store.ring(head.spec.id)] == [record.attempt]
    assert store.records(head.spec.id, 1, 1) == [record]
    assert snapshot(store, after)[1], "the record tells its chain to snapshot.lua"


def commit_keeps_progress(store, client):
    """What a session remembers is written with the step that changes it, and stays with one that does not."""
    head = create(store)
    first = staged_record(store, head, b"12345678", best=True)
    store.commit(head.spec.id, commit_of(head, first, progress={"loss": 0.5}))
    after = replace(moved_on(head, first), progress={"loss": 0.5})
    assert store.load_head(head.spec.id) == after
    assert store.records(head.spec.id, 1, 1) == [first]
    second = staged_record(store, after, b"12345678")
    store.commit(head.spec.id, commit_of(after, second))
    assert store.load_head(head.spec.id) == moved_on(after, second)


# -- resolve.lua


def resolve_finds_a_commit(store, client):
    head = create(store)
    record = next_record(head)
    store.commit(head.spec.id, commit_of(head, record))
    step(store, moved_on(head, record))
    assert store.resolve(head.spec.id, record.attempt, 1) == "committed"


def a_record_without_its_head_is_no_commit(store, client):
    head = create(store)
    client.hset(key_of(head, "record", 1), "attempt", "mine")
    assert store.resolve(head.spec.id, "mine", 1) == "fenced"


def a_record_without_its_head_is_written_again(store, client):
    head = create(store)
    record = next_record(head)
    client.hset(key_of(head, "record", 1), "attempt", record.attempt)
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    assert store.load_head(head.spec.id).step == 1


def resolve_says_what_it_cannot_know(store, client):
    head = create(store)
    record = next_record(head)
    store.commit(head.spec.id, commit_of(head, record))
    head = moved_on(head, record)
    for _ in range(2):
        head = step(store, head)
        snapshot(store, head)
    store.collect(head.spec.id)
    assert store.resolve(head.spec.id, record.attempt, 1) == "unknown"
    assert not client.exists(key_of(head, "fence", record.attempt))


def resolve_fences_for_a_day(store, client):
    head = create(store)
    record = next_record(head)
    assert store.resolve(head.spec.id, record.attempt, 1) == "fenced"
    assert 86_000 < client.ttl(key_of(head, "fence", record.attempt)) <= 86_400
    head = step(store, head)
    assert store.resolve(head.spec.id, "someone", 1) == "fenced", "another attempt was first"


def resolve_works_in_a_full_store(store, client):
    head = create(store)
    with full(client):
        assert store.resolve(head.spec.id, "someone", 1) == "fenced"
    assert client.exists(key_of(head, "fence", "someone"))


# -- snapshot.lua


def snapshot_compares_the_incarnation(store, client):
    head = step(store, create(store))
    assert not snapshot(store, replace(head, incarnation="another"))[1]


def snapshot_compares_the_chain(store, client):
    head = step(store, create(store))
    assert not snapshot(store, replace(head, chain="0" * 64))[1]
    assert not snapshot(store, replace(head, step=2))[1]
    assert len(store.load_head(head.spec.id).snapshots) == 1


def snapshot_never_goes_back(store, client):
    early = step(store, create(store))
    late = step(store, early)
    ref, _ = snapshot(store, late)
    assert not snapshot(store, early)[1]
    assert store.load_head(late.spec.id).snapshots[-1] == ref


def snapshot_knows_itself(store, client):
    head = step(store, create(store))
    ref, _ = snapshot(store, head)
    snapshot(store, step(store, head))
    assert store.snapshots.commit(head.spec, head.incarnation, ref, 0)


def snapshot_wants_every_chunk(store, client):
    head = step(store, create(store))
    ref, _ = snapshot(store, replace(head, incarnation="another"))
    store._client.unlink(key_of(head, "snapshot", ref.id, "exp_avg", 0))
    assert not store.snapshots.commit(head.spec, head.incarnation, ref, 0)


def snapshot_makes_chunks_permanent(store, client):
    head = step(store, create(store))
    ref, _ = snapshot(store, head)
    assert [client.ttl(key_of(head, "snapshot", ref.id, name, 0)) for name in ("params", "exp_avg")] == [-1, -1]


def snapshot_unnames_what_it_replaces(store, client):
    head = create(store)
    for _ in range(3):
        head = replace(step(store, head, staged_body=True), log_bytes=0)
        ref, kept = snapshot(store, head, covered=8)
        assert kept
    assert store.load_head(head.spec.id) == replace(head, snapshots=store.load_head(head.spec.id).snapshots)
    assert len(store.load_head(head.spec.id).snapshots) == 2
    store.collect(head.spec.id)
    assert client.hget(key_of(head, "head"), "log_first") == b"3", "or every collection walks the whole history"
    left = keys_of(client, head.spec.id)
    assert [key for key in left if key.startswith("record")] == ["record:3"]
    assert len([key for key in left if key.startswith("body")]) == 1
    assert len([key for key in left if key.startswith("snapshot")]) == 4
    assert step(store, head)
