"""The judge of a storm: it records what was acknowledged and checks a server against that.

It talks to no server.

The fold is made by the readable reference kernel, never by the compiled one that the server runs.
"""

import threading
from dataclasses import dataclass, field

import numpy as np
import xxhash

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan

SHOWN = 5  # faults of one kind that are told in words


@dataclass(frozen=True)
class Acknowledged:
    """A gradient that the server said it applied, as ``step``.

    ``answered``, ``chain``, ``digest``: the step, the history and the bits of the parameters that came with the answer;
    None where only the fact was told (a superseded step).
    """

    step: int
    gradient: tuple[int, ...]
    answered: int | None = None
    chain: str | None = None
    digest: str | None = None


@dataclass
class Journal:
    """Everything that the writers of one session saw acknowledged. Safe to use from many threads."""

    name: str
    start: np.ndarray
    settings: dict
    seen: list[Acknowledged] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, one):
        with self.lock:
            self.seen.append(one)

    def __len__(self):
        return len(self.seen)

    def gradient(self, seed):
        """The gradient that these numbers stand for: a journal of gigabytes would help nobody."""
        return np.random.default_rng(seed).standard_normal(self.start.size, self.start.dtype)


@dataclass(frozen=True)
class Reading:
    """What a server says of a session: its step, its history, and its arrays (``params`` at least), flat."""

    step: int
    chain: str
    arrays: dict[str, np.ndarray]


@dataclass
class Verdict:
    """What is wrong; nothing, if all is empty."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)

    @property
    def good(self):
        return not (self.lost or self.twice or self.bits)

    def __str__(self):
        kinds = (("lost", self.lost), ("applied twice", self.twice), ("other bits", self.bits))
        return "; ".join(f"{len(found)} {kind}: {', '.join(found[:SHOWN])}" for kind, found in kinds if found) or "good"


class Judge:
    """Folds a journal as it grows and compares a server with it. Ask it only while no writer waits for an answer."""

    def __init__(self, journal):
        self.journal = journal
        self.settings = parse_settings(journal.settings)
        self.state = State.fresh(journal.start, 1, self.settings)
        self.step = 0
        self.digests = {0: digest(self.state.params)}
        self.audited = 0

    def compare(self, reading, who="the server"):
        """Return the verdict on what a server says now."""
        verdict, name = Verdict(), self.journal.name
        by_step = self._counted(reading, verdict)
        while not verdict.lost and not verdict.twice and self.step < reading.step:
            self._apply(by_step[self.step + 1])
        if verdict.lost or verdict.twice:
            return verdict
        self._answers(verdict)
        for array, mine in self.state.arrays.items():
            theirs = reading.arrays.get(array)
            if theirs is not None and theirs.tobytes() != mine.tobytes():
                differ = int((theirs.view(np.uint8) != mine.view(np.uint8)).sum())
                verdict.bits.append(f"{name}: {array} of {who} at step {reading.step} differs in {differ} bytes")
        chains = {one.chain for one in self.journal.seen if one.answered == reading.step}
        if chains - {reading.chain}:
            verdict.bits.append(f"{name}: {who} is on another history than it acknowledged at step {reading.step}")
        return verdict

    def _counted(self, reading, verdict):
        """Every step from 1 to the server's is one acknowledged gradient, and every acknowledged gradient one step."""
        name, by_step, by_gradient = self.journal.name, {}, {}
        for one in self.journal.seen:
            if one.step > reading.step:
                verdict.lost.append(f"{name}: step {one.step} was acknowledged, the server is at {reading.step}")
            if by_step.setdefault(one.step, one.gradient) != one.gradient:
                verdict.lost.append(f"{name}: two gradients were acknowledged as step {one.step}")
            if by_gradient.setdefault(one.gradient, one.step) != one.step:
                verdict.twice.append(f"{name}: a gradient is step {by_gradient[one.gradient]} and step {one.step}")
        for step in range(1, reading.step + 1):
            if step not in by_step:
                verdict.twice.append(f"{name}: step {step} is applied, and nobody's: a repetition")
        return by_step

    def _answers(self, verdict):
        """Every answer that ever came had the bits of its step."""
        for one in self.journal.seen[self.audited :]:
            if one.answered is not None and one.digest != self.digests.get(one.answered):
                verdict.bits.append(f"{self.journal.name}: an answer at step {one.answered} had other parameters")
        self.audited = len(self.journal.seen)

    def _apply(self, seed):
        gradient, state = self.journal.gradient(seed), self.state
        updates = plan(self.settings, ["parameters"], state.counts, [True], state.params.dtype)
        apply(state, gradient, updates, [0, state.params.size], None, ReferenceKernel())
        self.step += 1
        self.digests[self.step] = digest(state.params)


def digest(array):
    """XXH3-128 of an array's bytes."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).view(np.uint8))
