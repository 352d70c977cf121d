"""A failover to a replica that fell behind: sessions that it has are whole, missing ones are reported.

The stores and the server are real processes. Doors stand between them: one moves from store to store, as a name or a
proxy does; through the other one the replica gets what the primary writes, until it is held.
"""

import signal
import socket
import threading
import time
from contextlib import suppress

import numpy as np

import adamd
from chaos.journal import Acknowledged, Journal, Judge, digest
from chaos.storm import reading
from servers import Server, Store

PIECE = 1 << 16
PATIENCE = adamd.Timeout(total=120)
SNAPSHOT_RECORDS = 4
BEFORE, AFTER = 10, 3 * SNAPSHOT_RECORDS + 2  # steps of each writer that the replica gets, and that it does not
ENV = {"ADAMD_SNAPSHOT_RECORDS": SNAPSHOT_RECORDS, "ADAMD_LOG_LEVEL": "error", "ADAMD_STORE_TIMEOUT": 5}


class Door:
    """A port that leads to a store, and may lead to another one, or be held."""

    def __init__(self, port):
        self.target = port
        self.open = threading.Event()
        self.open.set()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.through = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):  # closed
            while True:
                came, _ = self.listening.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self.target), 5)
                    there.settimeout(None)
                except OSError:
                    came.close()
                    continue
                self.through += [came, there]
                for one, other in ((came, there), (there, came)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one, other):
        with suppress(OSError):
            while piece := one.recv(PIECE):
                self.open.wait()
                other.sendall(piece)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def lead_to(self, port):
        """Lead to another store from now on; whoever is connected is cut off."""
        self.target = port
        while self.through:
            one = self.through.pop()
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self):
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.open.set()
        self.lead_to(self.target)


class Writer:
    """A client with one session, that steps when it is told to, and writes down what was acknowledged, and what lost."""

    def __init__(self, url, journal, number):
        self.client = adamd.connect(url, timeout=PATIENCE)
        self.journal, self.number, self.count = journal, number, 0
        settings = {name: value for name, value in journal.settings.items() if name != "name"}
        optimizer = journal.settings.get("name", "adam")
        self.session = self.client.create(journal.start, name=journal.name, optimizer=optimizer, **settings)
        self.lost = []

    def steps(self, count):
        for _ in range(count):
            self.count += 1
            seed = (self.number, self.count)
            try:
                params = self.session.step(self.journal.gradient(seed))
            except adamd.HistoryLost as error:
                self.lost.append(error.step)
                self.journal.seen = [one for one in self.journal.seen if one.step <= error.step]
                self.session.refresh()
                continue
            step = self.session.step_number
            self.journal.add(Acknowledged(step, seed, step, self.session.chain, digest(params)))


class Failovers:
    """One run: a server, the doors, and one primary after the other."""

    def __init__(self, directory, seed, server=Server, env=None):
        self.primary = Store().start()
        self.front = Door(self.primary.port)
        options = ["--redis-url", f"redis://127.0.0.1:{self.front.port}/0"]
        self.server = server(directory, *options, env={**ENV, **(env or {})})
        self.replica = self.behind = None
        self.rng = np.random.default_rng(seed)
        self.writers = []

    def __enter__(self):
        self.server.start()
        sizes = {"small": (400, "float64"), "large": (150_000, "float32"), "wide": (300_000, "float32")}
        for number, (name, (size, kind)) in enumerate(sizes.items()):
            journal = Journal(name, self.rng.standard_normal(size).astype(kind), {"lr": 0.01})
            self.writers.append(Writer(self.server.grpc_url if number % 2 else self.server.url, journal, number))
        return self

    def __exit__(self, *_):
        for writer in self.writers:
            writer.client.close()
        with suppress(OSError):
            self.server.process.send_signal(signal.SIGCONT)
        self.server.stop()
        for one in (self.front, self.behind):
            if one is not None:
                one.close()
        for store in (self.primary, self.replica):
            if store is not None:
                store.stop()

    def all(self, work):
        """Let every writer do something at once."""
        faults = []

        def done(writer):
            try:
                work(writer)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=done, args=(writer,)) for writer in self.writers]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if faults:
            raise faults[0]

    def follow(self):
        """Start a replica, and wait until it has what the primary has."""
        self.behind = Door(self.primary.port)
        self.replica = Store().start()
        with self.replica.client() as client, self.primary.client() as primary:
            client.execute_command("REPLICAOF", "127.0.0.1", self.behind.port)
            self.until(lambda: client.info("replication")["master_link_status"] == "up")
            self.all(lambda writer: writer.steps(BEFORE + int(self.rng.integers(0, 6))))
            assert primary.wait(1, 20_000) == 1

    def fall_behind(self):
        """From now on the replica gets nothing more."""
        self.behind.open.clear()

    def fail_over(self):
        """The primary is no more; the replica takes its place, as it is."""
        self.primary.process.kill()
        self.primary.process.wait()
        self.behind.lead_to(0)
        with self.replica.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        self.front.lead_to(self.replica.port)
        self.primary.stop()
        self.behind.close()
        self.primary, self.replica, self.behind = self.replica, None, None

    def judge(self, who):
        """Every session is the fold of what was acknowledged and not lost, bit for bit."""
        with adamd.connect(self.server.url, timeout=PATIENCE) as client:
            assert all("damaged" not in row for row in client.sessions())
            for writer in self.writers:
                verdict = Judge(writer.journal).compare(reading(client.session(writer.journal.name)), who)
                assert verdict.good, str(verdict)

    @staticmethod
    def until(true, within=30):
        deadline = time.monotonic() + within
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)
