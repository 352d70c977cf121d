"""The demo's live table: the round under way, and what each client does in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from adamd.demo.digits import Images
from adamd.demo.federated.roles import CLIENTS, MEMBERS, Role
from adamd.demo.federated.worker import Event

COLUMNS = 2
STYLES = {Role.POISONED: "red", Role.SLOW: "yellow", Role.ABSENT: "yellow", Role.TWICE: "cyan", Role.HONEST: ""}
SENT = ("accepted", "duplicate")
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 30  # characters of a sparkline


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a run is: its title, its round of how many, its replies of how many, its accuracies, and what happens."""

    title: str
    round: int
    total: int
    received: int
    wanted: int
    accuracies: Sequence[float]
    news: str = ""


def table(scene: Scene, shards: Sequence[Images], events: Mapping[int, Sequence[Event]], plain: bool) -> Group:
    """Return what the terminal shows now. ``plain``: it has ASCII only."""
    grid = Table.grid(padding=(0, 1))
    rows = CLIENTS // COLUMNS
    for row in range(rows):
        grid.add_row(*(_cell(row + rows * column, shards, events, plain) for column in range(COLUMNS)))
    accuracy = f"accuracy {scene.accuracies[-1]:.1%}" if scene.accuracies else ""
    head = Text.assemble(
        ("  " + scene.title, "bold"),
        f"   round {scene.round} of {scene.total}   {scene.received} of {scene.wanted} replies",
        f"   {accuracy}",
    )
    columns = Text(f"  {'client':<8}images, role, newest round", "dim")
    return Group(head, Text(""), columns, grid, Text(""), Text.from_markup(f"  {scene.news}"))


def _cell(place: int, shards: Sequence[Images], events: Mapping[int, Sequence[Event]], plain: bool) -> Text:
    member = MEMBERS[place]
    line = Text(f"  {member.name}  {len(shards[place]):>3} ", no_wrap=True)
    line.append(f"{member.role.value:<11}", STYLES[member.role])
    return line.append_text(_doing(events.get(place, ()), plain))


def _doing(events: Sequence[Event], plain: bool) -> Text:
    """Return what a client has done in its newest round."""
    if not events or not events[-1].round:
        return Text("-" if events else "", "dim")
    number = events[-1].round
    told = [event.what for event in events if event.round == number]
    if told[-1] in ("away", "trains"):
        return Text(f" {number:>3} {told[-1]}", "dim")
    replies = [what for what in told if what not in ("away", "trains")]
    marks = "".join(("+" if plain else "✓") if what in SENT else ("x" if plain else "✗") for what in replies)
    return Text(f" {number:>3} {marks} {'once' if len(replies) > 1 else ''}", "green")


def sparkline(accuracies: Sequence[float], plain: bool) -> str:
    """Return accuracies as a line of small bars, or as their first, middle and last where there is ASCII only."""
    if plain or not accuracies:
        return " ".join(f"{value:.0%}" for value in accuracies[:: max(1, len(accuracies) // 2)])
    shown = [accuracies[place * len(accuracies) // WIDTH] for place in range(WIDTH)] if accuracies else []
    return "".join(BARS[min(len(BARS) - 1, int(value * len(BARS)))] for value in shown)
