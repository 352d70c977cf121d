"""Converts operations to gRPC messages, and checked messages to results. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from adamd import errors
from adamd.errors import AdamdError, TransportError
from adamd.sansio.arrays import pieces
from adamd.sansio.operations import (
    OTHER_PROTOCOL,
    Body,
    Create,
    ListSessions,
    Page,
    ReadParameters,
    Stall,
    Standing,
    Step,
    Stepped,
    Update,
    bad_answer,
    body_of,
    is_reference,
    reference,
)
from adamd.wire.channel import ERROR_DOMAIN, PIECE, PROBLEM
from adamd.wire.dtypes import widen
from adamd.wire.layout import Tensor, checked
from adamd.wire.pieces import Data
from adamd.wire.protobuf_tables import (
    DTYPE_NAMES,
    DTYPES,
    DURABILITIES,
    DURABILITY_NAMES,
    ENCODINGS,
    layout_message,
    plain,
    struct,
)
from adamd.wire.v1 import adamd_pb2 as pb

INLINE = 1024 * 1024  # bytes of parameters that travel inside a creation
_CHAIN = re.compile(r"[0-9a-f]{64}")


# -- out


@contextmanager
def sayable(what: str) -> Iterator[None]:
    """Surround the making of a message.

    Raises:
        InvalidRequest: a value that no message can hold: another type, a number out of range, no Unicode.

    """
    try:
        yield
    except AdamdError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.InvalidRequest(f"{what} cannot be said over gRPC: {error}") from None


@sayable("what the session is to be")
def creation(operation: Create) -> tuple[pb.CreateSessionRequest, Body | None]:
    """Return the request, and the parameters that have to follow it because they are many."""
    parameters, document = operation.parameters, operation.document
    request = pb.CreateSessionRequest(
        name=document["name"] or "",
        optimizer=struct(document["optimizer"]),
        layout=layout_message(parameters.layout),
        dtype=DTYPES[parameters.dtype],
        durability=_number_of(DURABILITIES, document["durability"], "durability"),
        labels=document["labels"],
        idempotency_key=operation.key,
    )
    if "rounds" in document:
        request.rounds.CopyFrom(struct(document["rounds"]))
    body = body_of(parameters.parts, parameters.layout)
    dtype, views, _ = flat(body)
    if sum(view.nbytes for view in views) > INLINE:
        return request, body
    request.parameters = b"".join(views)
    request.parameters_dtype = DTYPES[dtype or parameters.dtype]
    return request, None


@sayable("the settings or labels")
def update(operation: Update) -> pb.UpdateSessionRequest:
    """Return the request."""
    request = pb.UpdateSessionRequest(session=reference(operation.ref))
    if operation.optimizer is not None:
        request.optimizer.CopyFrom(struct(operation.optimizer))
    if operation.labels is not None:
        request.labels.CopyFrom(pb.Labels(labels=operation.labels))
    if operation.rounds is not None:
        request.rounds.CopyFrom(struct(operation.rounds))
    return request


@sayable("the page")
def listing(operation: ListSessions) -> pb.ListSessionsRequest:
    """Return the request."""
    return pb.ListSessionsRequest(page_size=operation.size, page_token=operation.token or "")


@sayable("the step's settings or metrics")
def step(operation: Step) -> tuple[pb.StepHeader, tuple[memoryview, ...]]:
    """Return a step's header and its body."""
    dtype, views, names = flat(operation.body)
    header = pb.StepHeader(
        session=reference(operation.ref),
        step=operation.number or 0,
        if_match=operation.chain or "",
        idempotency_key=operation.key or "",
        nbytes=sum(view.nbytes for view in views),
        encoding=_number_of(ENCODINGS, operation.body.encoding, "encoding"),
        tensors=names,
        metrics={name: value for name, value in operation.metrics.items() if value is not None},
    )
    if dtype is not None:
        header.dtype = DTYPES[dtype]
    if operation.base is not None:
        base, chain, most = operation.base
        header.base.CopyFrom(pb.Base(step=base, chain=chain, most=most))
    if operation.settings:
        header.settings.CopyFrom(struct(operation.settings))
    if operation.rounded:
        header.answer_dtype = DTYPES[operation.dtype]
    return header, views


def flat(body: Body) -> tuple[str | None, tuple[memoryview, ...], tuple[str, ...]]:
    """Return a body's dtype, its bytes, and the tensors that it has if some are left out.

    A message has one dtype; parts that come in several are widened, which loses nothing.
    """
    if not body.parts:
        return body.dtype, body.pieces, ()
    kinds = {item.dtype for item in body.parts}
    kind = kinds.pop() if len(kinds) == 1 else "float64" if "float64" in kinds else "float32"
    arrays = [item.array if item.dtype == kind else widen(item.array, item.dtype, kind) for item in body.parts]
    return kind, pieces(arrays), () if body.complete else tuple(item.name for item in body.parts)


