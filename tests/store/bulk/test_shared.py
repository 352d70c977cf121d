"""A bulk directory beside a store that replicas share: one server has it, and the others say so."""

import shutil
from dataclasses import replace

import pytest

from adamd.errors import WrongReplica
from adamd_service.records import Committed, Lost
from adamd_service.store import RedisStore, StoreRefused
from adamd_service.store.bulk.homes import SMALL_BULK_BYTES
from adamd_service.store.keys import BULK, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import bulk_files

from ..sessions import array_of, body_of, commit_of, create, snapshot, staged_record, step

LARGE = SMALL_BULK_BYTES // 4 + 1  # elements of float32
BODY = bytes(4 * LARGE)


@pytest.fixture
def server(store_process, tmp_path):
    """Make the store of a server: with a bulk directory, or without. Its end is a crash: nothing is settled."""
    store_process.client().delete(BULK, BULK_SESSIONS)
    stores = []

    def make(name=None, host="one:8000"):
        store = RedisStore.connect(store_process.url, timeout=10.0)
        opened = name and bulk_files(tmp_path / name, store, synced=True, shared=True, server=host)
        if opened:
            opened.__enter__()
        stores.append((store, opened))
        return store

    def end(store):
        for entry in [one for one in stores if one[0] is store]:
            stores.remove(entry)
            if entry[1]:
                entry[1].__exit__(None, None, None)

    make.end = end
    yield make
    for store, _ in list(stores):
        end(store)
        store.close()


def test_only_what_was_created_here_goes_into_files(server):
    one, two = server("bulk"), server()
    own = step(one, create(one, LARGE), BODY, staged_body=True)
    others = step(two, create(two, LARGE), BODY, staged_body=True)
    small = create(one, 10)
    assert own.snapshots[0].arrays[0].bulk.extent
    assert not others.snapshots[0].arrays[0].bulk.extent and not small.snapshots[0].arrays[0].bulk.extent
    others = step(one, others, BODY, staged_body=True)
    for record in two.records(others.spec.id, 1, 2):
        assert body_of(two, others.spec.id, record) == body_of(one, others.spec.id, record) == BODY


def test_another_server_names_the_one_that_has_the_bytes(server):
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    assert two.load_head(head.spec.id).step == 1
    with pytest.raises(WrongReplica, match=r"\(one:8000\); ask that server"):
        body_of(two, head.spec.id, two.records(head.spec.id, 1, 1)[0])
    with pytest.raises(WrongReplica):
        array_of(two, head.spec.id, head.snapshots[0], head.snapshots[0].arrays[0])


def test_a_commit_that_comes_after_the_next_start_is_refused(server):
    """The next start frees what nothing names. An earlier process's commit must not name that afterwards."""
    one = server("bulk")
    head = create(one, LARGE)
    record = staged_record(one, head, BODY)
    server.end(one)  # its last call is still on its way to the store
    again = server("bulk")
    assert again.bulk.files.free_bytes
    assert one.bulk.doubt(head.spec.id, record.attempt, (record.bulk,), record.step)
    assert one.commit(head.spec.id, commit_of(head, record)) == Lost("chunks")
    assert again.load_head(head.spec.id) == head


def test_an_earlier_start_does_not_replace_a_later_ones_token(server, store_process):
    one = server("bulk")
    start, client = one.bulk.identity(), store_process.client()
    client.set(SessionKeys("s_new").bulk, "a later start's")
    one.bulk.expect("s_new")
    one.bulk.look()
    assert client.get(SessionKeys("s_new").bulk) == b"a later start's"
    assert start.token != "a later start's"


def test_what_a_failover_lost_is_said_again(server, store_process):
    one, client = server("bulk"), store_process.client()
    head = create(one, LARGE)
    client.delete(BULK_SESSIONS, SessionKeys(head.spec.id).bulk)
    one.bulk.look()
    assert one.bulk.sessions() == [head.spec.id]
    record = staged_record(one, head, BODY)
    assert one.commit(head.spec.id, commit_of(head, record)) == Committed()


def test_a_server_that_lost_its_directory_answers_as_the_others(server, tmp_path):
    one = server("bulk")
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    shutil.copytree(tmp_path / "bulk", tmp_path / "moved")  # the disk is moved to another machine
    two = server("moved", host="two:8000")
    one.bulk.look()
    with pytest.raises(WrongReplica, match=r"\(two:8000\)"):
        body_of(one, head.spec.id, one.records(head.spec.id, 1, 1)[0])
    assert body_of(two, head.spec.id, two.records(head.spec.id, 1, 1)[0]) == BODY


def test_another_directory_is_refused_while_sessions_have_bytes(server):
    one, two = server("bulk"), server()
    head = create(one, LARGE)
    with pytest.raises(StoreRefused, match=r"used last, on one:8000: it is empty. 1 sessions have bytes there"):
        server("other")
    two.delete(head.spec.id)
    assert server("other").bulk.files is not None


def test_two_starts_at_once_are_not_both_taken(server):
    one = server("bulk")
    known, sessions = one.bulk.identity(), len(one.bulk.sessions())
    assert one.bulk.remember(replace(known, id="2" * 32), known, sessions)
    assert not one.bulk.remember(replace(known, id="3" * 32), known, sessions)


def test_the_owner_frees_what_another_server_unnamed(server):
    """The other one drops records and snapshots from the head; their extents are still the owner's to free."""
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    held = one.bulk.files.total_bytes - one.bulk.files.free_bytes
    two.delete(head.spec.id)
    assert two.collect(head.spec.id) == 0
    two.sweep("default")
    assert one.bulk.files.total_bytes - one.bulk.files.free_bytes == held
    assert one.collect(head.spec.id) >= 2
    assert one.bulk.files.total_bytes == one.bulk.files.free_bytes


def test_a_damaged_sessions_extents_are_the_owners_to_free(server, store_process):
    one, two = server("bulk"), server()
    head = create(one, LARGE)
    store_process.client().hset(SessionKeys(head.spec.id).head, "spec", "{")
    two.delete(head.spec.id)
    assert two.collect(head.spec.id) == 0
    one.collect(head.spec.id)
    assert one.bulk.files.total_bytes == one.bulk.files.free_bytes


def test_snapshots_move_between_both_homes(server):
    """Another server may take a snapshot of what is small; the owner goes on from it, and frees the older ones."""
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE))
    _, kept = snapshot(two, head)
    assert kept
    head = step(two, two.load_head(head.spec.id))
    ref, kept = snapshot(one, head)
    assert kept and ref.arrays[0].bulk.extent
    one.collect(head.spec.id)
    assert one.bulk.files.free_bytes  # of the first snapshot
    assert array_of(one, head.spec.id, ref, ref.arrays[0])
