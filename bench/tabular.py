"""A table for a terminal and for a page."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table as Shown


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows of text; the first column is words, the others are figures."""

    head: list[str]
    body: list[list[str]]

    def shown(self) -> Shown:
        """Return it for a terminal."""
        made = Shown()
        for number, name in enumerate(self.head):
            made.add_column(name, justify="right" if number else "left", overflow="fold")
        for cells in self.body:
            made.add_row(*cells)
        return made

    def markdown(self) -> str:
        """Return it for a page."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.body))


def ms(value: float) -> str:
    """Return milliseconds with as many digits as they are worth."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
