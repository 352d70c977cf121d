"""The contract of the store with its bulk in files, and what a directory must be to be taken."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from random import Random

import numpy as np
import pytest

from adamd.errors import Damaged, StoreFull, StoreUnavailable
from adamd_service.records import Committed, Lost, SnapshotRef
from adamd_service.store import ChunkMissing, RedisStore, StoreRefused
from adamd_service.store.bulk.directory import IDENTITY, BulkDirectory
from adamd_service.store.bulk.disk import RealDisk
from adamd_service.store.bulk.extents import NAME, Extents, Owner, Use, class_of, size_of
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.keys import BULK, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import bulk_files

from ..contract import StoreContract
from ..sessions import array_of, body_of, commit_of, create, digest_of, snapshot, staged, staged_record, step
from .simulated_disk import SimulatedDisk

BODY = np.random.default_rng(7).bytes(700_001)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, store_process):
    return tmp_path_factory.mktemp("data") / "bulk"


@pytest.fixture(scope="module")
def store(store_process, directory):
    """The store, with everything that is not inline in files."""
    store = RedisStore.connect(store_process.url, timeout=10.0)
    with bulk_files(directory, store, synced=True) as files:
        store.bulk.keep_in(files, above=0)
        store.files = files
        yield store
    store.close()


@pytest.fixture
def reopened(store_process, tmp_path, connected):
    """Open a directory again and again, as servers do one after the other."""

    def open_(name="bulk", **more):
        store = connected(store_process)
        return store, bulk_files(tmp_path / name, store, synced=True, **more)

    store_process.client().delete(BULK, BULK_SESSIONS)
    return open_


class TestBulkInFiles(StoreContract):
    """On valkey and on redis-server."""

    @pytest.mark.skip("of chunks; test_bodies_of_any_length has files")
    def test_bodies_around_a_chunk(self, store, off): ...

    @pytest.mark.skip("of chunks; test_what_is_in_the_way has files")
    def test_what_is_not_as_it_was_written_is_never_handed_out(self, store): ...


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 524_288, 524_289, 5_000_001])
def test_bodies_of_any_length(store, nbytes):
    head, body = create(store), np.random.default_rng(nbytes).bytes(nbytes)
    record = staged_record(store, head, body)
    assert record.bulk.extent and record.bulk.nbytes == nbytes and not record.bulk.chunks
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    assert body_of(store, head.spec.id, record) == body
    assert store.records(head.spec.id, 1, 1) == [record]


@pytest.mark.parametrize("offset", [0, 1, 4096])
def test_bytes_that_do_not_begin_on_a_page(store, offset):
    head, whole = create(store), bytearray(offset) + BODY
    record = staged_record(store, head, memoryview(whole)[offset:])
    assert body_of(store, head.spec.id, record) == BODY


def test_what_is_in_the_way(store, directory):
    head = step(store, create(store), BODY, staged_body=True)
    record = store.records(head.spec.id, 1, 1)[0]
    path = directory / record.bulk.extent
    path.rename(path.with_suffix(".away"))
    with pytest.raises(ChunkMissing):
        body_of(store, head.spec.id, record)
    path.with_suffix(".away").rename(path)
    assert body_of(store, head.spec.id, record) == BODY
    os.truncate(path, 4096)
    with pytest.raises(ChunkMissing):
        body_of(store, head.spec.id, record)
    os.truncate(path, size_of(record.bulk.extent))


def test_extents_are_used_again(store):
    """Steps and snapshots of one session go round in as many extents as it needs at once."""
    head, names = create(store), set()
    for _ in range(6):
        for _ in range(3):
            head = step(store, head, BODY, staged_body=True)
            names.add(store.records(head.spec.id, head.step, head.step)[0].bulk.extent)
        snapshot(store, head)
        store.collect(head.spec.id)
    assert len(names) < 18
    for record in store.records(head.spec.id, head.step - 2, head.step):
        assert digest_of(body_of(store, head.spec.id, record)) == record.digest


def uses(store, session_id):
    return sorted(use.value for _, _, use in store.files._extents.of_session(session_id))


def test_what_is_given_up_is_free_again(store):
    head = create(store)
    before = uses(store, head.spec.id)
    attempt, _ = staged(store, head.spec.id, BODY)
    store.stagings.clear()  # nobody has it any more
    assert uses(store, head.spec.id) == before
    staging = store.stage(head.spec.id, attempt, len(BODY))
    staging.write(memoryview(BODY))
    ref = staging.finish()
    assert uses(store, head.spec.id) == sorted([*before, "staged"])
    store.discard(head.spec.id, attempt, ref)
    assert uses(store, head.spec.id) == before


def test_an_extent_that_is_lost_before_its_commit_is_not_named(store):
    """As chunks whose time has run out: the attempt is dead, and the step needs another one."""
    head = create(store)
    record = staged_record(store, head, BODY)
    store.stagings.clear()
    assert store.commit(head.spec.id, commit_of(head, record)) == Lost("chunks")
    assert store.load_head(head.spec.id).step == 0
    data = np.frombuffer(BODY, np.uint8)
    array = store.snapshots.write_array(head.spec.id, "snap", "params", data)
    store.snapshots.discard(head.spec.id, "snap", (array,))
    ref = SnapshotRef("snap", 0, head.chain, (0,), (array,))
    assert not store.snapshots.commit(head.spec, head.incarnation, ref, 0)


def test_a_deleted_session_leaves_no_extent(store):
    head = create(store)
    for _ in range(3):
        head = step(store, head, BODY, staged_body=True)
    snapshot(store, head)
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    assert uses(store, head.spec.id) == []


def test_a_start_frees_what_nothing_names(reopened, tmp_path):
    store, opened = reopened()
    with opened as files:
        store.bulk.keep_in(files, above=0)
        head = step(store, create(store), BODY, staged_body=True)
        attempt, _ = staged(store, head.spec.id, BODY)  # and the server dies
        ref, _ = snapshot(store, head)
    store.close()
    store, opened = reopened()
    with opened as files:
        owners = {owner.owner for _, owner, _ in files._extents.of_session(head.spec.id)}
        record = store.records(head.spec.id, 1, 1)[0]
        assert record.attempt in owners and ref.id in owners and attempt not in owners
        assert body_of(store, head.spec.id, record) == BODY
        assert array_of(store, head.spec.id, ref, ref.arrays[0])
    store.close()
    assert {path.name for path in (tmp_path / "bulk").iterdir()} >= {IDENTITY, "lock"}


def test_a_directory_that_is_not_the_stores_is_refused(reopened, tmp_path):
    store, opened = reopened()
    with opened as files:
        store.bulk.keep_in(files, above=0)
        step(store, create(store), BODY, staged_body=True)
        old = (tmp_path / "bulk" / IDENTITY).read_text()
        with pytest.raises(StoreRefused, match="another adamd uses"), reopened()[1]:
            pass
    with (
        pytest.raises(StoreRefused, match="it is empty. Sessions that have vectors there: 1; put that directory back"),
        reopened("other")[1],
    ):
        pass
    with reopened()[1]:
        pass
    (tmp_path / "bulk" / IDENTITY).write_text(old)
    with pytest.raises(StoreRefused, match="an older copy"), reopened()[1]:
        pass
    (tmp_path / "bulk" / IDENTITY).write_text(old.replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreRefused, match="has format 2"), reopened()[1]:
        pass
    (tmp_path / "bulk" / IDENTITY).write_text("{")
    with pytest.raises(StoreRefused, match="cannot be read"), reopened()[1]:
        pass


def test_a_directory_that_is_lost_for_good_costs_its_sessions_alone(reopened):
    store, opened = reopened()
    with opened as files:
        store.bulk.keep_in(files, above=0)
        lost = step(store, create(store), BODY, staged_body=True)
        named = files.listed().named.keys()
    store, opened = reopened("new", allow_lost=True)
    with opened as files:
        store.bulk.keep_in(files, above=0)
        with pytest.raises(ChunkMissing):
            body_of(store, lost.spec.id, store.records(lost.spec.id, 1, 1)[0])
        other = step(store, create(store), BODY, staged_body=True)
        assert named.isdisjoint(files.listed().named)  # else the lost session would name another's bytes
        store.delete(lost.spec.id)
    store, opened = reopened("new")  # it is the store's now
    with opened:
        assert body_of(store, other.spec.id, store.records(other.spec.id, 1, 1)[0]) == BODY


def test_another_stores_directory_is_not_overwritten(reopened, tmp_path, store_process):
    store, opened = reopened()
    with opened as files:
        store.bulk.keep_in(files, above=0)
        step(store, create(store), BODY, staged_body=True)
    store_process.client().delete(BULK, BULK_SESSIONS)  # as a store that never had it
    with pytest.raises(StoreRefused, match="the vectors of another store"), reopened()[1]:
        pass


def test_a_start_on_a_full_store_is_noted_once_there_is_room(reopened, tmp_path):
    """Else a copy of the directory from before that start would be let in, and lose what came after it."""
    store, opened = reopened()
    with opened:
        pass
    old = (tmp_path / "bulk" / IDENTITY).read_text()
    store, opened = reopened()
    store.bulk.notes.is_full = lambda: True
    with opened as files:
        store.ready("r", 30.0)
        assert store.bulk.notes.identity().generation == 1
        store.bulk.notes.is_full = lambda: False
        store.ready("r", 30.0)
        assert store.bulk.notes.identity().generation == 2
        store.bulk.keep_in(files, above=0)
        step(store, create(store), BODY, staged_body=True)
    (tmp_path / "bulk" / IDENTITY).write_text(old)
    with pytest.raises(StoreRefused, match="an older copy"), reopened()[1]:
        pass


@pytest.mark.parametrize("private", [True, False])
def test_leases_of_the_dead_end_with_the_next_start_of_a_private_store(reopened, store_process, private):
    """Else each kill keeps garbage for as long as a lease lasts. In a shared store others may read meanwhile."""
    store, opened = reopened()
    with opened as files:
        store.bulk.keep_in(files, above=0)
        head = step(store, create(store), BODY, staged_body=True)
        lease = store.lease(head.spec.id)
        lease.__enter__()  # and its process is killed
    store, opened = reopened()
    store.bulk.is_private = private
    with opened:
        assert store_process.client().zcard(SessionKeys(head.spec.id).readers) == (0 if private else 1)
    del lease  # until here: its end would give the lease back


def test_open_to_others_is_refused(tmp_path):
    (tmp_path / "bulk").mkdir(mode=0o755)
    with pytest.raises(StoreRefused, match="other users can read or write"):
        BulkDirectory(tmp_path / "bulk").open()


class Failing:
    """A disk whose calls of one kind fail."""

    def __init__(self, disk, error):
        self.disk, self.error, self.direct = disk, error, disk.direct

    def __getattr__(self, name):
        return getattr(self.disk, name)

    def make(self, name, nbytes):
        raise self.error


def test_a_full_disk_is_told_before_anything_is_committed(tmp_path):
    disk = Failing(RealDisk(tmp_path), OSError(28, "No space left on device"))
    with ThreadPoolExecutor(1) as writers:
        bulk = FileBulk(disk, Extents(), lambda _: None, writers, synced=True, margin=0)
        with pytest.raises(StoreFull, match="no room"):
            bulk.take(1000, Owner("s", "a"))
        disk.error = OSError(5, "Input/output error")
        with pytest.raises(StoreUnavailable, match="takes no new file"):
            bulk.take(1000, Owner("s", "a"))
        assert bulk._extents.bytes == 0


def test_room_is_made_of_free_extents_of_other_sizes(tmp_path):
    with ThreadPoolExecutor(1) as writers:
        bulk = FileBulk(RealDisk(tmp_path), Extents(), lambda _: None, writers, synced=True, margin=0)
        small = bulk.take(1000, Owner("s", "a"))
        bulk.move(small, Owner("s", "a"), frozenset({Use.STAGED}), Use.FREE)
        assert bulk._extents.free_bytes == size_of(small)
        assert bulk.give_back(0) == 1
        assert not [name for name in os.listdir(tmp_path) if NAME.fullmatch(name)]


@pytest.mark.parametrize("wiped", [False, True])
def test_what_is_in_the_page_cache_is_synced_whatever_the_policy(wiped):
    """A direct write is flushed by the store's own sync; a contribution's, which is cached, only by its own."""
    disk, name = SimulatedDisk(Random(1)), BulkName("s", "a", wiped=wiped)
    with ThreadPoolExecutor(1) as writers:
        bulk = FileBulk(disk, Extents(), lambda _: None, writers, synced=False, margin=0)
        for _ in range(2):  # a fresh file is synced in either case
            ref = bulk.write(name, np.frombuffer(BODY, np.uint8), None)
            bulk.move(ref.extent, Owner("s", "a"), frozenset({Use.STAGED}), Use.FREE)
            bulk.wipe()
            bulk._reuse_from = 0.0
    ref = bulk.write(name, np.frombuffer(BODY, np.uint8), None)
    assert bool(disk.unsynced[ref.extent]) is not wiped
    with closing(bulk.reader(name, ref)) as reader:
        into = np.empty(5000, np.uint8)
        reader.read(1234, into)
        assert into.tobytes() == BODY[1234:6234]
        with pytest.raises(Damaged, match="700001 bytes"):
            reader.read(len(BODY) - 4999, into)


@pytest.mark.parametrize("nbytes", [1, 524_288, 524_289, 1_000_000, 40_000_000, 2**31])
def test_a_size_class_wastes_at_most_an_eighth(nbytes):
    size = class_of(nbytes)
    assert size >= nbytes and size % 4096 == 0
    assert nbytes < 524_288 or size <= nbytes * 1.125 + 4096
