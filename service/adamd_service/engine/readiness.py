"""Asks the store whether this process can serve, at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

FRESH = 1.0  # seconds for which an answer counts, however many ask
LIFE = 30.0  # seconds that a sign of life lasts


class Readiness:
    """Asks ``probe`` once for all concurrent callers. Used on the event loop only.

    Args:
        probe: raises where sessions cannot be served.
        clock: tells the time in seconds.

    """

    def __init__(self, probe: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._asking: asyncio.Task[tuple[float, Exception | None]] | None = None

    async def check(self) -> None:
        """Raise what the last probe raised, if it is younger than `FRESH`; else what a new one raises."""
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - asking.result()[0] >= FRESH):
            asking = self._asking = asyncio.create_task(self._probed())
        _, error = await asyncio.shield(asking)
        if error is not None:
            raise error.with_traceback(None)

    async def _probed(self) -> tuple[float, Exception | None]:
        try:
            await self._probe()
        except Exception as error:  # raised in every caller
            return self._clock(), error
        return self._clock(), None
