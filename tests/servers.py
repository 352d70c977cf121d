"""Real processes for the tests: adamd servers and Valkey or Redis servers, over real sockets."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import redis

from adamd_service.store.embedded.server import binary
from forkserver import ForkServer, missing

ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}  # before any test changes it
START = 120  # the first start on a machine compiles the kernels


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def gone(process, within):
    """Wait for a process that was told to end; returns its exit status. One that does not is killed, and told."""
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def ended(command, *, within=120, env=None, cwd=None):
    """Run a command to its end; returns what `subprocess.run` does, with its output as text.

    One that is not done within so many seconds is shown where it stands. What it started goes with it: a process that
    is left over holds the pipes open, and whoever reads them waits for ever.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGABRT, signal.SIGKILL):  # at the first, every Python among them writes its stacks
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        out, err = process.communicate(timeout=5)
        words = " ".join(map(str, command))
        raise AssertionError(f"not done within {within} s: {words}\n{out[-3000:]}{err[-10_000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@functools.cache
def fork_server():
    """This process's fork server, started when it is asked for; None on a machine that cannot have one."""
    return ForkServer(ENVIRONMENT) if missing() is None else None


def no_fork_server():
    """End the fork server, if there is one."""
    if fork_server.cache_info().currsize and fork_server() is not None:
        fork_server().close()
    fork_server.cache_clear()


def launched(words, environment, module="adamd_service", forked=True, apart=False):
    """Start `python -m module *words`, forked from the fork server where that may be.

    Its `stdout` has both outputs; where they are `apart`, its `stderr` has the errors.
    """
    parent = fork_server() if forked else None
    if parent is not None and parent.serves(module, environment):
        return parent.fork(module, words, environment, apart)
    command = [sys.executable, "-m", module, *words]
    errors = subprocess.PIPE if apart else subprocess.STDOUT
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)


def commanded(words, environment, within=120):
    """Run `adamd *words` to its end, forked as the servers are; returns what `ended` does. It must start nothing."""
    process = launched(words, {**environment, "PYTHONFAULTHANDLER": "1"}, apart=True)
    with process.stdout, process.stderr, ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(pipe.read) for pipe in (process.stdout, process.stderr)]
        try:
            status = process.wait(within)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # at which it writes its stacks
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            out, err = (one.result() for one in reading)
            words = " ".join(map(str, words))
            raise AssertionError(f"not done within {within} s: adamd {words}\n{out[-3000:]}{err[-10_000:]}") from None
        out, err = (one.result() for one in reading)
        return subprocess.CompletedProcess(words, status, out, err)


class Server:
    """`adamd serve` as a process of its own. `url` and `grpc_url` are where it listens; `restart` keeps ports and data.

    It is forked from the fork server, unless its environment is one in which the fork server's would have been loaded otherwise.
    """

    module = "adamd_service"
    forked = True

    def __init__(self, data_dir, *options, env=None, port=0):
        self.data_dir = Path(data_dir)
        self.options = list(options)
        self.env = env or {}
        self.port = port
        self.grpc_port = 0
        self.lines = []
        self.process = None
        self.url = None
        self.grpc_url = None  # grpc://host:port

    def start(self):
        words = ["serve", "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        words += ["--data-dir", str(self.data_dir), *map(str, self.options)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **{k: str(v) for k, v in self.env.items()}}
        self.process = launched(words, environment, self.module, self.forked)
        ready = threading.Event()
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout, ready), daemon=True)
        self.reader.start()
        deadline = time.monotonic() + START
        while not ready.wait(0.02):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.reader.join(5)
                raise RuntimeError("adamd did not start:\n" + "\n".join(self.lines[-30:]))
        return self

    def _read(self, pipe, ready):
        for line in pipe:
            self.lines.append(line.rstrip())
            found = re.search(r"adamd is ready at (http://\S+:(\d+))(?: and (grpc://\S+:(\d+)))?", line)
            if found:
                self.url, self.port = found[1], int(found[2])
                if found[3]:
                    self.grpc_url, self.grpc_port = found[3], int(found[4])
                ready.set()
        pipe.close()

    @property
    def pid(self):
        return self.process.pid

    @property
    def store_pid(self):
        """The embedded store's process id."""
        return int((self.data_dir / "store" / "valkey.pid").read_text())

    def kill(self):
        """kill -9: nothing is tidied up."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return gone(self.process, 60)

    def restart(self):
        if self.process.poll() is None:
            self.kill()
        return self.start()

    def resident(self):
        """Resident memory in bytes, without pages of files: a forked process has those of its libraries when it needs them."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon")

    def log(self):
        return "\n".join(self.lines)


def store_binaries():
    """Every kind of store that this machine has, by name."""
    found = {"valkey": binary()}
    system = shutil.which("redis-server")
    if system:
        found["redis-server"] = system
    return found


class Store:
    """A Valkey or Redis server as a child process, with settings of the test's own. `url` names it."""

    def __init__(self, executable=None, **settings):
        self.executable = executable or binary()
        self.settings = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.port = free_port()
        self.directory = tempfile.mkdtemp(prefix="adamd-test-store-")
        self.process = None
        self._clients = weakref.WeakSet()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self):
        """A plain client. It ends with the store, where the test has not closed it, and goes when nobody has it."""
        client = redis.Redis(host="127.0.0.1", port=self.port, protocol=2, socket_timeout=10)
        self._clients.add(client)
        return client

    def start(self, wait=True):
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": self.directory, **self.settings}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [self.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        client = self.client()
        deadline = time.monotonic() + 30
        while True:
            try:
                client.ping()
                client.close()
                return
            except redis.RedisError:
                assert self.process.poll() is None, f"the store ended with {self.process.returncode}"
                assert time.monotonic() < deadline, "the store does not answer"
                time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self.process.terminate()
            gone(self.process, 30)
        for client in list(self._clients):
            client.close()
        shutil.rmtree(self.directory, ignore_errors=True)
