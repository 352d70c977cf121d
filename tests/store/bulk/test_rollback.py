"""A store that loses its last seconds, as its promise allows, names extents again that were free already."""

import os
import shutil
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

import adamd
from adamd.errors import StoreUnavailable
from adamd_service.store.keys import BULK, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import HOLD_SECONDS, bulk_files

from ..sessions import array_of, body_of, create, snapshot, staged_record, step

BODY = bytes(5000)
LARGE = 200_000  # elements of float32: above what lies in the store, and six bodies make a snapshot due
GRADIENT = np.linspace(-1, 1, LARGE, dtype=np.float32)


def test_a_power_cut_takes_the_last_seconds_and_not_the_session(server_factory, tmp_path):
    """The store's file as it was a moment ago is what the disk has at least where it is synced every second."""
    server = server_factory("--fsync", "everysec")
    store, then = server.data_dir / "store", tmp_path / "then"
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(LARGE, np.float32), lr=0.1)
        started = time.monotonic()
        while time.monotonic() < started + HOLD_SECONDS + 1:  # a start overwrites nothing for as long
            session.step(GRADIENT)
        there = session.step_number
        shutil.copytree(store, then, ignore=shutil.ignore_patterns("*.sock", "*.pid"))
        for _ in range(30):  # several snapshots: what the file names has all become garbage
            session.step(GRADIENT)
    os.kill(server.store_pid, 9)
    server.kill()
    shutil.rmtree(store)
    shutil.copytree(then, store)
    server.start()
    with adamd.connect(server.url) as client:
        again = client.session(session.id)
        assert again.step_number == there
        before = again.parameters()
        again.step(GRADIENT)
        assert not np.array_equal(again.parameters(), before)


@pytest.fixture
def opened(store_process, tmp_path, connected):
    """Open a directory whose store may lose its last 1000 seconds; yields the store and its files."""
    store_process.client().delete(BULK, BULK_SESSIONS)

    @contextmanager
    def open_():
        store = connected(store_process)
        with bulk_files(tmp_path / "bulk", store, synced=True, hold=1000.0) as files:
            store.bulk.keep_in(files, above=0)
            assert files._reuse_from > time.monotonic() + 500
            store.bulk.files_from = files._reuse_from = 0.0  # as if that time were over
            yield store, files

    return open_


def in_use(files):
    return files.total_bytes - files.free_bytes


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_named_a_moment_ago_is_not_overwritten(opened, damaged):
    with opened() as (store, files):
        head = step(store, create(store), BODY, staged_body=True)
        held = in_use(files)
        if damaged:
            store._client.hset(SessionKeys(head.spec.id).head, "spec", "{")
        store.delete(head.spec.id)
        assert store.collect(head.spec.id)
        assert in_use(files) == held and files.free_bytes == 0
        store.bulk.confirm(time.monotonic() + 500)
        assert files.free_bytes == 0
        store.bulk.confirm(time.monotonic() + 2000)
        assert files.free_bytes == held


def test_what_nothing_has_named_is_free_at_once(opened):
    with opened() as (store, files):
        head = create(store)
        held, record = in_use(files), staged_record(store, head, BODY)
        store.discard(head.spec.id, record.attempt, record.bulk)
        assert in_use(files) == held


def test_a_start_overwrites_nothing_for_as_long(opened):
    with opened() as (store, files):
        head = create(store)
        record = staged_record(store, head, BODY)
        store.discard(head.spec.id, record.attempt, record.bulk)
    with opened() as (store, files):
        assert files.free_bytes
        files._reuse_from = time.monotonic() + 1000
        assert staged_record(store, head, BODY).bulk.extent != record.bulk.extent
        files._reuse_from = 0.0
        assert staged_record(store, head, BODY).bulk.extent == record.bulk.extent


def gone_back(process, then):
    """Kill a store and start it on its file as it was."""
    process.kill()
    shutil.rmtree(process.directory)
    shutil.copytree(then, process.directory)
    process.start()


