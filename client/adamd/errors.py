"""The error tree. One code, one class, one HTTP status; the service raises them, the SDK raises them again.

AdamdError
├── RequestError            what was sent is wrong; sending it again will not help
│   ├── InvalidRequest      invalid_request      422   a field is missing, unknown or out of range
│   ├── MalformedBody       malformed_body       400   the body is not what its media type says
│   ├── WrongLength         wrong_length         422   too few or too many bytes
│   ├── WrongLayout         wrong_layout         422   names or shapes do not match the session
│   ├── WrongDtype          wrong_dtype          422   the session cannot take this dtype exactly
│   ├── BadGradient         bad_gradient         422   NaN, infinity, or a square that overflows
│   ├── InvalidSettings     invalid_settings     422   lr, betas, … out of range, or an unknown setting
│   ├── InvalidState        invalid_state        422   a state to restore that no optimizer could have
│   ├── IdempotencyMismatch idempotency_mismatch 422   the same Idempotency-Key with another request
│   ├── MediaType           unsupported_media_type 415
│   ├── NotAcceptable       not_acceptable       406
│   ├── LengthRequired      length_required      411
│   ├── TooLarge            too_large            413
│   ├── UploadTimeout       upload_timeout       408
│   ├── OriginNotAllowed    origin_not_allowed   403   a web page that --cors-origin does not name
│   └── HostNotAllowed      host_not_allowed     421   the server does not answer to this name
├── SessionError            the session cannot do this now
│   ├── UnknownSession      unknown_session      404
│   ├── SessionDeleted      session_deleted      410
│   ├── SessionExists       session_exists       409
│   ├── StepConflict        step_conflict        409   this step has another gradient
│   ├── StepSuperseded      step_superseded      409   the session is further on
│   ├── StepGap             step_gap             409   the session is not there yet
│   ├── ParametersMissing   parameters_missing   409
│   ├── ParametersFixed     parameters_fixed     409   parameters can be set only before step 1
│   ├── SettingsConflict    settings_conflict    409   someone else changed the session first; try again
│   ├── Diverged            diverged             409   a parameter is no longer finite
│   ├── HistoryLost         history_lost         412   the store went back, or this is another history
│   ├── Moved               moved                412   it is no longer where If-Match says (PATCH, DELETE)
│   ├── RoundsOnly          rounds_only          409   a plain step; this session takes contributions to rounds
│   ├── NoRounds            no_rounds            409   a contribution; this session takes plain steps
│   ├── NotSelected         not_selected         403   this round asks other clients
│   ├── ContributionConflict contribution_conflict 409 the client has sent another one to this round
│   ├── RoundClosed         round_closed         409   the session is further on
│   ├── TooFewContributions too_few_contributions 409  a round is closed with one contribution at least
│   ├── PrivacySpent        privacy_spent        409   another round would pass max_epsilon
│   ├── UnknownRound        unknown_round        404   not opened yet, or no longer kept
│   └── WrongReplica        wrong_replica        421   a memory session lives in another process
├── Unavailable             unavailable          503   try again; the SDK does, by itself
│   ├── Busy                busy                 429
│   ├── DeviceFull          device_full          503   states in use fill the GPU
│   ├── ShuttingDown        shutting_down        503
│   ├── StoreUnavailable    store_unavailable    503
│   └── StoreFull           store_full           503
├── InternalError           internal_error       500
│   └── Damaged             damaged              500   what the store holds of this session is not what was written
└── TransportError          (SDK only) no answer: refused, reset, timed out
    └── RetriesExhausted

Each is the built-in kind as well that a caller would catch: RequestError a ValueError, WrongDtype a TypeError too,
UnknownSession, SessionDeleted and UnknownRound a LookupError, NotSelected a PermissionError, TransportError a
ConnectionError, RetriesExhausted a TimeoutError too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

CODES: dict[str, type[AdamdError]] = {}


class AdamdError(Exception):
    """Anything that adamd refuses or cannot do.

    Attributes:
        detail: what came, what was wanted, and what to do, in a sentence or two.
        code: stable, for programs.
        status: the HTTP status that carries it.
        step: the session's current step, where a session is known.
        retry_after: seconds after which trying again makes sense, where it does.
        extra: further members of the problem document (RFC 9457, section 3.2).

    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str,
        *,
        step: int | None = None,
        retry_after: float | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.step = step
        self.retry_after = retry_after
        self.extra = extra

    def reword(self, detail: str) -> None:
        """Say it in other words; what programs read stays."""
        self.args, self.detail = (detail,), detail

    def __init_subclass__(cls) -> None:
        """Register the class under its own code, so that an answer finds it again."""
        if "code" in cls.__dict__:
            CODES[cls.code] = cls

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem document."""
        document: dict[str, Any] = {
            "type": f"urn:adamd:problem:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.step is not None:
            document["step"] = self.step
        return document | self.extra


_OWN = ("type", "title", "status", "code", "detail", "step")
MOST_WORDS = 4000  # characters of a server's sentence
LAST_STEP = 2**63 - 1


def clean(words: str) -> str:
    """Return another program's words without what a terminal, or a reader, would take for more than words."""
    if words.isprintable() and len(words) <= MOST_WORDS:
        return words
    return "".join(c if c.isprintable() else " " for c in words[:MOST_WORDS])


