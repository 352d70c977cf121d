"""What the demos begin with: what they need is looked for, and a signal ends them as Ctrl-C does."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from adamd.demo import curve
from adamd.demo.server import NotStarted
from adamd.errors import AdamdError

INTERRUPTED = 130
EXPECTED = (AdamdError, NotStarted, OSError)  # told in a line
NEEDED = (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"))


def begun(
    console: Console,
    url: str | None,
    show: Callable[[Console, str | None], int],
) -> int:
    """Run a demo; return its exit status, which is 1 where it cannot run, and 130 where it was interrupted.

    Args:
        console: where the output goes.
        url: of a server that is there; None: the demo starts one.
        show: the demo.

    """
    lacking = [name for module, name in NEEDED if importlib.util.find_spec(module) is None]
    if url is None and importlib.util.find_spec("adamd_service") is None:
        lacking.append("the server")
    if lacking:
        console.print(f"adamd demo: {' and '.join(lacking)} missing; pip install 'adamd\\[demo]' brings all of it")
        return 1
    try:
        with _interrupted_by_signals():
            return show(console, url)
    except KeyboardInterrupt:
        console.print("\nstopped; the demo's server and its data are gone" if url is None else "\nstopped")
        return INTERRUPTED
    except EXPECTED as error:
        console.print(f"adamd demo: {error}", markup=False)
        return 1


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that the server and its data are removed too."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spinner(console: Console) -> str:
    """Return the name of a spinner that the console can show."""
    return "dots" if curve.drawable(console.encoding) else "line"
