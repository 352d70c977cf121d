"""A storm: clients step over HTTP and gRPC while the server and its store are killed (-9) at random.

Where there is a small disk for it, that is full for some seconds now and then, and the killing goes on meanwhile.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load

import adamd
from chaos.journal import Journal, Judge, Reading
from chaos.killing import BOTH, Reaper
from chaos.writers import Crew, Owner, Poster, Racer
from servers import Server

SNAPSHOT_RECORDS = 20
ENV = {"ADAMD_SNAPSHOT_RECORDS": SNAPSHOT_RECORDS, "ADAMD_LOG_LEVEL": "error"}
PROGRESS = 120.0  # seconds in which a server that is up must acknowledge a step
STEPS = 8  # fewer steps than this one writer makes before the next kill
MOMENT = 0.4  # seconds from there to the kill, at most
LINES = 5.0  # seconds between two lines for a person
FULL_SECONDS = 3.0  # that the disk stays full, at most, after each refusal that was waited for
KILLS_WHILE_FULL = 3  # fewer kills than this while the disk is full


@dataclass
class Plan:
    """How many kills, how many vectors, and how often everything is compared."""

    seed: int
    servers: int
    stores: int
    large: int  # elements of the large vectors
    every: int  # kills between two comparisons
    bulk: str = "files"  # where the large vectors lie
    full: int = 0  # how often the disk is full


@dataclass
class Summary:
    """What came of it."""

    servers: int = 0
    stores: int = 0
    acknowledged: int = 0
    replays: int = 0
    comparisons: int = 0
    rewrites: int = 0
    full: int = 0  # times that the disk was full
    refused: int = 0  # steps that were answered `store_full`
    killed_while_full: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)

    def __str__(self):
        bits = "bits equal" if not self.bits else f"{len(self.bits)} TIMES OTHER BITS"
        full = f"the disk full {self.full} times ({self.killed_while_full} kills meanwhile), {self.refused:,} steps refused, "
        return (
            f"chaos: {full if self.full else ''}{self.servers} kills of the server, {self.stores} of the store, {self.acknowledged:,} steps "
            f"acknowledged, {len(self.lost)} lost, {len(self.twice)} applied twice, {bits}"
        )


class Storm:
    """One run, from the first process to the last."""

    def __init__(self, plan, directory, say=print, hog=None):
        self.plan, self.say, self.hog = plan, say, hog
        self.rng = np.random.default_rng(plan.seed)
        self.server = Server(directory, env={**ENV, "ADAMD_BULK": plan.bulk})
        self.server.forked = False  # killed and started as a user's is, who has no fork server
        self.crew = Crew()
        self.summary = Summary()
        self.reaper = Reaper(self.server, self.rng, self.summary, plan.servers)
        self.journals = journals(plan)
        self.judges = {name: Judge(one) for name, one in self.journals.items()}
        self.began = time.monotonic()
        self.told = 0.0

    def run(self):
        """Do all of it, and return the summary."""
        try:
            self.server.start()
            self._create()
            writers = self._writers()
            self.crew.start(writers)
            try:
                self._weather([one.name for one in writers])
                self.crew.pause()
                self._compare(cold=True)
            except BaseException as error:  # said at once: without a server the writers may take minutes to end
                self.say(f"chaos: the storm ends by {error!r}")
                raise
            finally:
                self.crew.end()
            self.crew.check()
        finally:
            if self.server.process is not None:
                self.server.stop()
        self.summary.seconds = time.monotonic() - self.began
        return self.summary

    def _create(self):
        with adamd.connect(self.server.url) as client:
            for one in self.journals.values():
                settings = {k: v for k, v in one.settings.items() if k != "name"}
                client.create(one.start, name=one.name, optimizer=one.settings.get("name", "adam"), **settings)

    def _writers(self):
        url, grpc, of, seed = self.server.url, self.server.grpc_url, self.journals, self.plan.seed
        places = {}
        more = [Poster("poster c", url, of["post-large"], (seed, 7))] if self.plan.full else []
        return [
            *more,
            Owner("owner a", url, [of["a-small"], of["a-large"]], (seed, 1)),
            Owner("owner b", grpc, [of["b-small"], of["b-large"]], (seed, 2)),
            Racer("racer a", url, of["race"], (seed, 3), places),
            Racer("racer b", grpc, of["race"], (seed, 4), places),
            Poster("poster a", url, of["post"], (seed, 5)),
            Poster("poster b", url, of["post"], (seed, 6)),
        ]

    # -- killing

    def _weather(self, writers):
        """Kill until the plan is fulfilled, comparing everything in between."""
        since = 0
        while (left := max(0, self.plan.servers - self.summary.servers)) + self._stores_left() + self._full_left() > 0:
            self.crew.wait_for(int(self.rng.integers(0, STEPS)), PROGRESS, str(self.rng.choice(writers)))
            self.reaper.maybe_rewrite()
            time.sleep(self.rng.uniform(0, MOMENT))
            stores, full = self._stores_left(), self._full_left()
            if full and self.rng.random() * (left + stores + full) < full:
                self._fill_disk(writers)
            elif self.rng.random() * (left + stores) < stores:
                self.reaper.kill_store()
            else:
                self.reaper.kill_server()
            self._progress()
            since += 1
            if since >= self.plan.every:
                since = 0
                self.crew.pause()
                self._compare(cold=False)
                self.crew.resume()

    def _stores_left(self):
        return max(0, self.plan.stores - self.summary.stores)

    def _full_left(self):
        return self.plan.full - self.summary.full

    def _fill_disk(self, writers):
        """Fill the disk, kill meanwhile, and make room: then every writer goes on, and no process starts for it."""
        self.hog.fill()
        try:
            self.crew.wait_for_refusal(PROGRESS)
            for _ in range(int(self.rng.integers(0, KILLS_WHILE_FULL)) if self.summary.full else 1):
                time.sleep(self.rng.uniform(0, FULL_SECONDS))
                self._kill_while_full()
                self.crew.wait_for_refusal(PROGRESS)  # what has started on a full disk serves, and refuses
            time.sleep(self.rng.uniform(0, FULL_SECONDS))
            process = self.server.process
        finally:
            self.hog.empty()
        self.summary.full += 1
        for writer in writers:
            self.crew.wait_for(1, PROGRESS, writer)
        assert self.server.process is process and process.poll() is None, "it took a start to serve again"

    def _kill_while_full(self):
        before = self.summary.servers + self.summary.stores
        if self.summary.full and self.rng.random() < BOTH:
            self.reaper.kill_store()
        else:
            self.reaper.kill_server()
        self.summary.killed_while_full += self.summary.servers + self.summary.stores - before

    # -- comparing

    def _compare(self, *, cold):
        """Compare every session with what was acknowledged; ``cold``: a second time, by a server that has just come up."""
        self._judge("the server")
        if cold:
            self.server.kill()
            self.server.start()
            self._judge("a fresh server")
        self.crew.check()

    def _judge(self, who):
        with adamd.connect(self.server.url) as client:
            for name, judge in self.judges.items():
                verdict = judge.compare(reading(client.session(name)), who)
                for kind in ("lost", "twice", "bits"):
                    getattr(self.summary, kind).extend(getattr(verdict, kind))
                if not verdict.good:
                    self.say(f"chaos: {verdict}")
        self.summary.comparisons += 1
        self.summary.acknowledged, self.summary.replays = self.crew.acknowledged, self.crew.replays
        self.summary.refused = self.crew.refused

    def _progress(self):
        now, done, plan = time.monotonic() - self.began, self.summary, self.plan
        if now - self.told < LINES:
            return
        self.told = now
        self.say(
            f"chaos: {now:5.0f} s  server killed {done.servers:3d} of {plan.servers}, store {done.stores:2d} of "
            f"{plan.stores}, disk full {done.full} of {plan.full}, {self.crew.acknowledged:6,} steps acknowledged, {done.comparisons} comparisons"
        )


def journals(plan):
    """One journal a session: both dtypes, small vectors (inside the commit) and large ones (staged in chunks)."""
    rng = np.random.default_rng((plan.seed, 0))

    def one(session, size, dtype, **settings):
        return Journal(session, rng.standard_normal(size, np.dtype(dtype)), settings)

    made = [
        one("a-small", 1_000, "float32", lr=0.01),
        one("a-large", plan.large, "float32", name="adamw", lr=0.001, weight_decay=0.01),
        one("b-small", 777, "float64", lr=0.02, amsgrad=True),
        one("b-large", plan.large // 3, "float64", lr=0.001, weight_decay=0.1),
        one("race", 500, "float64", lr=0.005),
        one("post", 2_000, "float32", lr=0.05, betas=[0.8, 0.99]),
    ]
    if plan.full:
        made.append(one("post-large", plan.large, "float32", lr=0.01))  # by a client that sees what is refused
    return {journal.name: journal for journal in made}


def reading(session):
    """Everything that a server says of a session: by its document, its parameters, and its exported state."""
    document = session.refresh()
    parameters = np.asarray(session.parameters())
    arrays = {name.partition(":")[0]: array for name, array in load(session.export()).items()}
    assert arrays["param"].tobytes() == parameters.tobytes(), "the parameters and the exported state differ"
    assert session.step_number == document["step"], "a session moved while nobody stepped it"
    return Reading(document["step"], document["chain"], {**arrays, "params": parameters})
