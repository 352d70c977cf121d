"""Converts operations to HTTP requests, and checked HTTP answers to results. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import quote

from adamd import errors
from adamd.errors import AdamdError
from adamd.sansio.arrays import TensorPart, pieces
from adamd.sansio.operations import (
    AskTask,
    Assignment,
    Body,
    CancelRound,
    CloseRound,
    Contribute,
    Create,
    Delete,
    Evaluate,
    Export,
    Info,
    ListRounds,
    ListSessions,
    Operation,
    Page,
    ReadParameters,
    ReadRound,
    Restore,
    SetParameters,
    Stall,
    Standing,
    Step,
    Stepped,
    Update,
    View,
    Watch,
    bad_answer,
    is_reference,
    reference,
)
from adamd.sansio.rounds import documents
from adamd.wire import headers, layout, safetensors
from adamd.wire.encodings import RAW
from adamd.wire.headers import JSON

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
_CHAIN = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(rf'(?:W/)?"({_CHAIN.pattern})"')  # a proxy may weaken it


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        path: below the server's URL, quoted.
        body: buffers that are sent one after the other, uncopied.
        accept: the media type wanted.
        into: where the body of a 200 in that type goes: memory of exactly its length, or a file.
        limit: bytes of any other answer that are kept at most.
        expected: about how many bytes will come; only a progress bar wants to know.
        check: reads the head of a 200 in the type wanted, before its body is read, or refuses it.
        on_sent: is called when the request has left, before its answer is read.

    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: tuple[memoryview, ...] = ()
    accept: str = JSON
    into: tuple[memoryview, ...] | BinaryIO | None = None
    limit: int = MAX_DOCUMENT_BYTES
    expected: int = 0
    check: Callable[[Response], Any] = _nothing
    on_sent: Callable[[], None] = _nothing

    @property
    def nbytes(self) -> int:
        """The body's length."""
        return sum(piece.nbytes for piece in self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Header names are in lower case.

    Attributes:
        filled: the body went to ``Request.into``.
        head: the result of ``Request.check``.

    """

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray = b""
    filled: bool = False
    head: Any = None

    @property
    def plain(self) -> bool:
        """The body is not compressed: nobody asked for that."""
        return self.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")

    @property
    def media_type(self) -> str:
        """Content-Type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


# -- out


def encode(operation: Operation) -> Request:
    """Return an operation's request.

    Raises:
        UnknownSession, InvalidRequest: it names something that cannot be.

    """
    match operation:
        case Step():
            return _step(operation)
        case Create() | Restore():
            return _creation(operation)
        case View(ref) | Watch(ref):
            return Request("GET", _path(ref))
        case ListSessions(size, token):
            after = "" if token is None else f"&page_token={quote(token, safe='')}"
            return Request("GET", f"/v1/sessions?page_size={size}{after}")
        case Update(ref):
            members = {"optimizer": operation.optimizer, "labels": operation.labels, "rounds": operation.rounds}
            changes = {name: value for name, value in members.items() if value is not None}
            return Request("PATCH", _path(ref), {"Content-Type": headers.JSON}, _json(changes))
        case Delete(ref, chain):
            return Request("DELETE", _path(ref), {} if chain is None else {"If-Match": f'"{chain}"'})
        case ReadParameters(ref):
            at = "" if operation.at is None else f"?at={quote(operation.at, safe='')}"
            return _filling(operation, "GET", _path(ref, f"/parameters{at}"), _rounded(operation), ())
        case SetParameters(ref):
            kind, body = _body(operation.body)
            return Request("PUT", _path(ref, "/parameters"), kind, body)
        case Export(ref, into, expected):
            return Request(
                "GET",
                _path(ref, "/state"),
                accept=headers.SAFETENSORS,
                into=into,
                limit=operation.limit,
                expected=expected,
            )
        case Info():
            return Request("GET", "/v1/info")
        case AskTask(ref, client, wait):
            query = f"?client={client}&wait_s={wait:g}" if client else ""
            return Request("GET", _path(ref, f"/rounds/current{query}"))
        case Contribute():
            return _contribution(operation)
        case Evaluate(ref, number, client):
            document = {"num_examples": operation.num_examples, "metrics": operation.metrics}
            path = _path(ref, f"/rounds/{number}/evaluations/{client}")
            return Request("PUT", path, {"Content-Type": headers.JSON}, _json(document))
        case ReadRound(ref, number):
            return Request("GET", _path(ref, f"/rounds/{number}"))
        case ListRounds(ref, start, size, token):
            begin = f"from={start}" if token is None else f"page_token={quote(token, safe='')}"
            return Request("GET", _path(ref, f"/rounds?{begin}&page_size={size}"))
        case CloseRound(ref, number):
            return Request("POST", _path(ref, f"/rounds/{number}/close"))
        case CancelRound(ref, number):
            return Request("POST", _path(ref, f"/rounds/{number}/cancel"))


def _contribution(operation: Contribute) -> Request:
    sent, body = _body(operation.body)
    sent[headers.KIND] = operation.kind
    sent[headers.NUM_EXAMPLES] = repr(operation.num_examples)
    if operation.metrics:
        sent[headers.METRICS] = json.dumps(operation.metrics)
    if operation.chain is not None:
        sent["If-Match"] = f'"{operation.chain}"'
    path = _path(operation.ref, f"/rounds/{operation.round}/contributions/{operation.client}")
    return Request("PUT", path, sent, body)


def _json(document: Mapping[str, Any]) -> tuple[memoryview, ...]:
    return (memoryview(json.dumps(document, allow_nan=False).encode()),)


def _step(operation: Step) -> Request:
    kind, body = _body(operation.body)
    sent = kind | _rounded(operation)
    if operation.chain is not None:
        sent["If-Match"] = f'"{operation.chain}"'
    if operation.settings:
        sent[headers.SETTINGS] = json.dumps(operation.settings)
    if operation.body.encoding != "raw":
        sent[headers.ENCODING] = operation.body.encoding
    if operation.rounded:
        sent[headers.ANSWER_DTYPE] = operation.dtype
    if operation.metrics:
        sent[headers.METRICS] = json.dumps(operation.metrics)
    if operation.number is None:
        assert operation.key is not None
        sent[headers.IDEMPOTENCY] = operation.key
        if operation.base is not None:
            step, chain, most = operation.base
            sent[headers.BASE] = f"{step};chain={chain}" + ("" if most is None else f";most={most}")
        return _filling(operation, "POST", _path(operation.ref, "/steps"), sent, body)
    return _filling(operation, "PUT", _path(operation.ref, f"/steps/{operation.number}"), sent, body)


def _filling(
    operation: Step | ReadParameters, method: str, path: str, sent: Mapping[str, str], body: tuple[memoryview, ...]
) -> Request:
    """Return a request whose answer's body is parameters, into the caller's memory."""

    def check(head: Response) -> object:
        return _head(head, operation)

    return Request(method, path, sent, body, headers.OCTETS, operation.into, check=check, on_sent=operation.on_sent)


def _rounded(operation: Step | ReadParameters) -> dict[str, str]:
    return {headers.ANSWER_DTYPE: operation.dtype} if operation.rounded else {}


def _creation(operation: Create | Restore) -> Request:
    sent = {"Content-Type": headers.SAFETENSORS, headers.IDEMPOTENCY: operation.key}
    if isinstance(operation, Restore):
        return Request("POST", "/v1/sessions", sent, operation.pieces)
    parameters = operation.parameters
    document = {**operation.document, "dtype": parameters.dtype, "vector": parameters.layout.vector}
    body = _safetensors(parameters.parts, {"adamd": json.dumps(document, allow_nan=False)})
    return Request("POST", "/v1/sessions", sent, body)


def _path(ref: str, tail: str = "") -> str:
    return f"/v1/sessions/{reference(ref)}{tail}"


def _body(body: Body) -> tuple[dict[str, str], tuple[memoryview, ...]]:
    if body.parts:
        return {"Content-Type": headers.SAFETENSORS}, _safetensors(body.parts, {})
    kind = {"Content-Type": headers.OCTETS}
    if body.dtype is not None:
        kind[headers.DTYPE] = body.dtype
    if body.encoding != RAW:
        kind[headers.ENCODING] = body.encoding
    return kind, body.pieces


def _safetensors(parts: Iterable[TensorPart], metadata: Mapping[str, str]) -> tuple[memoryview, ...]:
    items = tuple(parts)
    head = safetensors.write_header(((item.name, item.dtype, item.array.shape) for item in items), metadata)
    return (memoryview(head), *pieces(item.array for item in items))


# -- in


def decode(operation: Operation, response: Response) -> Any:
    """Return the result of an answer.

    Raises:
        TransportError: it is not the answer to what was asked.
        AdamdError: the server's refusal, by its code.

    """
    if not 200 <= response.status < 300:
        raise refusal(response)
    if not response.plain:
        coding = response.headers["content-encoding"][:40]
        raise bad_answer(
            f"a compressed body (Content-Encoding {coding!r}), which nobody asked for; does a proxy do it?"
        )
    match operation:
        case Step():
            return _stepped(response, operation)
        case ReadParameters():
            return _stepped(response, operation)
        case Create() | Restore() | View() | Update() | SetParameters():
            return _standing(response)
        case ListSessions():
            page = _document(response)
            items, token = page.get("sessions"), page.get("next_page_token")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                items = None
            if items is None or not isinstance(token, str | None):
                raise bad_answer("a page that is no list of sessions")
            return Page(items, token or None)
        case Export():
            if response.media_type != headers.SAFETENSORS:
                raise bad_answer(f"{response.media_type or 'no media type'} where a state was asked for")
            return response.body
        case Watch():
            now = _standing(response)
            members = {"step": now.step, "chain": now.chain, "settings": now.settings, "diverged": now.diverged}
            document = _document(response)
            lr = document.get("lr", now.settings.get("lr"))
            return members | {"lr": lr, "metrics": _metrics(document.get("metrics"))}
        case Info():
            return _document(response)
        case AskTask():
            return _assignment(response)
        case Contribute() | Evaluate():
            return documents.received(_document(response))
        case ReadRound() | CloseRound() | CancelRound():
            return documents.round_(_document(response))
        case ListRounds():
            return documents.rounds_page(_document(response))
        case Delete():
            return None


def refusal(response: Response) -> AdamdError:
    """Return the error of an answer without success."""
    retry_after = _retry_after(response.headers)
    try:
        document = json.loads(bytes(response.body)) if response.media_type.endswith("json") else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "code" not in document:
        document = {"detail": _foreign(response)}
    return errors.from_problem(document, response.status, retry_after)


def _foreign(response: Response) -> str:
    """Describe an answer that is no problem document: it comes from a proxy, or from no adamd at all."""
    if 300 <= response.status < 400 and "location" in response.headers:
        return f"the address has moved to {response.headers['location'][:200]}; connect to that one"
    if not response.plain:
        return f"status {response.status} with a compressed body, which nobody asked for; check the URL and the proxies"
    text = bytes(response.body[:200]).decode("utf-8", "replace").strip()
    kind = response.media_type or "no media type"
    return f"status {response.status} with {kind}, which is not adamd's: {text!r}; check the URL and the proxies"


def _retry_after(fields: Mapping[str, str]) -> float | None:
    """Read Retry-After: seconds, or a date, which counts from the answer's own Date (there is no clock here)."""
    raw = fields.get("retry-after")
    if raw is None:
        return None
    try:
        seconds = float(raw)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(raw) - parsedate_to_datetime(fields["date"])).total_seconds()
        except (KeyError, ValueError, TypeError, OverflowError, IndexError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _metrics(raw: Any) -> dict[str, float]:
    """Read the last step's metrics; one that is null is left out."""
    return {k: v for k, v in raw.items() if type(v) in (int, float)} if isinstance(raw, dict) else {}


def _standing(response: Response) -> Standing:
    document = {name: value for name, value in _document(response).items() if name != "metrics"}  # a watch tells them
    try:
        name, settings, chain = document["name"], document["optimizer"], document["chain"]
        tensors = layout.from_json(document["layout"], vector=document["vector"] is True)
        good = (
            is_reference(document["id"])
            and isinstance(name, str | None)
            and (name is None or name.isprintable())
            and type(document["step"]) is int
            and 0 <= document["step"] <= errors.LAST_STEP
            and isinstance(settings, dict)
            and document["dtype"] in ("float32", "float64")
            and isinstance(chain, str)
            and _CHAIN.fullmatch(chain) is not None  # every step would be sent with another If-Match
        )
        if not good:
            raise TypeError("a member has another type, or is empty, or no chain")
        return Standing(
            id=document["id"],
            name=name,
            step=document["step"],
            chain=chain,
            layout=tensors,
            dtype=document["dtype"],
            settings=settings,
            diverged=document.get("diverged") is True,
            document=document,
            stop=stop if isinstance(stop := document.get("stop"), str) else None,
        )
    except (KeyError, TypeError, AdamdError) as error:
        raise bad_answer(f"a document that is no session ({type(error).__name__}: {error})") from None


def _assignment(response: Response) -> Assignment | None:
    if response.status == 204:
        return None
    etag = _ETAG.fullmatch(response.headers.get("etag", ""))
    if etag is None:
        raise bad_answer("a task without an ETag with the chain; does a proxy drop it?")
    return documents.assignment(_document(response), etag.group(1))


def _stepped(response: Response, operation: Step | ReadParameters) -> Stepped:
    """Check an answer with parameters: type, length, dtype, step and ETag."""
    if not response.filled:
        kind, nbytes = response.media_type or "no media type", len(response.body)
        room = sum(view.nbytes for view in operation.into)
        raise bad_answer(f"{kind}, {nbytes} bytes; wanted {headers.OCTETS}, {room} bytes")
    head: Stepped = response.head or _head(response, operation)
    return head


def _head(response: Response, operation: Step | ReadParameters) -> Stepped:
    """Check the headers of an answer with parameters, before any of them is taken."""
    fields, number = response.headers, operation.number if isinstance(operation, Step) else None
    dtype, step = fields.get(headers.DTYPE.lower()), _count(fields.get(headers.STEP.lower(), ""))
    etag = _ETAG.fullmatch(fields.get("etag", ""))
    if dtype != operation.dtype:
        what = f"no {headers.DTYPE}" if dtype is None else f"{dtype[:40]} parameters"
        raise bad_answer(f"{what}; wanted {operation.dtype}")
    if step is None or number not in (None, step):
        raw = fields.get(headers.STEP.lower(), "")[:40]
        raise bad_answer(f"{headers.STEP} {raw!r}" + ("" if number is None else f"; wanted {number}"))
    if etag is None:
        raise bad_answer("no ETag with the chain; does a proxy drop it?")
    stop = fields.get(headers.STOP.lower())
    return Stepped(
        step,
        etag.group(1),
        fields.get(headers.REPLAYED.lower()) == "true",
        fields.get("adamd-diverged") == "true",
        _count(fields.get(headers.OVERFLOWED.lower(), "")) or 0,
        stop if stop is None else errors.clean(stop[:80]),
        _stalls(fields.get(headers.WARNING.lower(), "")),
    )


def _count(raw: str) -> int | None:
    """Read a count; None where it is none that a server can have."""
    return int(raw) if raw.isascii() and raw.isdigit() and len(raw) <= 19 and int(raw) <= errors.LAST_STEP else None


def _stalls(header: str) -> tuple[Stall, ...]:
    """Read Adamd-Warning: codes with the eps that would help, as in "gradient_below_eps;eps=1e-15"."""
    stalls = []
    for item in filter(None, (part.strip() for part in header.split(","))):
        code, _, parameter = item.partition(";")
        try:
            eps = float(parameter.partition("=")[2]) if parameter.strip().startswith("eps=") else None
        except ValueError:
            eps = None
        if eps is None or (math.isfinite(eps) and eps > 0):
            stalls.append(Stall(errors.clean(code[:80]), eps))
    return tuple(stalls)


def _document(response: Response) -> dict[str, Any]:
    if response.media_type != headers.JSON:
        raise bad_answer(f"{response.media_type or 'no media type'}; wanted {headers.JSON}")
    try:
        document = json.loads(bytes(response.body))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise bad_answer("a body that is no JSON object")
    return document
