"""Retries one operation as a generator: attempts, pauses, replays, and gives up.

No I/O, no sleep, no protocol; the clock and the randomness are given. A shell (blocking or asyncio, over HTTP or gRPC)
drives it:

    yield Send(operation, deadline)   the shell answers with a Got, or with the AdamdError that the attempt ended in
    yield Wait(seconds)               the shell sleeps
    yield Tell(words)                 the shell logs a warning

Every operation that goes in is safe to repeat: a step carries its number, a creation its key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from adamd.errors import AdamdError, InvalidRequest, RetriesExhausted, TransportError, Unavailable, UploadTimeout
from adamd.sansio.operations import DONE, RETRIED, Operation, describe

QUIET = 3.0  # seconds without an answer before the user is told


@dataclass(frozen=True, slots=True)
class Timeout:
    """How long to wait, in seconds; ``math.inf`` waits for ever.

    Attributes:
        connect: for one connection to be made.
        inactivity: without a byte sent or received.
        total: for a whole call, all of its attempts and pauses together.
        first: for a server that has never answered yet to come up; so a wrong address is told soon.

    """

    __module__ = "adamd"  # pickles name the public place

    connect: float = 5.0
    inactivity: float = 60.0
    total: float = 300.0
    first: float = 10.0

    @classmethod
    def of(cls, given: Timeout | float | None) -> Timeout:
        """Return a Timeout; a number is the total."""
        if isinstance(given, Timeout):
            return given
        return cls() if given is None else cls(total=given)

    @property
    def longest_wait(self) -> float:
        """Seconds that a server may be asked to wait for something to happen: it is not to be taken for dead."""
        return min(25.0, self.inactivity / 2, self.total / 2)

    def __post_init__(self) -> None:
        """Refuse what no clock can count."""
        for name in ("connect", "inactivity", "total", "first"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise InvalidRequest(f"Timeout.{name} is {value!r}; wanted seconds, more than 0 (math.inf: for ever)")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses with full jitter: uniform in [0, first·2^(attempt-1)], from ``least`` to ``cap`` seconds."""

    first: float = 0.1
    cap: float = 5.0
    least: float = 0.01  # so that no luck makes a loop without a pause

    def pause(self, attempt: int, jitter: float) -> float:
        """Return the pause after ``attempt`` (from 1) failed; ``jitter`` is in [0, 1)."""
        return max(self.least, jitter * min(self.cap, self.first * 2.0 ** min(attempt - 1, 64)))


@dataclass(frozen=True, slots=True)
class Send:
    """Send it, and give up at ``deadline`` (on the given clock)."""

    operation: Operation
    deadline: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user, in a sentence, why nothing seems to happen."""

    words: str


@dataclass(frozen=True, slots=True)
class Got:
    """The result of a successful attempt."""

    result: Any


Attempts = Generator[Send | Wait | Tell, Got | AdamdError | None, Any]


def call(
    operation: Operation,
    timeout: Timeout,
    clock: Callable[[], float],
    jitter: Callable[[], float],
    *,
    answered: bool = True,
    backoff: Backoff | None = None,
) -> Attempts:
    """Bring one operation to its result.

    Args:
        operation: safe to repeat.
        timeout: the budget.
        clock: monotonic seconds.
        jitter: uniform in [0, 1).
        answered: this server has answered before, so that a refused connection means that it restarts.
        backoff: the pauses.

    Raises:
        RetriesExhausted: the budget is spent; ``extra["last"]`` is the last failure.
        TransportError: one that no attempt can mend.
        AdamdError: the server's refusal, by its code.

    """
    started, pauses, attempt = clock(), backoff or Backoff(), 0
    deadline = started + timeout.total
    away: float | None = None  # since when attempts fail
    warned = False
    while True:
        attempt += 1
        outcome = yield Send(operation, deadline)
        assert outcome is not None
        if isinstance(outcome, Got):
            if warned and away is not None:
                yield Tell(f"{describe(operation)}: the server answered again, after {clock() - away:.0f} s")
            return outcome.result
        if attempt > 1 and outcome.code in DONE.get(type(operation), ()):
            return None
        if not _worth_another(outcome, operation):
            raise outcome
        answered = answered or replied(outcome) or outcome.extra.get("phase") != "connect"
        pause = pauses.pause(attempt, jitter()) + (outcome.retry_after or 0.0)
        end = deadline if answered else min(deadline, started + timeout.first)
        if clock() + pause >= end:
            raise _exhausted(operation, attempt, clock() - started, outcome) from None  # its words are in it
        if away is None:
            away = clock()
        elif not warned and clock() - away >= QUIET:
            warned = True
            remaining = "until it answers" if math.isinf(end) else f"for {max(0.0, end - clock()):.0f} s more"
            yield Tell(
                f"{describe(operation)}: no answer for {clock() - away:.0f} s ({outcome.detail}); it is tried "
                f"again {remaining}"
            )
        yield Wait(pause)


def replied(outcome: Got | AdamdError) -> bool:
    """Say whether an attempt got an answer, be it a refusal."""
    return not isinstance(outcome, TransportError)


def _worth_another(error: AdamdError, operation: Operation) -> bool:
    if isinstance(error, TransportError):
        return not error.extra.get("permanent", False)
    return isinstance(error, Unavailable | UploadTimeout) or error.code in RETRIED.get(type(operation), ())


def _exhausted(operation: Operation, attempt: int, elapsed: float, error: AdamdError) -> RetriesExhausted:
    times = "1 attempt" if attempt == 1 else f"{attempt} attempts"
    return RetriesExhausted(
        f"{describe(operation)}: given up after {times} in {elapsed:.1f} s; the last: {error.detail}",
        step=error.step,
        retry_after=error.retry_after,
        last=error,
    )
