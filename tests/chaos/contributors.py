"""The clients of a storm over rounds: each pulls, trains, and sends what came of it, once or several times.

What a contribution is made of follows from its client and its round, so that a journal is small, and a judge can make
it again.
"""

import threading
import time
from dataclasses import dataclass, field

import numpy as np

import adamd
from chaos.journal import digest
from chaos.writers import PATIENCE

SIZES = {"bias": 1_000, "weight": 200_000}  # elements: sent alone, bias lies in the store's key; with weight, in bulk
MARK = np.frombuffer(b"\x1b\xad>?\xf2\x8cQ?\xd3\x14\xb7>\x9e\x01!?", np.float32)  # the beginning of each marker
TAIL = 4  # random elements that follow it: whose it is
AGAIN = 0.2  # of the replies: sent a second time
OTHER = 0.05  # of the replies: then one with other bytes
SLOW = 0.1  # of the tasks: the reply comes late
RESTARTED = 0.1  # of the tasks: the client dies before its reply, and comes back


@dataclass(frozen=True)
class Sent:
    """What one client sends to one round, without the parameters that it was made from."""

    kind: str
    num_examples: float
    noise: dict[str, np.ndarray]  # by tensor that it has: what training changed, or a gradient
    places: dict[str, int]  # where a tensor's marker lies

    def body(self, pulled):
        """Return what is sent, by tensor, for these parameters."""
        made = {}
        for name, noise in self.noise.items():
            made[name] = pulled[name] + noise if self.kind == "parameters" else noise.copy()
            place = self.places[name]
            made[name][place : place + MARK.size] = MARK
            made[name][place + MARK.size : place + MARK.size + TAIL] = noise[:TAIL]
        return made

    def gradient(self, pulled):
        """Return the pseudo-gradient that it means, by tensor."""
        body = self.body(pulled)
        if self.kind == "gradient":
            return body
        return {name: pulled[name] - part if self.kind == "parameters" else -part for name, part in body.items()}

    @property
    def tails(self):
        """The bytes that follow MARK in it."""
        return {noise[:TAIL].tobytes() for noise in self.noise.values()}


def sent(seed, client, number):
    """Return what a client sends to round ``number``: all tensors or the small one, as one of three kinds."""
    rng = np.random.default_rng((seed, *client.encode(), number))
    names = list(SIZES) if rng.random() < 0.5 else ["bias"]
    # A gradient of the large tensor, alone in its round, would be its step: the log keeps that, marker and all.
    kind = str(rng.choice(["delta", "parameters"] if "weight" in names else ["delta", "parameters", "gradient"]))
    noise = {name: rng.standard_normal(SIZES[name], np.float32) for name in names}
    places = {name: int(rng.integers(0, SIZES[name] - MARK.size - TAIL)) for name in names}
    return Sent(kind, float(rng.integers(1, 100)), noise, places)


@dataclass(frozen=True)
class Answered:
    """What a server said of a contribution; ``current``: its open round; ``pulled``: the digest of the parameters before."""

    client: str
    round: int
    outcome: str
    counted: bool | None
    current: int
    pulled: str


@dataclass
class RoundsJournal:
    """What the clients of one session sent, and what they were told. Safe to use from many threads."""

    name: str
    seed: int
    attempted: set[tuple[int, str]] = field(default_factory=set)
    answers: list[Answered] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, number, client):
        """Note that a contribution is about to be sent."""
        with self.lock:
            self.attempted.add((number, client))

    def add(self, answered):
        with self.lock:
            self.answers.append(answered)


class Contributor:
    """One client of a federation, through the SDK. It keeps nothing but its name."""

    def __init__(self, name, url, journal):
        self.name, self.url, self.journal = name, url, journal
        self.rng = np.random.default_rng((journal.seed, *name.encode()))
        self._connect()

    def _connect(self):
        """Join, as often as it takes: a client that has never reached its server gives up within seconds."""
        self.client, until = adamd.connect(self.url, timeout=PATIENCE), time.monotonic() + PATIENCE.total
        while True:
            try:
                self.federation = self.client.federation(self.journal.name, client=self.name)
                return
            except adamd.RetriesExhausted:
                if time.monotonic() > until:
                    raise

    def turn(self, crew):
        task = self.federation.task()
        if crew.over:
            return
        if self.rng.random() < RESTARTED:
            self.client.close()
            self._connect()
            return
        if self.rng.random() < SLOW:
            time.sleep(self.rng.uniform(0, 1))
        mine = sent(self.journal.seed, self.name, task.round)
        pulled = {name: np.array(array) for name, array in task.parameters.items()}
        self.journal.attempt(task.round, self.name)
        first = self._reply(crew, task, mine, mine.body(pulled), pulled)
        if self.rng.random() < AGAIN:
            again = self._reply(crew, task, mine, mine.body(pulled), pulled)
            assert again.outcome in ("duplicate", "too_late"), again
            assert again.counted == first.counted, (first, again)
        if self.rng.random() < OTHER:
            other = task.reply(**{mine.kind: {"bias": pulled["bias"]}}, num_examples=mine.num_examples)
            assert other.outcome in ("conflict", "too_late"), other

    def _reply(self, crew, task, mine, body, pulled):
        answer = task.reply(**{mine.kind: body}, num_examples=mine.num_examples)
        whole = digest(np.concatenate([pulled[name] for name in SIZES]))
        one = Answered(self.name, task.round, answer.outcome, answer.counted, answer.current, whole)
        crew.note(self.journal, one, replayed=answer.outcome == "duplicate")
        return answer

    def close(self):
        self.client.close()