def swept(store):
    """Clean up as the server does every ten seconds, once the store answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return store.sweep("default")
        except StoreUnavailable:
            time.sleep(0.05)
    raise AssertionError("the store does not answer")


def test_a_store_that_goes_back_finds_what_it_names(store_factory, connected, tmp_path):
    """The server lives on: what the store names again is kept, and what it has lost is free."""
    process = store_factory(appendfsync="everysec")
    store = connected(process)
    store.check()
    with bulk_files(tmp_path / "bulk", store, synced=True, shared=True, hold=1000.0) as files:
        store.bulk.keep_in(files, above=0, shared=store.bulk.notes.identity())
        files._reuse_from = 0.0
        head = step(store, create(store), BODY, staged_body=True)
        other = step(store, create(store), BODY, staged_body=True)
        named = in_use(files)
        shutil.copytree(process.directory, tmp_path / "then")
        store.delete(head.spec.id)
        assert snapshot(store, other)[1]
        later = step(store, create(store), BODY, staged_body=True)  # lost with the last seconds
        for session in (head, other):
            store.collect(session.spec.id)
        assert in_use(files) > named
        gone_back(process, tmp_path / "then")
        with suppress(StoreUnavailable):  # the connection of before
            store.load_head(head.spec.id)
        assert store.load_head(head.spec.id).step == 1
        store.bulk.confirm(time.monotonic() + 2000)
        assert files.free_bytes == 0
        swept(store)
        store.bulk.confirm(time.monotonic() + 2000)
        assert in_use(files) == named
        assert later.spec.id not in [known.spec.id for known in store.list_sessions("default", 10, None)[0]]
        for _ in range(8):
            step(store, create(store), b"x" * 5000, staged_body=True)
        for was in (head, other):
            now = store.load_head(was.spec.id)
            assert now.step == 1
            assert body_of(store, now.spec.id, store.records(now.spec.id, 1, 1)[0]) == BODY
            ref = now.snapshots[0]
            assert array_of(store, now.spec.id, ref, ref.arrays[0])
        for known in store.list_sessions("default", 20, None)[0]:
            store.delete(known.spec.id)
            store.collect(known.spec.id)
        store.bulk.confirm(time.monotonic() + 2000)
        assert in_use(files) == 0


def test_a_power_cut_after_the_first_start_leaves_a_directory_that_is_taken_again(store_process, tmp_path, connected):
    """The disk has the identity, and the store has lost its note of it: an extent would be taken for another store's."""
    client, body = store_process.client(), bytes(4 * LARGE)

    def opened_again():
        store = connected(store_process)
        return store, bulk_files(tmp_path / "bulk", store, synced=True, hold=1000.0)

    client.delete(BULK, BULK_SESSIONS)
    store, opened = opened_again()
    with opened:
        head = step(store, create(store), body, staged_body=True)
        assert body_of(store, head.spec.id, store.records(head.spec.id, 1, 1)[0]) == body
    client.delete(BULK, BULK_SESSIONS, *client.keys(f"adamd:{{{head.spec.id}}}:*"))

    store, opened = opened_again()
    with opened:
        store.bulk.files_from = 0.0  # as much later as the store may lose
        assert staged_record(store, create(store), body).bulk.extent

    store, opened = opened_again()  # and this start is not its first
    with opened:
        assert staged_record(store, create(store), body).bulk.extent


def test_a_store_that_has_lost_its_note_of_the_directory_is_told_again(store_factory, connected, tmp_path):
    """It died alone, a moment after the first start: the next start must not find a directory of another store."""
    process = store_factory(appendfsync="everysec")
    store = connected(process)
    store.check()
    shutil.copytree(process.directory, tmp_path / "then")
    with bulk_files(tmp_path / "bulk", store, synced=True, hold=1000.0) as files:
        store.bulk.keep_in(files, above=0)
        store.bulk.files_from = 0.0
        known = store.bulk.notes.identity()
        gone_back(process, tmp_path / "then")
        swept(store)  # finds out that it is another process
        swept(store)
        assert store.bulk.notes.identity() == known
        step(store, create(store), BODY, staged_body=True)
        assert in_use(files)
    with bulk_files(tmp_path / "bulk", store, synced=True, hold=1000.0):
        assert store.bulk.notes.identity().generation == known.generation + 1
