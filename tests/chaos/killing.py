"""Kills a server and its store (-9), wherever they are, and starts them again."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import redis

BOTH = 0.3  # of the kills of the store: the server dies with it
EARLY = 0.1  # of the kills of the server: it has not come up yet
REWRITE = 0.15  # before a kill: the store is rewriting its file


class Reaper:
    """Kills one server.

    Args:
        server: a `Server` on an embedded store.
        rng: decides what and when.
        toll: its ``servers``, ``stores`` and ``rewrites`` are counted up.
        most: kills of the server, after which it is no more killed on its way up.

    """

    def __init__(self, server, rng, toll, most):
        self.server, self.rng, self.toll, self.most = server, rng, toll, most

    def kill_server(self):
        """Kill the server, and start it again."""
        self.server.kill()
        self.toll.servers += 1
        self._start()

    def kill_store(self):
        """Kill the store, and sometimes the server with it."""
        if not self._end_store():
            return
        if self.rng.random() < BOTH:
            time.sleep(self.rng.uniform(0, 0.4))  # before, or while, its keeper starts it again
            self.kill_server()

    def _end_store(self):
        """Kill the server's child that is its store. On a full disk the file with the store's number is empty."""
        home = str((self.server.data_dir / "store").resolve())
        for children in Path(f"/proc/{self.server.pid}/task").glob("*/children"):
            with suppress(OSError):
                for pid in map(int, children.read_text().split()):
                    if os.readlink(f"/proc/{pid}/cwd") == home:
                        os.kill(pid, signal.SIGKILL)
                        self.toll.stores += 1
                        return True
        return False

    def _start(self):
        """Start the server again; sometimes kill it once more before it is up."""
        while self.rng.random() < EARLY and self.toll.servers < self.most:
            self._start_and_kill(self.rng.uniform(0.1, 1.6))
            self.toll.servers += 1
        self.server.start()

    def _start_and_kill(self, after):
        """Kill a server ``after`` seconds from its start, wherever it is then."""
        before = self.server.process

        def strike():
            time.sleep(after)
            while self.server.process is before:
                time.sleep(0.01)
            self.server.process.kill()

        striker = threading.Thread(target=strike)
        striker.start()
        with suppress(RuntimeError):  # it did not come up
            self.server.start()
        striker.join()
        self.server.process.wait()

    def maybe_rewrite(self):
        """Let the store rewrite its append-only file, as it does by itself when the file has grown."""
        if self.rng.random() < REWRITE:
            socket = self.server.data_dir / "store" / "valkey.sock"
            with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(socket), protocol=2) as store:
                store.execute_command("BGREWRITEAOF")
                self.toll.rewrites += 1