def from_problem(
    document: Mapping[str, Any], status: int, retry_after: float | None = None, *, ours: bool = False
) -> AdamdError:
    """Turn a problem document back into the error that it came from. Whatever its members are, it is an error.

    ``ours``: an SDK wrote it, not a server, so it may be a failure of the transport.
    """
    code = document.get("code")
    kind = CODES.get(code) if isinstance(code, str) else None
    if kind is None or (issubclass(kind, TransportError) and not ours):  # that is never an answer
        kind = _FOREIGN.get(status, AdamdError)
    step = document.get("step")
    valid = type(step) is int and 0 <= step <= LAST_STEP
    error = kind(
        clean(str(document.get("detail", f"the server answered {status}"))),
        step=step if valid else None,
        retry_after=retry_after,
    )
    error.extra |= {
        str(key): clean(value) if isinstance(value, str) else value
        for key, value in document.items()
        if key not in _OWN
    }
    return error


class RequestError(AdamdError, ValueError):
    """What was sent is wrong; sending it again will not help."""

    status = 422


class InvalidRequest(RequestError):
    code = "invalid_request"


class MalformedBody(RequestError):
    code, status = "malformed_body", 400


class WrongLength(RequestError):
    code = "wrong_length"


class WrongLayout(RequestError):
    code = "wrong_layout"


class WrongDtype(RequestError, TypeError):
    code = "wrong_dtype"


class BadGradient(RequestError):
    """NaN, infinity, or a magnitude whose square overflows.

    ``extra['index']`` is the first one's index among all that were sent. The SDK adds ``tensor``, its name (not where
    the session is one array), and ``place``, the element's index in it.
    """

    code = "bad_gradient"


class InvalidSettings(RequestError):
    code = "invalid_settings"


class InvalidState(RequestError):
    code = "invalid_state"


class IdempotencyMismatch(RequestError):
    code = "idempotency_mismatch"


class MediaType(RequestError):
    code, status = "unsupported_media_type", 415


class NotAcceptable(RequestError):
    code, status = "not_acceptable", 406


class LengthRequired(RequestError):
    code, status = "length_required", 411


class TooLarge(RequestError):
    code, status = "too_large", 413


class UploadTimeout(RequestError):
    code, status = "upload_timeout", 408


class OriginNotAllowed(RequestError):
    code, status = "origin_not_allowed", 403


class HostNotAllowed(RequestError):
    code, status = "host_not_allowed", 421


class SessionError(AdamdError):
    """The session cannot do this now."""

    status = 409


class UnknownSession(SessionError, LookupError):
    code, status = "unknown_session", 404


class SessionDeleted(SessionError, LookupError):
    code, status = "session_deleted", 410


class SessionExists(SessionError):
    code = "session_exists"


class StepConflict(SessionError):
    code = "step_conflict"


class StepSuperseded(SessionError):
    """``extra['applied']`` is true, false or "unknown": whether this very gradient is part of the history."""

    code = "step_superseded"


class StepGap(SessionError):
    code = "step_gap"


class ParametersMissing(SessionError):
    code = "parameters_missing"


class ParametersFixed(SessionError):
    code = "parameters_fixed"


class SettingsConflict(SessionError):
    code = "settings_conflict"


class Diverged(SessionError):
    code = "diverged"


class HistoryLost(SessionError):
    """The history that the client knows is not the one in the store. ``step`` is the one that survives."""

    code, status = "history_lost", 412


class Moved(SessionError):
    """The session is no longer where the request says that it should be. ``step`` is where it is; nothing changed."""

    code, status = "moved", 412


class WrongReplica(SessionError):
    code, status = "wrong_replica", 421


class RoundsOnly(SessionError):
    code = "rounds_only"


class NoRounds(SessionError):
    code = "no_rounds"


class NotSelected(SessionError, PermissionError):
    """The round's cohort was drawn without this client. The next round may ask it."""

    code, status = "not_selected", 403


class ContributionConflict(SessionError):
    """The client has contributed to this round already, and with other bytes. The first ones stay."""

    code = "contribution_conflict"


class RoundClosed(SessionError):
    """The contribution came too late.

    ``extra["round"]`` is the session's current round; ``extra["counted"]`` says whether an earlier contribution of
    this client counted in the closed one: true, false, or None where that is no longer known.
    """

    code = "round_closed"


class TooFewContributions(SessionError):
    code = "too_few_contributions"


class PrivacySpent(SessionError):
    """One more round would spend more than the ``max_epsilon`` of the session's privacy."""

    code = "privacy_spent"


class UnknownRound(SessionError, LookupError):
    code, status = "unknown_round", 404


class Unavailable(AdamdError):
    """Not now. Trying again is safe and makes sense after ``retry_after`` seconds."""

    code, status = "unavailable", 503


class Busy(Unavailable):
    code, status = "busy", 429


class DeviceFull(Unavailable):
    code = "device_full"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class StoreFull(Unavailable):
    code = "store_full"


class InternalError(AdamdError):
    code = "internal_error"


class Damaged(InternalError):
    """What the store holds of this session is not what was written, or is missing for good. Trying again cannot help.

    Other sessions are not harmed.
    """

    code = "damaged"
    ADVICE: ClassVar[str] = "delete the session, and restore an export of it"


class TransportError(AdamdError, ConnectionError):
    """No answer came: the connection was refused, reset or timed out."""

    code, status = "transport_error", 0


class RetriesExhausted(TransportError, TimeoutError):
    """Every attempt failed; ``extra["last"]`` is the last failure."""

    code = "retries_exhausted"


# What a proxy says by these, without a code of ours.
_FOREIGN: Mapping[int, type[AdamdError]] = {
    408: Unavailable,
    429: Busy,
    502: Unavailable,
    503: StoreUnavailable,
    504: Unavailable,
}
