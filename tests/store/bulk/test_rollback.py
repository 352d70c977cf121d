"""A store that loses its last seconds, as its promise allows, names extents again that were free already."""

import os
import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest

import adamd
from adamd_service.store import RedisStore
from adamd_service.store.keys import BULK, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import bulk_files

from ..sessions import create, staged_record, step

BODY = bytes(5000)
LARGE = 200_000  # elements of float32: above what lies in the store, and six bodies make a snapshot due
GRADIENT = np.linspace(-1, 1, LARGE, dtype=np.float32)


def test_a_power_cut_takes_the_last_seconds_and_not_the_session(server_factory, tmp_path):
    """The store's file as it was a moment ago is what the disk has at least where it is synced every second."""
    server = server_factory("--fsync", "everysec")
    store, then = server.data_dir / "store", tmp_path / "then"
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(LARGE, np.float32), lr=0.1)
        for _ in range(30):
            session.step(GRADIENT)
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
        assert again.step_number == 30
        before = again.parameters()
        again.step(GRADIENT)
        assert not np.array_equal(again.parameters(), before)


@pytest.fixture
def opened(store_process, tmp_path):
    """Open a directory whose store may lose its last 1000 seconds; yields the store and its files."""
    store_process.client().delete(BULK, BULK_SESSIONS)

    @contextmanager
    def open_():
        store = RedisStore.connect(store_process.url, timeout=10.0)
        with bulk_files(tmp_path / "bulk", store, synced=True, hold=1000.0) as files:
            store.bulk.keep_in(files, above=0)
            assert files._reuse_from > time.monotonic() + 500
            files._reuse_from = 0.0
            yield store, files
        store.close()

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
        files.tidy(time.monotonic() + 500)
        assert files.free_bytes == 0
        files.tidy(time.monotonic() + 2000)
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
