"""One call's way to an answer, as a generator: attempt, back off, honour ``Retry-After``, replay, give up.

No I/O, no sleep; the clock and the randomness are given. A shell (blocking or asyncio) drives it:

    yield Send(request, deadline)   the shell answers with the Response, or with the TransportError it met
    yield Wait(seconds)             the shell sleeps

Every request that goes in is safe to repeat: a step carries its number, a creation its Idempotency-Key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from adamd import errors
from adamd.errors import AdamdError, InvalidRequest, RetriesExhausted, TransportError
from adamd.wire.headers import JSON

RETRIED = frozenset({408, 429, 502, 503, 504})
MAX_DOCUMENT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeout:
    """How long to wait, in seconds; ``math.inf`` waits for ever.

    Attributes:
        connect: for one connection to be made.
        inactivity: without a byte sent or received.
        total: for a whole call, all of its attempts and pauses together.
        first: for a server that has never answered yet to come up; so a wrong address is told soon.

    """

    connect: float = 5.0
    inactivity: float = 60.0
    total: float = 300.0
    first: float = 10.0

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
class Request:
    """What is sent.

    Attributes:
        path: below the server's URL, quoted.
        body: buffers that are sent one after the other, uncopied.
        accept: the media type wanted.
        into: where the body of a 200 in that type goes: memory of exactly its length, or a file.
        limit: bytes of any other answer that are kept at most.
        expected: about how many bytes will come; only a progress bar wants to know.
        retry_codes: problem codes that are worth another attempt besides those of `RETRIED`.
        done_codes: problem codes that say, from the second attempt on, that an earlier one succeeded.

    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: tuple[memoryview, ...] = ()
    accept: str = JSON
    into: tuple[memoryview, ...] | BinaryIO | None = None
    limit: int = MAX_DOCUMENT
    expected: int = 0
    retry_codes: frozenset[str] = frozenset()
    done_codes: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """The body's length."""
        return sum(piece.nbytes for piece in self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """What came. Header names are in lower case; ``filled`` says that the body went to ``Request.into``."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray = b""
    filled: bool = False

    @property
    def media_type(self) -> str:
        """Content-Type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Send:
    """Send this, and give up at ``deadline`` (on the given clock)."""

    request: Request
    deadline: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep."""

    seconds: float


Steps = Generator[Send | Wait, Response | TransportError | None, Response]


def call(
    request: Request,
    timeout: Timeout,
    clock: Callable[[], float],
    jitter: Callable[[], float],
    *,
    known: bool = True,
    backoff: Backoff | None = None,
) -> Steps:
    """Bring one request to its answer.

    Args:
        request: safe to repeat.
        timeout: the budget.
        clock: monotonic seconds.
        jitter: uniform in [0, 1).
        known: this server has answered before, so that a refused connection means that it restarts.
        backoff: the pauses.

    Raises:
        RetriesExhausted: the budget is spent; ``__cause__`` is the last failure.
        TransportError: one that no attempt can mend.
        AdamdError: the server's refusal, by its code.

    """
    started, pauses, attempt = clock(), backoff or Backoff(), 0
    deadline = started + timeout.total
    while True:
        attempt += 1
        outcome = yield Send(request, deadline)
        assert outcome is not None
        known = known or isinstance(outcome, Response) or outcome.extra.get("phase") != "connect"
        error = failure(outcome)
        if error is None or (attempt > 1 and error.code in request.done_codes):
            assert isinstance(outcome, Response)
            return outcome
        if not _worth_another(outcome, error, request):
            raise error
        pause = pauses.pause(attempt, jitter()) + (error.retry_after or 0.0)
        end = deadline if known else min(deadline, started + timeout.first)
        if clock() + pause >= end:
            raise _exhausted(request, attempt, clock() - started, error) from error
        yield Wait(pause)


def failure(outcome: Response | TransportError) -> AdamdError | None:
    """Return what is wrong with an outcome; None for a success."""
    if isinstance(outcome, TransportError):
        return outcome
    if 200 <= outcome.status < 300:
        return None
    retry_after = _retry_after(outcome.headers)
    try:
        document = json.loads(bytes(outcome.body)) if outcome.media_type.endswith("json") else None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and "code" in document:
        return errors.from_problem(document, outcome.status, retry_after)
    return errors.from_problem({"detail": _foreign(outcome)}, outcome.status, retry_after)


def _foreign(response: Response) -> str:
    """Describe an answer that is no problem document: it comes from a proxy, or from no adamd at all."""
    if 300 <= response.status < 400 and "location" in response.headers:
        return f"the address has moved to {response.headers['location'][:200]}; connect to that one"
    said = bytes(response.body[:200]).decode("utf-8", "replace").strip()
    kind = response.media_type or "no media type"
    return f"status {response.status} with {kind}, which is not adamd's: {said!r}; check the URL and the proxies"


def _worth_another(outcome: Response | TransportError, error: AdamdError, request: Request) -> bool:
    if isinstance(outcome, TransportError):
        return not outcome.extra.get("permanent", False)
    return outcome.status in RETRIED or error.code in request.retry_codes


def _exhausted(request: Request, attempt: int, elapsed: float, error: AdamdError) -> RetriesExhausted:
    times = "1 attempt" if attempt == 1 else f"{attempt} attempts"
    return RetriesExhausted(
        f"{request.method} {request.path}: given up after {times} in {elapsed:.1f} s; the last: {error.detail}",
        step=error.step,
        retry_after=error.retry_after,
    )


def _retry_after(given: Mapping[str, str]) -> float | None:
    """Read Retry-After: seconds, or a date, which counts from the answer's own Date (there is no clock here)."""
    raw = given.get("retry-after")
    if raw is None:
        return None
    try:
        seconds = float(raw)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(raw) - parsedate_to_datetime(given["date"])).total_seconds()
        except (KeyError, ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def json_body(document: Any) -> tuple[memoryview, ...]:
    """Return a document as a request's body."""
    return (memoryview(json.dumps(document, allow_nan=False).encode()),)
