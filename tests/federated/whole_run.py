"""A federation from its first round to its last, of real processes that are killed (-9) on the way."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import numpy as np

import adamd
from servers import Server, gone

NAME, CLIENTS, ROUNDS = "hospitals", 12, 40
OPTIONS = {"count": CLIENTS, "num_rounds": ROUNDS, "min_replies": 10, "timeout": 10.0}
DEATHS = {"client": 14, "server": 3, "coordinator": 2}
PAUSE = 0.1  # seconds between two looks at where the run stands
WITHIN = 240.0  # seconds in which a round must come


class WholeRun:
    """Clients, a coordinator and a server, each a process that can be killed."""

    def __init__(self, directory, hospitals, seed):
        self.directory = directory
        self.rng = np.random.default_rng(seed)
        self.server = Server(directory / "server").start()
        self.shards = {one.name: one.save(directory) for one in hospitals}
        self.running = {}
        self.killed = Counter()

    def __enter__(self):
        self._start("coordinator")
        self.owner = adamd.connect(self.server.url, timeout=WITHIN)
        until = time.monotonic() + WITHIN
        while not [one for one in self.owner.sessions() if one.get("name") == NAME]:
            assert time.monotonic() < until, "the coordinator opens no federation"
            time.sleep(PAUSE)
        self.run = self.owner.open_federation(NAME)
        for name in self.shards:
            self._start(name)
        return self

    def __exit__(self, *error):
        for process in self.running.values():
            process.kill()
            process.wait()
        self.owner.close()
        self.server.stop()

    def _start(self, who):
        """Start a client, or the coordinator; clients come over HTTP and gRPC in turn."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        urls = self.server.url, self.server.grpc_url
        words = ["-m", "federated.coordinating", self.server.url, NAME]
        if who != "coordinator":
            url = urls[list(self.shards).index(who) % 2]
            words = ["-m", "federated.taking_part", url, NAME, str(self.shards[who]), str(self._diary(who))]
        with open(self.directory / f"{who}.out", "a") as out, open(self.directory / f"{who}.err", "a") as err:
            self.running[who] = subprocess.Popen([sys.executable, *words], env=environment, stdout=out, stderr=err)

    def _diary(self, who):
        return self.directory / f"{who}.diary"

    # -- killing

    def through(self):
        """Kill everybody as often as planned, spread over the rounds; returns when the last round is closed."""
        deaths = [kind for kind, count in DEATHS.items() for _ in range(count)]
        self.rng.shuffle(deaths)
        for number, kind in enumerate(deaths):
            self._wait_for_round(1 + number * (ROUNDS - 2) // len(deaths))
            time.sleep(self.rng.uniform(0, 0.3))
            self._kill(kind)
        for who, process in self.running.items():
            status = gone(process, WITHIN)
            assert status == 0, f"{who} ended with {status}:\n{(self.directory / f'{who}.err').read_text()[-2000:]}"

    def _wait_for_round(self, number):
        until = time.monotonic() + WITHIN
        while (at := self.run.current().round) < number:
            assert time.monotonic() < until, f"round {at} is not closed"
            time.sleep(PAUSE)

    def _kill(self, kind):
        self.killed[kind] += 1
        if kind == "server":
            self.server.restart()
            return
        who = kind if kind == "coordinator" else str(self.rng.choice(list(self.shards)))
        self.running[who].kill()
        self.running[who].wait()
        self._start(who)

    # -- reading

    def answers(self):
        """Return every answer that a client wrote down: (round, client, outcome, counted)."""
        for who in self.shards:
            for line in self._diary(who).read_text().splitlines():
                number, outcome, counted = line.split()
                yield int(number), who, outcome, counted

    def told(self):
        """Return the rounds that the last coordinator printed."""
        return [int(line) for line in (self.directory / "coordinator.out").read_text().split()]

    def bulk_in_use(self):
        """Return the bytes of the extents that somebody has."""
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        total, free = (
            float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])
            for name in ("adamd_bulk_bytes", "adamd_bulk_free_bytes")
        )
        return total - free
