"""Warns once that a server takes its time over a request that it has, and says when its answer came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adamd.sansio.operations import Operation, Watch, said

LOG = logging.getLogger("adamd")  # on stderr where nobody configured it
PATIENCE = 5.0  # seconds without a byte before the first warning


class Silence:
    """What one client tells of its servers' silence.

    Each warning that an answer followed makes it more patient: twice as long as that answer took. So a server that is
    always slow is told once, and not at every step.

    Args:
        url: the server.
        clock: monotonic seconds.

    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url = url
        self._clock = clock
        self._patience = PATIENCE

    @contextmanager
    def over(self, operation: Operation) -> Iterator[Attempt]:
        """Surround an attempt."""
        patience = float("inf") if isinstance(operation, Watch) else self._patience  # a watch is silent by its nature
        attempt = Attempt(patience, lambda left: self._warn(operation, patience, left))
        began = self._clock()
        yield attempt
        if attempt.told:
            took = self._clock() - began
            self._patience = max(self._patience, 2 * took)
            LOG.warning("%s: %s: the server answered, after %.0f s", self._url, said(operation), took)

    def _warn(self, operation: Operation, waited: float, left: float) -> None:
        words = "%s: %s: no answer for %.0f s; it is waited for %.0f s more"
        LOG.warning(words, self._url, said(operation), waited, left)


class Attempt:
    """One attempt, which is told at most once.

    Attributes:
        patience: seconds without a byte before it is told.
        told: it was.

    """

    def __init__(self, patience: float, warn: Callable[[float], None]) -> None:
        self.patience = patience
        self.told = False
        self._warn = warn

    def tell(self, left: float) -> None:
        """Warn that nothing came for ``patience`` seconds; ``left`` are those until the attempt is given up."""
        self.told = True
        self._warn(left)
