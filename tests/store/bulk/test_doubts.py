"""Commits without an answer: what they may have named is kept until the outcome is known, and no longer."""

from dataclasses import replace

import pytest

from adamd_service.records import Committed
from adamd_service.store import ChunkMissing
from adamd_service.store.bulk import doubts
from adamd_service.store.bulk.extents import Owner, Use
from adamd_service.store.keys import BULK, BULK_SESSIONS
from adamd_service.store.opening import bulk_files

from ..sessions import commit_of, create, staged_record

BODY = bytes(700_000)
LATER = 10**9  # seconds on the monotonic clock, after any doubt


@pytest.fixture
def store(store_process, tmp_path, connected):
    store_process.client().delete(BULK, BULK_SESSIONS)
    store = connected(store_process)
    with bulk_files(tmp_path / "bulk", store, synced=True) as files:
        store.bulk.keep_in(files, above=0)
        yield store


def uses(store, session_id):
    return [use.value for _, _, use in store.bulk.files._extents.of_session(session_id)]


def doubtful(store, *, sent):
    """A step whose commit has no answer. `sent`: it was committed all the same."""
    head = create(store)
    record = staged_record(store, head, BODY)
    if sent:
        assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
        store.bulk.files.move(
            record.bulk.extent, Owner(head.spec.id, record.attempt), frozenset({Use.NAMED}), Use.STAGED
        )
    assert store.bulk.doubts.add(head.spec.id, record.attempt, (record.bulk,), record.step)
    return head


@pytest.mark.parametrize(("sent", "use"), [(True, "named"), (False, None)])
def test_a_step_in_doubt_is_asked_for(store, sent, use):
    head = doubtful(store, sent=sent)
    before = uses(store, head.spec.id)
    store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, 0.0)  # too young
    assert uses(store, head.spec.id) == before and "doubt" in before
    store.stagings.clear()
    assert store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, LATER) == 1
    after = uses(store, head.spec.id)
    assert "doubt" not in after and len(after) == len(before) - (use is None)
    assert store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, LATER) == 0


def test_a_snapshot_in_doubt_is_given_up_at_the_second_look(store):
    head, data = create(store), memoryview(BODY)
    ref = store.snapshots.write_array(head.spec.id, "abcd", "params", data)
    assert store.bulk.doubts.add(head.spec.id, "abcd", (ref.bulk,))
    assert store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, LATER) == 0
    assert "doubt" in uses(store, head.spec.id)
    assert store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, LATER) == 1
    assert "doubt" not in uses(store, head.spec.id)


def test_a_snapshot_in_doubt_that_is_named_stays(store):
    head = create(store)
    named = head.snapshots or store.load_head(head.spec.id).snapshots
    store.bulk.files._move_all(head.spec.id, named[0].id, Use.NAMED, Use.STAGED)
    assert store.bulk.doubts.add(head.spec.id, named[0].id, [array.bulk for array in named[0].arrays])
    assert store.bulk.doubts.sweep(store.resolve, store._snapshot_ids, LATER) == 1
    assert set(uses(store, head.spec.id)) == {"named"}
    assert doubts.SNAPSHOT_DOUBT_SECONDS >= doubts.DOUBT_SECONDS


def test_free_extents_that_nobody_needs_are_removed(store):
    files = store.bulk.files
    head = create(store)
    record = staged_record(store, head, BODY)
    store.stagings.clear()
    store.discard(head.spec.id, record.attempt, record.bulk)
    assert files.free_bytes > 0
    files.tidy(LATER)  # it was taken since the look before
    assert files.free_bytes > 0
    assert files.tidy(2 * LATER) > 0
    assert files.free_bytes == 0


def test_free_extents_above_the_bound_are_removed(store):
    files = store.bulk.files
    head = create(store)
    record = staged_record(store, head, BODY)
    store.stagings.clear()
    store.discard(head.spec.id, record.attempt, record.bulk)
    files._spare = 0
    assert files.tidy(0.0) > 0 and files.free_bytes == 0


def test_a_reader_is_handed_no_extent_of_anothers(store):
    """Its bytes are whole, and not the reader's."""
    head = create(store)
    record = staged_record(store, head, BODY)
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    other = replace(record, attempt="0" * 16)
    with pytest.raises(ChunkMissing):
        store.read_body(head.spec.id, other, memoryview(bytearray(len(BODY))))


def test_a_start_on_a_full_disk_writes_nothing_into_the_store(store_process, tmp_path, connected):
    """The private store would end. What it has to remember of the directory it is told before the next extent."""
    store_process.client().delete(BULK, BULK_SESSIONS)
    store = connected(store_process)
    with bulk_files(tmp_path / "bulk", store, synced=True):
        first = store.bulk.notes.identity()
        store.bulk.notes.expect("s_gone")
    store.bulk.notes.is_full = lambda: True
    with bulk_files(tmp_path / "bulk", store, synced=True) as files:
        store.bulk.keep_in(files, above=0)
        assert store.bulk.notes.identity() == first and store.bulk.notes.sessions() == ["s_gone"]
        store.bulk.notes.is_full = lambda: False
        create(store)
        assert store.bulk.notes.identity() == replace(first, generation=first.generation + 1)
    with bulk_files(tmp_path / "bulk", store, synced=True):
        assert "s_gone" not in store.bulk.notes.sessions()
