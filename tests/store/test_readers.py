"""Snapshots, garbage and readers: within its lease a reader meets no missing chunk, and never wrong data."""

import threading
from dataclasses import replace

import pytest

from adamd.errors import InternalError, StoreUnavailable
from adamd_service.records import Committed
from adamd_service.store import ChunkMissing, garbage

from .sessions import array_of, body_of, commit_of, create, keys_of, moved_on, snapshot, staged_record, step, steps


class Writer:
    """Steps, snapshots and collects as fast as it can, until it is stopped."""

    def __init__(self, store, head):
        self.store, self.head = store, head
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work)
        self.error = None

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        assert self.error is None

    def _work(self):
        try:
            while not self.stopping.is_set():
                body = b"%d" % (self.head.step + 1)
                record = staged_record(self.store, self.head, body)
                assert self.store.commit(self.head.spec.id, commit_of(self.head, record)) == Committed()
                self.head = moved_on(self.head, record)
                if self.head.step % 3 == 0:
                    assert snapshot(self.store, self.head)[1]
                self.store.collect(self.head.spec.id)
        except BaseException as error:
            self.error = error


def read_everything(store, head):
    """What a replica does that rebuilds a state: the newest snapshot, and the records after it."""
    ref = head.snapshots[-1]
    for array in ref.arrays:
        data = array_of(store, head.spec.id, ref, array)
        assert len({data[start : start + 4] for start in range(0, len(data), 4)}) == 1 or ref.step == 0
    records = store.records(head.spec.id, ref.step + 1, head.step)
    if len(records) != head.step - ref.step:
        raise ChunkMissing("a record")
    for record in records:
        assert body_of(store, head.spec.id, record) == b"%d" % record.step


def test_a_reader_with_a_lease_meets_no_missing_chunk(store):
    head = create(store)
    with Writer(store, head):
        for _ in range(25):
            with store.lease(head.spec.id):
                read_everything(store, store.load_head(head.spec.id))
        held = store.load_head(head.spec.id)
        with store.lease(head.spec.id):
            held = store.load_head(head.spec.id)
            while store.standing(head.spec.id).step < held.step + 12:
                read_everything(store, held)


def test_a_reader_without_one_meets_a_missing_chunk_and_never_wrong_data(store):
    head = create(store)
    seen = set()
    with Writer(store, head):
        held = store.load_head(head.spec.id)
        while "missing" not in seen:
            try:
                read_everything(store, held)
                seen.add("whole")
            except ChunkMissing:
                seen.add("missing")
    assert issubclass(ChunkMissing, StoreUnavailable)


def test_two_readers_and_the_first_one_leaves(store):
    """The garbage waits for the one that is left."""
    head = create(store)
    with store.lease(head.spec.id):
        with store.lease(head.spec.id):
            pass
        first = store.load_head(head.spec.id).snapshots[0]
        for _ in range(2):
            head = step(store, head)
            snapshot(store, head)
        assert store.collect(head.spec.id) == 0
        assert array_of(store, head.spec.id, first, first.arrays[0])
    assert store.collect(head.spec.id) > 0


def test_garbage_of_before_a_reader_goes_while_it_reads(store, client):
    head = create(store)
    for _ in range(2):
        head = step(store, head)
        snapshot(store, head)
    key = f"adamd:{{{head.spec.id}}}:readers"
    client.zadd(key, {"later": client.time()[0] + 1})
    assert store.collect(head.spec.id) == 2


@pytest.mark.parametrize("entries", [1, 3])
def test_a_long_list_of_garbage_is_collected_whole(store, client, monkeypatch, entries):
    monkeypatch.setattr(garbage, "MAX_ENTRIES", entries)
    head = create(store)
    for _ in range(6):
        head = steps(store, head, 2, staged_body=True)
        assert snapshot(store, head)[1]
    collectors = [threading.Thread(target=store.collect, args=(head.spec.id,)) for _ in range(3)]
    for collector in collectors:
        collector.start()
    for collector in collectors:
        collector.join()
    assert store.collect(head.spec.id) == 0
    assert client.llen(f"adamd:{{{head.spec.id}}}:garbage") == 0
    head = store.load_head(head.spec.id)
    assert [record.step for record in store.records(head.spec.id, 11, 12)] == [11, 12]
    for ref in head.snapshots:
        for array in ref.arrays:
            assert array_of(store, head.spec.id, ref, array)


def test_a_collector_that_died_leaves_its_work_to_the_next(store, client):
    """Killed between unlinking and striking off the list: the entry is there still, and harmless."""
    head = steps(store, create(store), 2, staged_body=True)
    store.delete(head.spec.id)
    key = f"adamd:{{{head.spec.id}}}:garbage"
    entries = client.lrange(key, 0, -1)
    store.collect(head.spec.id)
    client.rpush(key, *entries)
    store.collect(head.spec.id)
    assert client.llen(key) == 0


def test_a_damaged_record_stops_no_collection(store, client):
    """It cannot say any more how long its body was; neither that nor the rest may stay for ever because of it."""
    head = steps(store, create(store), 3, staged_body=True)
    client.hset(f"adamd:{{{head.spec.id}}}:record:2", "meta", "{")
    with pytest.raises(InternalError):
        store.records(head.spec.id, 1, 3)
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    assert keys_of(client, head.spec.id) == ["gone"]


def test_a_snapshot_slower_than_the_next_one(store):
    """Two replicas write one at once: the later step stays, the other one's arrays are unlinked by who wrote them."""
    early = step(store, create(store))
    late = step(store, early)
    refs = {}
    for head in (late, early):
        refs[head.step], kept = snapshot(store, head)
        assert kept == (head is late)
    store.snapshots.discard(early.spec.id, refs[1].id, refs[1].arrays)
    found = store.load_head(early.spec.id)
    assert found.snapshots[-1] == refs[2]
    assert replace(found, snapshots=()).step == 2
    for ref in found.snapshots:
        for array in ref.arrays:
            assert array_of(store, early.spec.id, ref, array)
