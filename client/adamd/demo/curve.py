"""The demo's loss curve: in the terminal, in braille dots, and as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

COLUMNS, ROWS = 60, 8  # characters; each is 2 dots wide and 4 dots high
BLANK = 0x2800
# The bit of each dot in a braille character, by row and column.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def drawable(encoding: str) -> bool:
    """Say whether a stream of this encoding has the characters of the curve."""
    try:
        f"{chr(BLANK)}─│└┊".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def terminal(losses: Sequence[float], kill: int | None) -> Text:
    """Return the curve as lines of text; ``kill`` is the step at which the server died."""
    width, high = 2 * COLUMNS, 4 * ROWS
    top = max(losses)
    grid = [[0] * COLUMNS for _ in range(ROWS)]
    before = None
    for x, loss in enumerate(_spread(losses, width)):
        y = min(high - 1, round((1 - loss / top) * (high - 1)))
        for dot in range(min(y, y if before is None else before), max(y, y if before is None else before) + 1):
            grid[dot // 4][x // 2] |= DOTS[dot % 4][x % 2]
        before = y
    mark = None if kill is None else min(COLUMNS - 1, kill * COLUMNS // len(losses))
    curve = Text()
    for row, cells in enumerate(grid):
        label = f"{top:.1f}" if row == 0 else "0.0" if row == ROWS - 1 else ""
        curve.append(f"  {label:>4} │", "dim")
        for column, cell in enumerate(cells):
            if column == mark and not cell:
                curve.append("┊", "red")
            else:
                curve.append(chr(BLANK + cell), "cyan")
        curve.append("\n")
    curve.append(f"       └{'─' * COLUMNS}\n", "dim")
    return curve.append_text(_legend(len(losses), kill, mark))


def _legend(steps: int, kill: int | None, mark: int | None) -> Text:
    line = Text("        ")
    if kill is None or mark is None:
        return line.append(f"{'loss, by step':<{COLUMNS - len(str(steps))}}{steps}", "dim")
    label = f"kill -9 at step {kill}"
    indent = max(0, min(COLUMNS - len(label), mark - len(label) // 2))
    line.append("loss".ljust(indent)[:indent], "dim").append(label, "red")
    rest = COLUMNS - indent - len(label)
    return line.append(f"{f'step {steps}':>{rest}}" if rest > 10 else "", "dim")


def _spread(values: Sequence[float], width: int) -> list[float]:
    """Return exactly ``wide`` values: the mean of those that fall on each place, or the nearest one."""
    spread = []
    for x in range(width):
        first = x * len(values) // width
        last = max(first + 1, (x + 1) * len(values) // width)
        spread.append(sum(values[first:last]) / (last - first))
    return spread


def picture(path: Path, losses: Sequence[float], kill: int | None, title: str) -> None:
    """Write the curve as a PNG.

    Raises:
        OSError: it cannot be written there.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#0a7d8c", linewidth=1.2, label="loss of each step's batch")
    if kill is not None:
        axes.axvline(
            kill, color="#c0392b", linestyle="--", linewidth=1.2, label=f"server killed (kill -9), step {kill}"
        )
    axes.set_xlim(1, len(losses))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (cross-entropy)")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