def cut(views: Iterable[memoryview]) -> Iterator[Data]:
    """Yield bytes in pieces of one size; what is large is not copied."""
    parts: list[memoryview] = []
    room = PIECE
    for view in views:
        offset = 0
        while offset < view.nbytes:
            piece = view[offset : offset + room]
            parts.append(piece)
            offset, room = offset + piece.nbytes, room - piece.nbytes
            if room == 0:
                yield parts[0] if len(parts) == 1 else b"".join(parts)
                parts, room = [], PIECE
    if parts:
        yield parts[0] if len(parts) == 1 else b"".join(parts)


def _number_of(numbers: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in numbers:
        raise errors.InvalidRequest(f"{what} is {name!r}; wanted {' or '.join(numbers)}")
    return numbers[name]


# -- in


def standing(session: pb.Session) -> Standing:
    """Read a session.

    Raises:
        TransportError: it is none.

    """
    try:
        tensors = tuple(Tensor(t.name, tuple(t.shape)) for t in session.layout.tensors)
        layout = checked(tensors, vector=session.layout.vector)
        document = _document(session) | {"layout": layout.to_json(), "vector": layout.vector}
    except (AdamdError, KeyError, ValueError) as error:
        raise bad_answer(f"a message that is no session ({type(error).__name__}: {error})") from None
    if not is_reference(session.id) or _CHAIN.fullmatch(session.chain) is None:  # every step would be sent with them
        raise bad_answer("a session without an id or a chain")
    if session.step > errors.LAST_STEP or not session.name.isprintable():
        raise bad_answer("a session whose step or name no session has")
    return Standing(
        id=session.id,
        name=document["name"],
        step=session.step,
        chain=session.chain,
        layout=layout,
        dtype=document["dtype"],
        settings=document["optimizer"],
        diverged=session.diverged,
        document=document,
        stop=session.stop or None,
    )


def _document(session: pb.Session) -> dict[str, Any]:
    """Return the document that HTTP has, without the layout."""
    rounds = {"rounds": whole(plain(session.rounds))} if session.HasField("rounds") else {}
    if session.HasField("round"):
        rounds["round"] = {name: getattr(session.round, name) for name in ("round", "received", "wanted")}
    return {
        "id": session.id,
        "name": session.name or None,
        "step": session.step,
        "chain": session.chain,
        "incarnation": session.incarnation,
        "optimizer": plain(session.optimizer),
        "lr": session.lr,
        "settings_revision": session.settings_revision,
        "dtype": DTYPE_NAMES[session.dtype],
        "durability": DURABILITY_NAMES[session.durability],
        "labels": dict(session.labels),
        "created_at": session.created_at.ToMicroseconds() / 1e6,
        "parameters_missing": session.parameters_missing,
        "diverged": session.diverged,
        "stop": session.stop or None,
        "warnings": [{"code": stall.code, "detail": stall.detail, "eps": _eps(stall)} for stall in session.warnings],
        "progress": plain(session.progress),
        "snapshot_step": session.snapshot_step if session.HasField("snapshot_step") else None,
        **rounds,
    }


def whole(value: Any) -> Any:
    """Return JSON's values with whole numbers as integers: a Struct has doubles only, and ``range(3.0)`` fails."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


def page(response: pb.ListSessionsResponse) -> Page:
    """Read a page of the list, each session in short, as HTTP tells it."""
    try:
        items = [_short(session) for session in response.sessions]
    except (KeyError, ValueError) as error:
        raise bad_answer(f"a page that is no list of sessions ({error})") from None
    return Page(items, response.next_page_token or None)


def _short(session: pb.Session) -> dict[str, Any]:
    if session.damaged:
        nothing = dict.fromkeys(("name", "step", "optimizer", "parameters", "dtype", "durability"))
        created_at = session.created_at.ToMicroseconds() / 1e6
        return {"id": session.id, **nothing, "labels": {}, "created_at": created_at, "damaged": session.damaged}
    document = _document(session)
    members = {name: document[name] for name in ("id", "name", "step", "dtype", "durability", "labels", "created_at")}
    return members | {"optimizer": document["optimizer"].get("name"), "parameters": session.elements}


def sight(response: pb.WatchSessionResponse) -> dict[str, Any]:
    """Read where a watched session stands."""
    standing = response.standing
    settings = plain(response.optimizer)
    document = {"step": standing.step, "chain": standing.chain, "settings": settings}
    document["lr"] = response.lr if response.HasField("lr") else settings.get("lr")  # an older server's is the base
    return document | {"diverged": standing.diverged, "metrics": dict(response.metrics)}


def info(response: pb.GetServerInfoResponse) -> dict[str, Any]:
    """Read what a server says of itself, in HTTP's words."""
    return {
        "version": response.version,
        "replica": response.replica,
        "numerics": response.numerics,
        "store": response.store,
        "limits": {"body_bytes": response.max_body_bytes, "in_flight_bytes": response.max_in_flight_bytes},
        "grpc": {"message_bytes": response.max_message_bytes, "calls": response.max_concurrent_calls},
        "dtypes": list(response.dtypes),
        "optimizers": list(response.optimizers),
        "encodings": list(response.encodings),
        "settings": plain(response.settings),
        "device": response.device,
    }


def stepped(head: pb.Standing | None, operation: Step | ReadParameters) -> Stepped:
    """Check the head of an answer with parameters, before any of them is taken.

    Raises:
        TransportError: it is not the answer to what was asked.

    """
    if head is None:
        raise bad_answer("parameters that do not say where they stand")
    room = sum(view.nbytes for view in operation.into)
    if head.dtype != DTYPES[operation.dtype]:
        raise bad_answer(f"{DTYPE_NAMES.get(head.dtype, 'unknown')} parameters; wanted {operation.dtype}")
    if head.nbytes != room:
        raise bad_answer(f"{head.nbytes} bytes of parameters; wanted {room}")
    if isinstance(operation, Step) and operation.number not in (None, head.step):
        raise bad_answer(f"step {head.step}; wanted {operation.number}")
    if _CHAIN.fullmatch(head.chain) is None or head.step > errors.LAST_STEP:
        raise bad_answer("no chain or step of a session")
    stalls = tuple(Stall(errors.clean(stall.code[:80]), _eps(stall)) for stall in head.warnings)
    stop = errors.clean(head.stop[:80]) or None
    return Stepped(head.step, head.chain, head.replayed, head.diverged, head.overflowed, stop, stalls)


def _eps(warning: pb.Stall) -> float | None:
    return warning.eps if warning.HasField("eps") else None


# -- errors


def refusal(status: str, words: str, details: bytes | None) -> AdamdError:
    """Return the error of an ended call.

    Args:
        status: gRPC's, by name.
        words: what the other end, or gRPC itself, says.
        details: google.rpc.Status, as ``grpc-status-details-bin`` brings it.

    """
    error = _problem(details) if details else None
    if error is not None:
        return error
    words = errors.clean(words)
    if "larger than max" in words:  # gRPC's own, at either end: no other attempt makes it shorter
        return errors.TooLarge(f"{status}: {words[:200]}")
    foreign = _FOREIGN.get(status)
    if foreign is not None:
        return foreign(f"{status}: {words[:200]}")
    if "http1.x server" in words:
        return TransportError("the other side speaks HTTP/1", phase=OTHER_PROTOCOL, permanent=True)
    for sign, message in _HOPELESS.items():
        if sign in words:
            return TransportError(message, phase="connect", permanent=True)
    if status == "DEADLINE_EXCEEDED":
        return TransportError("no answer came within the time that one may take", phase="timeout")
    if status in ("UNAVAILABLE", "CANCELLED") or any(
        sign in words for sign in ("RST_STREAM", "Stream removed", "GOAWAY")
    ):
        if any(sign in words.lower() for sign in _UNCONNECTED):
            message = f"no connection: {words[:300]}; is the server running? `adamd serve` starts one"
            return TransportError(message, phase="connect")
        return TransportError(f"the connection ended before the answer did: {words[:300]}", phase="silent")
    return bad_answer(f"the gRPC status {status}: {words[:200]!r}")


_HOPELESS = {
    "WRONG_VERSION_NUMBER": "TLS is not spoken there; use grpc://, or the port that has it",
    "CERTIFICATE_VERIFY_FAILED": "untrusted certificate; SSL_CERT_FILE may name your authority's",
}
_UNCONNECTED = ("failed to connect", "connections to all backends", "resolv", "handshake")
_ENDED = ("RST_STREAM", "Stream removed", "GOAWAY")  # how gRPC tells of a connection that ended, by other statuses
_FOREIGN: Mapping[str, type[AdamdError]] = {
    "RESOURCE_EXHAUSTED": errors.Busy,
    "UNAUTHENTICATED": errors.RequestError,
    "PERMISSION_DENIED": errors.RequestError,
    "INVALID_ARGUMENT": errors.InvalidRequest,
}


def _problem(details: bytes) -> AdamdError | None:
    """Read the problem document among an error's details; None where there is none."""
    info, retry_after = ErrorInfo(), None
    error: AdamdError | None = None
    try:
        for item in Status.FromString(details).details:
            if item.Is(RetryInfo.DESCRIPTOR):
                retry_after = max(0.0, RetryInfo.FromString(item.value).retry_delay.ToMicroseconds() / 1e6)
            elif item.Is(ErrorInfo.DESCRIPTOR):
                info = ErrorInfo.FromString(item.value)
        document = json.loads(info.metadata[PROBLEM]) if info.domain == ERROR_DOMAIN else None
        if isinstance(document, dict):
            status = document.get("status")
            error = errors.from_problem(document, status if isinstance(status, int) else 500, retry_after)
    except (DecodeError, ValueError, RecursionError):
        return None
    return error
