"""A storm over rounds: twenty clients contribute over HTTP and gRPC while the server and its store are killed (-9)."""

import time
from dataclasses import dataclass, field

import numpy as np

import adamd
from adamd import fed
from chaos.contributors import SIZES, Contributor, RoundsJournal, sent
from chaos.killing import Reaper
from chaos.remains import Remains
from chaos.rounds_judge import RoundsJudge
from chaos.writers import PATIENCE, Crew
from servers import Server

ENV = {"ADAMD_SNAPSHOT_RECORDS": 10, "ADAMD_LOG_LEVEL": "error"}
NAME = "storm"
STRATEGY = fed.FedAdam(eta=0.01)
CONTRIBUTORS, QUORUM, LEAST, TIMEOUT = 20, 16, 4, 1.0
CLIP_NORM, MAX_WEIGHT = 200.0, 60.0  # contributions with the large tensor are clipped; of the weights, some are capped
PROGRESS = 120.0  # seconds in which a server that is up must answer a client
ANSWERS = 3  # fewer answers than this one client gets before the next kill
MOMENT = 0.4  # seconds from there to the kill, at most
LINES = 5.0  # seconds between two lines for a person
GONE = (
    180.0  # seconds in which a server must have overwritten what it counted; a killed reader holds its leases for 120
)


@dataclass
class Plan:
    """How many kills, and how often everything is compared."""

    seed: int
    kills: int
    every: int  # kills between two comparisons
    bulk: str = "files"  # where large contributions lie
    stores: float = 0.25  # of the kills: of the store


@dataclass
class Summary:
    """What came of it."""

    servers: int = 0
    stores: int = 0
    rewrites: int = 0
    rounds: int = 0
    counted: int = 0  # contributions that the documents list
    late: int = 0  # those that came too late
    replays: int = 0
    comparisons: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)
    remains: list[str] = field(default_factory=list)

    @property
    def kills(self):
        """Of either."""
        return self.servers + self.stores

    def __str__(self):
        bits = "bits equal" if not self.bits else f"{len(self.bits)} TIMES OTHER BITS"
        return (
            f"chaos: {self.servers} kills of the server, {self.stores} of the store, {self.rounds:,} rounds of "
            f"{self.counted:,} contributions, {len(self.lost)} lost, {len(self.twice)} counted twice, {bits}, "
            f"{len(self.remains)} places with bytes of a contribution"
        )


