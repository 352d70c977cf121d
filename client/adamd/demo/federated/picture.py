"""The demo's plot: what an attack does to a mean, and what waiting for slow clients costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamd.demo.federated.trial import Trial

ATTACK, WAITING = ("#0a7d8c", "#c0392b"), ("#0a7d8c", "#d68910")


def picture(path: Path, attack: Mapping[str, Trial], waiting: Mapping[str, Trial], kill: int | None) -> None:
    """Write two panels as a PNG: accuracy by round under attack, and by time with and without waiting.

    Args:
        path: where to.
        attack: by their names, two trials to compare by round.
        waiting: two to compare by the seconds since their start.
        kill: the round in which the server was killed, of the first trial.

    Raises:
        OSError: it cannot be written there.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for color, (name, trial) in zip(ATTACK, attack.items(), strict=True):
        left.plot(range(1, len(trial.accuracies) + 1), trial.accuracies, color=color, label=name)
    if kill is not None:
        left.axvline(kill, color="#555555", linestyle="--", linewidth=1.2, label=f"kill -9 in round {kill}")
    for color, (name, trial) in zip(WAITING, waiting.items(), strict=True):
        right.plot(trial.seconds, trial.accuracies, color=color, label=name)
    _dress(left, "two of twenty clients are poisoned", "round")
    _dress(right, "three of twenty clients are slow", "seconds")
    left.set_ylabel("test accuracy")
    figure.savefig(path)


def _dress(axes: Any, title: str, across: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
