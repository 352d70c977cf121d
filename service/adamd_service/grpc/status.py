"""Converts errors to gRPC statuses, with the problem document in the details."""

from __future__ import annotations

import json

from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from adamd import errors
from adamd.errors import AdamdError
from adamd.wire.channel import ERROR_DOMAIN, PROBLEM
from adamd_service.codecs.documents import problem_document

LONGEST = 1000  # bytes of an error's words: they travel three times, in headers that may have 8 KiB together

# By class; a class that is not here has its base's.
STATUS: dict[type[AdamdError], StatusCode] = {
    AdamdError: StatusCode.INTERNAL,
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.OriginNotAllowed: StatusCode.PERMISSION_DENIED,  # HTTP's alone, as the next
    errors.HostNotAllowed: StatusCode.PERMISSION_DENIED,
    errors.TooLarge: StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself says of a message
    errors.UploadTimeout: StatusCode.DEADLINE_EXCEEDED,
    errors.SessionError: StatusCode.FAILED_PRECONDITION,
    errors.UnknownSession: StatusCode.NOT_FOUND,
    errors.SessionDeleted: StatusCode.NOT_FOUND,
    errors.SessionExists: StatusCode.ALREADY_EXISTS,
    errors.StepConflict: StatusCode.ABORTED,
    errors.StepSuperseded: StatusCode.ABORTED,
    errors.SettingsConflict: StatusCode.ABORTED,
    errors.NotSelected: StatusCode.PERMISSION_DENIED,
    errors.ContributionConflict: StatusCode.ABORTED,
    errors.RoundClosed: StatusCode.ABORTED,
    errors.UnknownRound: StatusCode.NOT_FOUND,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Busy: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeviceFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.InternalError: StatusCode.INTERNAL,
    errors.Damaged: StatusCode.DATA_LOSS,
    errors.TransportError: StatusCode.UNAVAILABLE,  # the SDK's own
}


def status_of(error: AdamdError) -> StatusCode:
    """Return the status that carries an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def rich(error: AdamdError) -> Status:
    """Return an error as google.rpc.Status: its code and its problem document, and when to try again."""
    words = _cut(error.detail)
    document = problem_document(error, len(words)) | {"detail": words}
    status = Status(code=Code.Value(status_of(error).name), message=words)
    info = ErrorInfo(reason=error.code.upper(), domain=ERROR_DOMAIN)
    info.metadata[PROBLEM] = json.dumps(document, ensure_ascii=False, allow_nan=False)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMicroseconds(round(error.retry_after * 1e6))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def _cut(words: str) -> str:
    """Return at most `LONGEST` bytes of UTF-8, whole characters."""
    raw = words.encode(errors="backslashreplace")
    return raw.decode() if len(raw) <= LONGEST else f"{raw[:LONGEST].decode(errors='ignore')}…"
