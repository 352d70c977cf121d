"""Draws progress bars for long transfers. rich is imported only when there is one to draw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

LARGE_BYTES = 64 * 1024 * 1024  # bytes from which a bar is drawn
Advance = Callable[[int], None]
Meter = Callable[[int, int], AbstractContextManager[tuple[Advance, Advance]]]


def meter(show: bool | None) -> Meter:
    """Return a meter of exchanges of (bytes sent, bytes received): bars on stderr, or nothing.

    Args:
        show: True and False are obeyed; None draws large transfers where stderr is a terminal.

    """

    def measure(up: int, down: int) -> AbstractContextManager[tuple[Advance, Advance]]:
        large = max(up, down)
        draw = large > 0 if show else show is None and large >= LARGE_BYTES and sys.stderr.isatty()
        return _bars(up, down) if draw else nullcontext((_nothing, _nothing))

    return measure


def _nothing(_nbytes: int) -> None:
    return


@contextmanager
def _bars(up: int, down: int) -> Iterator[tuple[Advance, Advance]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=console.is_terminal) as progress:
        sending = progress.add_task("sending", total=up, visible=up > 0)
        receiving = progress.add_task("receiving", total=down, visible=down > 0)
        yield lambda count: progress.advance(sending, count), lambda count: progress.advance(receiving, count)
