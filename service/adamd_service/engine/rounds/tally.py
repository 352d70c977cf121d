"""Counts what happens to rounds in this process, for the metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from adamd.errors import AdamdError


class Tally:
    """Contributions by outcome, rounds closed by what closed them, and the time that aggregation took.

    Used on the event loop only.

    Attributes:
        contributions: how many were accepted, were duplicates, or were refused with a code of `adamd.errors`.
        closed: how many rounds this process closed, by "quorum", "deadline" or "hand".
        failed: how many began again because no step could be made of them, by the error's code.
        aggregations: how many it aggregated.
        aggregation_seconds: how long that took altogether.

    """

    def __init__(self) -> None:
        self.contributions = Counter[str]()
        self.closed = Counter[str]()
        self.failed = Counter[str]()
        self.aggregations = 0
        self.aggregation_seconds = 0.0

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count a contribution that is refused."""
        try:
            yield
        except AdamdError as error:
            self.contributions[error.code] += 1
            raise

    @contextmanager
    def aggregation(self) -> Iterator[None]:
        """Time one aggregation, whatever becomes of it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aggregations += 1
            self.aggregation_seconds += time.perf_counter() - began
