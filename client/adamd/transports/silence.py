"""Silence: warns once that a server is slow to answer, and says when its answer came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adamd.log import LOG
from adamd.sansio.operations import WAITING, Operation, describe

PATIENCE = 5.0  # seconds without a byte before the first warning


class Silence:
    """Warns of one client's slow server.

    If an answer follows a warning, the patience becomes twice what that answer took. So a server that is always slow
    causes one warning, and not one at every step.

    Args:
        url: the server.
        clock: monotonic seconds.

    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url = url
        self._clock = clock
        self._patience = PATIENCE

    @contextmanager
    def attempt(self, operation: Operation) -> Iterator[Attempt]:
        """Surround an attempt."""
        patience = float("inf") if isinstance(operation, WAITING) else self._patience  # silent by its nature
        attempt = Attempt(patience, lambda left: self._warn(operation, patience, left))
        began = self._clock()
        yield attempt
        if attempt.warned:
            took = self._clock() - began
            self._patience = max(self._patience, 2 * took)
            LOG.warning("%s: %s: the server answered, after %.0f s", self._url, describe(operation), took)

    def _warn(self, operation: Operation, waited: float, remaining: float) -> None:
        words = "%s: %s: no answer for %.0f s; it is waited for %.0f s more"
        LOG.warning(words, self._url, describe(operation), waited, remaining)


class Attempt:
    """One attempt, with at most one warning.

    Attributes:
        patience: seconds without a byte before the warning.
        warned: the warning was given.

    """

    def __init__(self, patience: float, warn: Callable[[float], None]) -> None:
        self.patience = patience
        self.warned = False
        self._warn = warn

    def warn(self, remaining: float) -> None:
        """Warn that nothing came for ``patience`` seconds; ``left`` are those until the attempt is given up."""
        self.warned = True
        self._warn(remaining)
