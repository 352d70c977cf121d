"""One federated training of the demo: its settings, and its course as the coordinator sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Group
from rich.live import Live

import adamd
from adamd import fed
from adamd.demo import digits
from adamd.demo.digits import Images, Params
from adamd.demo.federated.crowd import Crowd
from adamd.demo.federated.roles import REPLIES
from adamd.demo.federated.table import Scene
from adamd.fed import Aggregate, FederationOptions, Round
from adamd.federation import FederatedRun

ROUNDS = 16
BUFFER = 10  # replies that make a step where nobody waits
EVERY = 0.05  # seconds between two looks
STRATEGY = fed.FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3)
ROBUST = fed.TrimmedMean(0.2)  # of 18 replies 3 are cut at either end, of 10 replies 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trial is: its title, how replies become one, whether clients wait, and how many rounds it has."""

    title: str
    aggregate: Aggregate
    buffered: bool = False
    rounds: int = ROUNDS

    @property
    def wanted(self) -> int:
        """Replies that close a round."""
        return BUFFER if self.buffered else REPLIES

    def options(self) -> FederationOptions:
        """Return the options of `adamd.Client.open_federation`."""
        common: FederationOptions = {
            "strategy": STRATEGY,
            "num_rounds": self.rounds,
            "aggregate": self.aggregate,
            "labels": {"made-by": "adamd demo"},
        }
        if self.buffered:
            return {**common, "buffered": fed.Buffered(size=BUFFER)}
        return {**common, "quorum": REPLIES}


@dataclass(slots=True)
class Trial:
    """How a trial went.

    Attributes:
        accuracies: of the test images, after each round that was seen.
        seconds: since the start, of each of them.
        parameters: at the end.
        contributors: who counted in each round.
        again: how many clients trained twice for one round.

    """

    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: Params = field(default_factory=dict)
    contributors: list[frozenset[str]] = field(default_factory=list)
    again: int = 0


class Disturbance(Protocol):
    """What happens to a trial, if anything does; ``news`` tells of it."""

    news: str

    def look(self, run: FederatedRun, current: Round) -> None:
        """Be told of the round under way."""


@dataclass(slots=True)
class Undisturbed:
    """Nothing happens."""

    news: str = ""

    def look(self, run: FederatedRun, current: Round) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all trials have in common: the server's client and URL, the processes, the test images, the live table."""

    client: adamd.Client
    url: str
    crowd: Crowd
    test: Images
    live: Live
    draw: Callable[[Scene], Group]


def run(stage: Stage, plan: Plan, disturbance: Disturbance) -> Trial:
    """Run a trial to its end, and return how it went. Its session is deleted."""
    name = f"demo-{time.time_ns():x}"
    federation = stage.client.open_federation(name, digits.start(), **plan.options())
    trial, began = Trial(), time.monotonic()
    try:
        stage.crowd.join(stage.url, name)
        while stage.crowd.busy():
            _look(stage, plan, federation, trial, disturbance, began)
            time.sleep(EVERY)
        _look(stage, plan, federation, trial, Undisturbed(), began)
        trial.parameters = federation.parameters()
        history = federation.history()
        trial.again = stage.crowd.trained_again()
        trial.contributors = [names(done, counted=True) for done in history]
    finally:
        federation.delete()
    return trial


def names(told: Round, *, counted: bool = False) -> frozenset[str]:
    """Return the clients that a round has replies of, or those that ``counted``."""
    return frozenset(item.client for item in told.contributions if item.counted or not counted)


def _look(
    stage: Stage, plan: Plan, federation: FederatedRun, trial: Trial, disturbance: Disturbance, began: float
) -> None:
    current = federation.current()
    made = current.round if current.state == "closed" else current.round - 1
    if made > len(trial.accuracies):
        accuracy = digits.right(federation.parameters(), stage.test) / len(stage.test)
        trial.accuracies += [accuracy] * (made - len(trial.accuracies))
        trial.seconds += [time.monotonic() - began] * (made - len(trial.seconds))
    if current.state != "closed":
        disturbance.look(federation, current)
    scene = Scene(
        title=plan.title,
        round=current.round,
        total=plan.rounds,
        received=current.received,
        wanted=plan.wanted,
        accuracies=trial.accuracies,
        news=disturbance.news,
    )
    stage.live.update(stage.draw(scene))