class RoundsStorm:
    """One run, from the first process to the last."""

    def __init__(self, plan, directory, say=print):
        self.plan, self.say = plan, say
        self.rng = np.random.default_rng(plan.seed)
        self.server = Server(directory, env={**ENV, "ADAMD_BULK": plan.bulk})
        self.crew, self.summary = Crew(), Summary()
        self.reaper = Reaper(self.server, self.rng, self.summary, plan.kills)
        self.journal = RoundsJournal(NAME, plan.seed)
        start = {name: self.rng.standard_normal(size, np.float32) for name, size in SIZES.items()}
        self.start = start
        self.judge = RoundsJudge(self.journal, start, STRATEGY.document(), CLIP_NORM, MAX_WEIGHT)
        self.remains = Remains(self.server.data_dir)
        self.began, self.told = time.monotonic(), 0.0

    def run(self):
        """Do all of it, and return the summary."""
        try:
            self.server.start()
            with adamd.connect(self.server.url, timeout=PATIENCE) as self.owner:
                self.federation = self._open()
                contributors = [self._contributor(number) for number in range(CONTRIBUTORS)]
                self.crew.start(contributors)
                try:
                    self._weather([one.name for one in contributors])
                finally:
                    self._end()
                self.crew.check()
                self._judge()
                self._look_for_remains()
        finally:
            if self.server.process is not None:
                self.server.stop()
        self.summary.seconds = time.monotonic() - self.began
        return self.summary

    def _open(self):
        return self.owner.open_federation(
            NAME,
            self.start,
            strategy=STRATEGY,
            quorum=QUORUM,
            min_replies=LEAST,
            max_replies=CONTRIBUTORS,
            timeout=TIMEOUT,
            aggregate=fed.Mean(clip_norm=CLIP_NORM),
            max_weight=MAX_WEIGHT,
        )

    def _contributor(self, number):
        url = self.server.grpc_url if number % 2 else self.server.url
        return Contributor(f"ward-{number:02d}", url, self.journal)

    def _weather(self, names):
        """Kill until the plan is fulfilled, comparing everything in between."""
        compared = 0
        while (kills := self.summary.kills) < self.plan.kills:
            self.crew.wait_for(int(self.rng.integers(0, ANSWERS)), PROGRESS, str(self.rng.choice(names)))
            self.reaper.maybe_rewrite()
            time.sleep(self.rng.uniform(0, MOMENT))
            if self.rng.random() < self.plan.stores:
                self.reaper.kill_store()
            else:
                self.reaper.kill_server()
            self._progress()
            if kills // self.plan.every > compared:
                compared = kills // self.plan.every
                self._judge()

    def _end(self):
        """Let every client end. One that waits for a round is asked once more when that is closed."""
        self.crew.dismiss()
        until = time.monotonic() + PATIENCE.total
        while any(one.is_alive() for one in self.crew.members):
            assert time.monotonic() < until, "a client does not end"
            current = self.federation.current()
            if current.received == 1:  # which would be the step
                self._contribute(current.round, "guest")
            if current.received:
                self.federation.close_round(current.round)
            time.sleep(0.1)

    def _contribute(self, number, client):
        """Contribute to the open round, if it is that one."""
        task = self.owner.federation(NAME, client=client).task()
        if task.round != number:
            return None
        mine = sent(self.plan.seed, client, number)
        self.journal.attempt(number, client)
        return task.reply(**{mine.kind: mine.body(task.parameters)}, num_examples=mine.num_examples)

    # -- comparing

    def _judge(self):
        """Compare the server with what was sent, while the clients go on: a closed round changes no more."""
        session = self.owner.session(NAME)
        parameters, step = session.parameters(), session.step_number
        documents = [one for one in self.federation.history(self.judge.step + 1) if one.state == "closed"]
        found = [self.judge.fold(documents), self.judge.compare(step, parameters)]
        for verdict in found:
            for kind in ("lost", "twice", "bits"):
                getattr(self.summary, kind).extend(getattr(verdict, kind))
            if not verdict.good:
                self.say(f"chaos: {verdict}")
        done = self.summary
        done.comparisons += 1
        done.rounds, done.counted, done.replays = self.judge.step, len(self.judge.rows), self.crew.replays
        done.late = sum(one.outcome == "too_late" for one in self.journal.answers)
        self.crew.check()

    def _look_for_remains(self):
        """See that the markers of a waiting contribution are found, after a kill as well; and afterwards none at all."""
        number = self.federation.current().round
        waiting = {client: sent(self.plan.seed, client, number).tails for client in ("witness-a", "witness-b")}
        for client in waiting:
            assert self._contribute(number, client).outcome == "accepted"
        for _ in range(2):
            found = set().union(*self.remains.found().values())
            missing = [client for client, tails in waiting.items() if not tails <= found]
            assert not missing, f"the contributions of {missing} are not where they must be looked for"
            self.server.kill()
            self.server.start()
        self.federation.close_round(number)
        self._judge()
        places = self._gone()
        self.summary.remains = [f"{place}: {len(tails)} contributions" for place, tails in places.items()]
        for line in self.summary.remains:
            self.say(f"chaos: remains in {line}")

    def _gone(self):
        """Wait until no contribution's bytes are left. What a kill cut off in the middle expires: that is not waited for."""
        until = time.monotonic() + GONE
        while places := self.remains.found():
            expiring = self.remains.expiring(places)
            self.remains.drop(expiring)
            if time.monotonic() > until and not expiring:
                return places
            time.sleep(0.2)
        return {}

    def _progress(self):
        now = time.monotonic() - self.began
        if now - self.told < LINES:
            return
        self.told = now
        self.say(
            f"chaos: {now:5.0f} s  {self.summary.servers} kills of the server, {self.summary.stores} of the store; "
            f"{self.crew.acknowledged:,} answers, {self.judge.step} rounds judged"
        )
