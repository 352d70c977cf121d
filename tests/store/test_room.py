"""A disk that fills: refused before it is full, told, freed by a DELETE, and served again without a start."""

import os
import re
import resource
import time
import urllib.request

import numpy as np
import pytest

import adamd
from adamd.errors import RetriesExhausted, StoreFull
from adamd_service.store import EmbeddedStore, RedisStore
from adamd_service.store.embedded.disk_room import LOOK_VALID_SECONDS, MIB, DiskRoom
from small_disk import small_disk

from .sessions import create, step

WAIT = 30
BODY = MIB


def until(happened):
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settled(store):
    """Whether the store takes something that stays."""
    try:
        store.ping()
    except StoreFull:
        return False
    return True


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MiB."""
    with small_disk(tmp_path / "disk", 64) as here:
        yield here


@pytest.fixture(params=["always", pytest.param("everysec", marks=pytest.mark.slow)])
def private(disk, request):
    """A private store on the small disk, and its directory."""
    one = EmbeddedStore(disk / "data", fsync=request.param)
    one.start()
    store = RedisStore.connect(one.url, timeout=10.0)
    store.belongs_to(one)
    yield one, store, disk
    store.close()
    one.stop()


def free(disk):
    seen = os.statvfs(disk)
    return seen.f_bavail * seen.f_frsize


def filled(store, head, limit=200):
    for _ in range(limit):
        try:
            head = step(store, head, os.urandom(BODY), staged_body=True)
        except StoreFull as error:
            assert "delete sessions, or make room" in error.detail and error.retry_after
            return head
    raise AssertionError("the disk does not fill")


def fill_the_rest(path):
    with path.open("wb", buffering=0) as other, pytest.raises(OSError, match="No space left"):
        while True:
            other.write(bytes(256 * 1024))


def test_a_disk_is_never_filled_and_a_delete_frees_it(private):
    """Sessions that fill it one after the other: together they write more than it holds."""
    one, store, disk = private
    pid, written = one.pid, 0
    while written < 80:
        head = filled(store, create(store))
        written += head.step
        assert free(disk) > 4 * MIB, "a rewrite still fits"
        assert store.load_head(head.spec.id) == head
        store.delete(head.spec.id)
        store.collect(head.spec.id)
        until(lambda: settled(store))
    assert one.pid == pid, "the store has never ended"


def test_a_disk_that_others_fill_has_a_reserve_for_a_delete(private):
    one, store, disk = private
    pid = one.pid
    head = create(store)
    for _ in range(16):
        head = step(store, head, os.urandom(BODY), staged_body=True)
    until((disk / "data" / "store" / "reserve").exists)
    fill_the_rest(disk / "other")
    time.sleep(2 * LOOK_VALID_SECONDS)
    staging = store.stage(head.spec.id, "upload", BODY)
    for refused in (
        lambda: step(store, head, b"x"),
        lambda: create(store),
        lambda: staging.write(memoryview(bytes(BODY))),
        store.ping,
    ):
        with pytest.raises(StoreFull):
            refused()
    assert store.load_head(head.spec.id) == head
    with store.lease(head.spec.id):  # readers go on
        assert store.records(head.spec.id, 1, 1)
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    until(lambda: free(disk) > 8 * MIB)
    until(lambda: settled(store))
    (disk / "other").unlink()
    until((disk / "data" / "store" / "reserve").exists)
    assert step(store, create(store), os.urandom(BODY), staged_body=True)
    assert one.pid == pid


def test_a_store_on_a_full_disk_gives_back_less_than_its_margin(private):
    """Others fill the disk, vectors in files for one. What the store's file holds in vain is given back all the same."""
    _, store, disk = private
    head = create(store)
    for _ in range(3):
        head = step(store, head, os.urandom(BODY), staged_body=True)
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    until((disk / "data" / "store" / "reserve").exists)
    with open(disk / "other", "wb") as file:  # between the margin, 4 MiB, and what the store wants to be ready, 5
        os.posix_fallocate(file.fileno(), 0, free(disk) - 9 * MIB // 2)
    until(lambda: not settled(store))
    until(lambda: settled(store))


@pytest.mark.slow
@pytest.mark.parametrize("bulk", ["files", "store"])
def test_a_server_on_a_full_disk_says_so_and_serves_again(disk, server_factory, bulk):
    one = server_factory(data_dir=disk / "data", env={"ADAMD_BULK": bulk})
    gradient = np.ones(BODY // 4, np.float32)
    with adamd.connect(one.url, timeout=adamd.Timeout(total=10.0)) as client:
        beside, made = client.create(gradient, durability="memory"), []
        small = client.create(np.ones(4, np.float32))
        with pytest.raises(RetriesExhausted) as told:
            while len(made) < 100:
                made.append(client.create(gradient))
        assert isinstance(told.value.extra["last"], StoreFull)
        assert "delete sessions, or make room there" in told.value.extra["last"].detail
        if bulk == "store":
            assert "needed to rewrite its file" in ready(client)
        else:  # what needs no room for bulk goes on
            assert ready(client) == ""
            assert small.step(np.ones(4, np.float32)).shape == (4,)
        beside.step(gradient)
        assert made[0].parameters().shape == gradient.shape
        until(lambda: "takes no more" in one.log())
        for session in made[1:]:
            session.delete(anyway=True)
        until(lambda: ready(client) == "")
        client.create(gradient).step(gradient)
        small.delete()
    # It starts on a full disk too, and what is there can be read and deleted.
    reserve = disk / "data" / "store" / "reserve"
    until(reserve.exists)
    if bulk == "files":
        until(lambda: free_extents(disk / "data" / "bulk", one))
    one.stop()
    if bulk == "files":
        reserve.unlink()  # free extents are given back instead
    fill_the_rest(disk / "other")
    one.restart()
    with adamd.connect(one.url, timeout=adamd.Timeout(total=20.0)) as client:
        left = list(client.sessions())
        assert len(left) == 2
        if bulk == "store":
            assert ready(client)
        else:  # free extents are given back at once, since the store has no room
            until(lambda: ready(client) == "")
        for session in left:
            client.open(session["id"]).delete()


def free_extents(directory, server):
    """Whether there are extents that wait for reuse."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        return b"adamd_bulk_free_bytes 0.0" not in answer.read() and any(directory.glob("x*-*"))


def ready(client):
    """What /readyz says is wrong; "" where nothing is."""
    import http.client
    import json
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(client.url).netloc)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        document = json.loads(answer.read())
    finally:
        connection.close()
    assert answer.status in (200, 503)
    return "" if answer.status == 200 else document["detail"]


def test_a_limit_that_no_look_at_the_disk_shows(tmp_path, monkeypatch, capfd):
    """As a quota does: the store ends, adamd says why, and the rewritten file has room again."""
    one = EmbeddedStore(tmp_path)
    one.start()
    store = RedisStore.connect(one.url, timeout=10.0)
    store.belongs_to(one)
    try:
        head = create(store)
        limit = 6 * MIB
        died = one.pid
        resource.prlimit(died, resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(Exception):  # noqa: B017, PT011 - the answer is lost with the store
            for _ in range(20):
                head = step(store, head, os.urandom(BODY), staged_body=True)
        until(lambda: one.pid != died)
        assert "Short write while writing to the AOF file" in capfd.readouterr().out
        until(lambda: settled_or_away(store))
        assert one.trouble() is None
        assert store.load_head(head.spec.id).step == head.step
    finally:
        store.close()
        one.stop()


def test_readers_go_on_where_the_store_takes_no_writes(tmp_path):
    """A store that syncs every second outlives a write that failed, and refuses every other one: leases, too."""
    one = EmbeddedStore(tmp_path, fsync="everysec")
    one.start()
    store = RedisStore.connect(one.url, timeout=10.0)
    store.belongs_to(one)
    limits = resource.prlimit(one.pid, resource.RLIMIT_FSIZE)
    try:
        head = step(store, create(store), b"read me")
        pid, at = one.pid, store.load_head(head.spec.id)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(StoreFull, match="Errors writing to the AOF file"):
            for _ in range(200):
                head = step(store, head, b"x" * 200)
        assert one.pid == pid
        with store.lease(head.spec.id):
            assert store.records(at.spec.id, 1, 1)[0].inline == b"read me"
        with pytest.raises(StoreFull):
            store.try_writing("replica", 1.0)
    finally:
        resource.prlimit(one.pid, resource.RLIMIT_FSIZE, limits)
        store.close()
        one.stop()


def settled_or_away(store):
    try:
        store.ping()
    except adamd.errors.AdamdError:
        return False
    return True


def test_what_is_let_in_counts_at_once(tmp_path, monkeypatch):
    """Before the disk shows it: many at once together leave a rewrite its room."""
    seen = os.statvfs(tmp_path)  # other programs write on this disk meanwhile
    monkeypatch.setattr(os, "statvfs", lambda _: seen)
    room = DiskRoom(tmp_path)
    room.look(0)
    much = int(room._free - room.margin) // 2 - MIB
    room.require(much // 2)
    room.require(much // 2)
    with pytest.raises(StoreFull):
        room.require(4 * MIB)
    with pytest.raises(StoreFull):
        room.require(much)
    room.require_spare()


def test_a_refusal_tells_less_room_than_is_needed(tmp_path, monkeypatch):
    seen = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: seen)
    room = DiskRoom(tmp_path)
    room.look(0)
    rewritten = int(room._free) - 2 * room.margin  # it would fit, but not with what is asked for beside it
    for needed, refused in (
        (rewritten, lambda: room.require(room.margin // 2 + MIB)),
        (rewritten + 3 * room.margin // 4, room.require_any),
    ):
        room.look(needed)
        with pytest.raises(StoreFull) as told:
            refused()
        free, wanted = (float(one.replace(",", "")) for one in re.findall(r"[\d,]+\.\d", told.value.detail))
        assert free < wanted
