"""Runs ``adamd demo federated``: four federated trainings, one of them through a server that is killed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

import adamd
from adamd import fed
from adamd.demo import curve, digits
from adamd.demo.beginning import begun, spinner
from adamd.demo.digits import Images
from adamd.demo.federated import shards, trial
from adamd.demo.federated.crowd import Crowd
from adamd.demo.federated.picture import picture
from adamd.demo.federated.roles import CLIENTS, MEMBERS, REPLIES, Role
from adamd.demo.federated.table import Scene, sparkline, table
from adamd.demo.federated.trial import ROBUST, Plan, Stage, Trial, Undisturbed
from adamd.demo.server import DemoServer
from adamd.fed import Round
from adamd.federation import FederatedRun

PICTURE = Path("demo-federated.png")
OWED_ACCURACY = 0.85  # of the test images, with the trimmed mean
OWED_BUFFERED = 0.6  # where nobody waits: how far it comes depends on who is fast
KILL_FROM = 6  # the first round in which the server may be killed
KILL_RECEIVED = range(4, REPLIES - 2)  # replies of the round that it dies in: some are there, some are not
CALM = Plan("trimmed mean, undisturbed", ROBUST)
ROBUST_PLAN = Plan("trimmed mean", ROBUST)
MEAN = Plan("plain mean", fed.Mean())
BUFFERED = Plan("trimmed mean, nobody waits", ROBUST, buffered=True, rounds=2 * trial.ROUNDS)


def main(console: Console, url: str | None = None) -> int:
    """Run the demo; return the exit status: 0 only if every check holds.

    Args:
        console: where the output goes.
        url: use this server, and kill nothing; None starts one.

    """
    return begun(console, url, _show)


class RoundKiller:
    """Kills the server in the middle of a round, and starts it again. The clients only wait and retry.

    What the round had when it was looked at last has to be there afterwards.
    """

    def __init__(self, server: DemoServer) -> None:
        self._server = server
        self.news = ""
        self.round: int | None = None
        self.before: frozenset[str] = frozenset()  # whose replies the round had
        self.lost: frozenset[str] = frozenset()  # whose were not there with the new server
        self.away = 0.0  # seconds

    def look(self, run: FederatedRun, current: Round) -> None:
        """Kill the server, once, where the round has some replies and lacks some."""
        if self.round is not None or current.round < KILL_FROM or current.received not in KILL_RECEIVED:
            return
        self.round, self.before = current.round, trial.names(current)
        self._server.kill()
        killed = time.monotonic()
        self._server.start()
        self.away = time.monotonic() - killed
        self.lost = self.before - trial.names(run.round(current.round))
        self.news = (
            f"[red]kill -9[/] in round {current.round} at {len(self.before)} replies; a new server was there "
            f"{self.away:.1f} s later, and {len(self.lost)} of them were lost"
        )


def _show(console: Console, url: str | None) -> int:
    learn, test = digits.load()
    parts = shards.partition(learn, CLIENTS)
    _introduce(console, learn, test)
    plain = not curve.drawable(console.encoding)
    with ExitStack() as stack:
        server = None if url is not None else stack.enter_context(DemoServer())
        if server is not None:
            with console.status("starting a server (the first time takes half a minute)", spinner=spinner(console)):
                server.start()
        address = server.url if server is not None else str(url)
        client = stack.enter_context(adamd.connect(address))
        with console.status(f"starting {CLIENTS} processes", spinner=spinner(console)):
            crowd = stack.enter_context(Crowd(parts))
        live = stack.enter_context(Live(console=console, refresh_per_second=8, transient=True))

        def draw(scene: Scene) -> Group:
            return table(scene, parts, crowd.events, plain)

        stage = Stage(client, address, crowd, test, live, draw)
        killer = None if server is None else RoundKiller(server)
        trials = {}
        for plan in (ROBUST_PLAN, CALM, MEAN, BUFFERED):
            disturbance = killer if killer is not None and plan is ROBUST_PLAN else Undisturbed()
            trials[plan.title] = one = trial.run(stage, plan, disturbance)
            live.console.print(
                f"  {plan.title:<28}{sparkline(one.accuracies, plain)}  {one.accuracies[-1]:6.1%} in "
                f"{one.seconds[-1]:.0f} s",
                highlight=False,
            )
    return _conclude(console, trials, killer)


def _introduce(console: Console, learn: Images, test: Images) -> None:
    roles = [member.role for member in MEMBERS]
    console.print("\n[bold]adamd demo federated[/]: twenty clients learn together; no image leaves its client\n")
    console.print(
        f"  [bold]images[/]    {len(learn):,} real scans (UCI), divided unequally; {len(test)} for the test\n"
        f"  [bold]clients[/]   {CLIENTS} processes: {roles.count(Role.SLOW)} slow, {roles.count(Role.TWICE)} "
        f"send twice,\n"
        f"            {roles.count(Role.ABSENT)} drop out of every other round,\n"
        f"            {roles.count(Role.POISONED)} poisoned: the opposite of what they learned, thirty-fold\n"
        f"  [bold]server[/]    FedAdam; a round is over with {REPLIES} replies\n",
        highlight=False,
    )


def _conclude(console: Console, trials: dict[str, Trial], killer: RoundKiller | None) -> int:
    """Show how the trials went; return the exit status."""
    robust, calm = trials[ROBUST_PLAN.title], trials[CALM.title]
    mean, buffered = trials[MEAN.title], trials[BUFFERED.title]
    kill = None if killer is None else killer.round
    console.print()
    if killer is not None:
        _tell_kill(console, killer, robust.again)
    picture(
        PICTURE,
        {ROBUST_PLAN.title: robust, MEAN.title: mean},
        {"all wait for the slow ones": calm, "nobody waits": buffered},
        kill,
    )
    equal = digits.same_bits(robust.parameters, calm.parameters) and robust.contributors == calm.contributors
    survived = killer is None or (kill is not None and not killer.lost and not robust.again)
    console.print(f"plot: {PICTURE}", highlight=False)
    words = "two runs, without a kill" if killer is None else "killed in a round and resumed"
    console.print(f"{words}: bits {'equal' if equal else 'DIFFER'}", style="bold", highlight=False)
    accurate = robust.accuracies[-1] >= OWED_ACCURACY and buffered.accuracies[-1] >= OWED_BUFFERED
    withstood = robust.accuracies[-1] > mean.accuracies[-1]
    return 0 if equal and survived and accurate and withstood else 1


def _tell_kill(console: Console, killer: RoundKiller, again: int) -> None:
    if killer.round is None:
        console.print("  [red]x[/] no round was met that had some replies and lacked some: nothing was killed")
        return
    console.print(
        f"  [red]x[/] kill -9 in round {killer.round}, when that had {len(killer.before)} replies\n"
        f"  [green]+[/] a new server was there {killer.away:.1f} s later; {len(killer.lost)} of them were lost,\n"
        f"    {again} clients trained twice\n",
        highlight=False,
    )
