"""What each call sends, and what its answer must be. Pure: both shells use it. The server is not trusted blindly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from adamd._arrays import Given, Landing, Part, pieces
from adamd._flow import Request, Response, json_body
from adamd.errors import AdamdError, InvalidRequest, TransportError, UnknownSession
from adamd.wire import headers, layout, safetensors
from adamd.wire.dtypes import ITEMSIZE
from adamd.wire.layout import Layout

SETTINGS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "groups")
RESTORED = ("name", "optimizer", "layout", "vector", "dtype", "durability", "labels", "state")
_REF = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ETAG = re.compile(r'(?:W/)?"([0-9a-f]{64})"')  # a proxy may weaken it


@dataclass(frozen=True, slots=True)
class Standing:
    """A session as the server describes it. ``document`` is the whole of it."""

    id: str
    name: str | None
    step: int
    chain: str
    layout: Layout
    dtype: str
    settings: dict[str, Any]
    diverged: bool
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stepped:
    """Where an answer with parameters stands."""

    step: int
    chain: str
    replayed: bool
    diverged: bool


def settings_document(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values; those that are None are the server's default.

    Raises:
        InvalidRequest: NaN, infinity, or something that JSON cannot say.

    """
    found = {name: value for name, value in given.items() if value is not None}
    try:
        return dict(json.loads(json.dumps(found, allow_nan=False, default=_plain)))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"settings {', '.join(found)}: not finite numbers or plain values: {error}") from None


def _plain(value: Any) -> Any:
    """Turn NumPy's and torch's scalars and arrays into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def create(given: Given, document: Mapping[str, Any], key: str) -> Request:
    """POST /v1/sessions with the parameters as safetensors; ``key`` makes it safe to repeat."""
    told = {**document, "dtype": given.dtype, "vector": given.layout.vector}
    return Request(
        "POST",
        "/v1/sessions",
        {"Content-Type": headers.SAFETENSORS, headers.IDEMPOTENCY: key},
        _safetensors(given.parts, {"adamd": json.dumps(told, allow_nan=False)}),
    )


def restore(body: memoryview, changes: Mapping[str, Any], settings: Mapping[str, Any], key: str) -> Request:
    """POST /v1/sessions with an exported state under another name.

    Raises:
        InvalidRequest: it is safetensors, but no export.
        MalformedBody: it is not even that.

    """
    header = safetensors.read_header(body)
    try:
        told = json.loads(header.metadata["adamd"])
        document = {name: told[name] for name in RESTORED if name in told}
        document["optimizer"] = {**document["optimizer"], **settings}
        _ = document["state"], document["dtype"]
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(
            "this is no exported state: its metadata has no adamd document with optimizer, dtype and state; "
            "use what session.export() wrote"
        ) from None
    document |= changes
    tensors = ((item.tensor.name, item.dtype, item.tensor.shape) for item in header.tensors)
    head = safetensors.write_header(tensors, {"adamd": json.dumps(document)})
    return Request(
        "POST",
        "/v1/sessions",
        {"Content-Type": headers.SAFETENSORS, headers.IDEMPOTENCY: key},
        (memoryview(head), body[header.data_start :]),
    )


def session(ref: str, tail: str = "") -> str:
    """Return the path of a session, by id or name.

    Raises:
        UnknownSession: no session can be called that.

    """
    if not isinstance(ref, str) or not ref:
        raise InvalidRequest(f"a session's id or name is a string, as in 'run-7'; got {ref!r}")
    if _REF.fullmatch(ref) is None:
        raise UnknownSession(f"{ref[:80]!r} is neither a session's id nor a name ([a-z0-9-], at most 63)")
    return f"/v1/sessions/{ref}{tail}"


def view(ref: str) -> Request:
    """GET a session."""
    return Request("GET", session(ref))


def update(ref: str, optimizer: Mapping[str, Any] | None, labels: Mapping[str, str] | None) -> Request:
    """PATCH settings or labels."""
    document = {"optimizer": optimizer, "labels": labels}
    return Request(
        "PATCH",
        session(ref),
        {"Content-Type": headers.JSON},
        json_body({name: value for name, value in document.items() if value is not None}),
        retry_codes=frozenset({"settings_conflict"}),
    )


def delete(ref: str) -> Request:
    """DELETE a session; where a first answer was lost, the second attempt finds it gone."""
    return Request("DELETE", session(ref), done_codes=frozenset({"session_deleted"}))


def page(size: int, token: str | None) -> Request:
    """GET a page of the list."""
    after = "" if token is None else f"&page_token={quote(token, safe='')}"
    return Request("GET", f"/v1/sessions?page_size={size}{after}")


def read_parameters(ref: str, land: Landing) -> Request:
    """GET the parameters into ``land``."""
    return Request("GET", session(ref, "/parameters"), accept=headers.OCTETS, into=land.buffers)


def set_parameters(ref: str, parts: tuple[Part, ...], where: Layout) -> Request:
    """PUT the parameters; all of them."""
    missing = set(where.names) - {item.name for item in parts}
    if missing:
        raise InvalidRequest(f"the parameters lack {', '.join(sorted(missing)[:8])}; set all of them at once")
    kind, body = _tensors(parts, where)
    return Request("PUT", session(ref, "/parameters"), kind, body)


def export(now: Standing, into: BinaryIO | None) -> Request:
    """GET the whole state, into a file or into memory."""
    arrays = 4 if now.settings.get("amsgrad") is True else 3
    nbytes = arrays * now.layout.size * ITEMSIZE[now.dtype]
    return Request(
        "GET",
        session(now.id, "/state"),
        accept=headers.SAFETENSORS,
        into=into,
        expected=nbytes,
        limit=nbytes + safetensors.MAX_HEADER + 8,
    )


def step(
    standing: Standing,
    parts: tuple[Part, ...],
    land: Landing,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Request:
    """PUT the next step: its number and the chain that it builds on make it safe to repeat."""
    kind, body = _tensors(parts, standing.layout)
    sent = {**kind, "If-Match": f'"{standing.chain}"'}
    if settings:
        sent[headers.SETTINGS] = json.dumps(settings)
    if metrics:
        sent[headers.METRICS] = json.dumps({name: _finite(name, value) for name, value in metrics.items()})
    path = session(standing.id, f"/steps/{standing.step + 1}")
    return Request("PUT", path, sent, body, headers.OCTETS, land.buffers)


def _finite(name: str, value: Any) -> float | None:
    """Return a metric as a number; a loss that is NaN is told as null, and must not cost the step."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"metric {name!r} is {type(value).__name__}; wanted a number") from None
    return number if math.isfinite(number) and abs(number) < 2.0**1023 else None


def _tensors(parts: tuple[Part, ...], where: Layout) -> tuple[dict[str, str], tuple[memoryview, ...]]:
    """Return the flat vector where all tensors are there in one dtype, else safetensors by name."""
    kinds = {item.dtype for item in parts}
    if len(parts) == len(where.tensors) and len(kinds) <= 1:
        kind = {"Content-Type": headers.OCTETS} | ({headers.DTYPE: kinds.pop()} if kinds else {})
        return kind, pieces(item.array for item in parts)
    return {"Content-Type": headers.SAFETENSORS}, _safetensors(parts, {})


def _safetensors(parts: Iterable[Part], metadata: Mapping[str, str]) -> tuple[memoryview, ...]:
    items = tuple(parts)
    head = safetensors.write_header(((item.name, item.dtype, item.array.shape) for item in items), metadata)
    return (memoryview(head), *pieces(item.array for item in items))


def standing(response: Response) -> Standing:
    """Read a session's document.

    Raises:
        TransportError: it is none.

    """
    document = read_json(response)
    try:
        name, settings, found = document["name"], document["optimizer"], document["chain"]
        made = layout.from_json(document["layout"], vector=document["vector"] is True)
        good = (
            isinstance(document["id"], str)
            and isinstance(name, str | None)
            and type(document["step"]) is int
            and isinstance(settings, dict)
            and document["dtype"] in ("float32", "float64")
            and isinstance(found, str)
        )
        if not good:
            raise TypeError("a member has another type")
        return Standing(
            id=document["id"],
            name=name,
            step=document["step"],
            chain=found,
            layout=made,
            dtype=document["dtype"],
            settings=settings,
            diverged=document.get("diverged") is True,
            document=document,
        )
    except (KeyError, TypeError, AdamdError) as error:
        raise bad_answer(f"a document that is no session ({type(error).__name__}: {error})") from None


def stepped(response: Response, layout: Layout, dtype: str, wanted: int | None = None) -> Stepped:
    """Check an answer with parameters: type, length, step and ETag.

    Raises:
        TransportError: it is not the answer to what was asked.

    """
    if not response.filled:
        kind, nbytes = response.media_type or "no media type", len(response.body)
        raise bad_answer(f"{kind}, {nbytes} bytes; wanted {headers.OCTETS}, {layout.size * ITEMSIZE[dtype]} bytes")
    told, came = response.headers.get(headers.DTYPE.lower(), dtype), response.headers.get(headers.STEP.lower(), "")
    etag = _ETAG.fullmatch(response.headers.get("etag", ""))
    if told != dtype:
        raise bad_answer(f"{told} parameters; this session is {dtype}")
    if not (came.isascii() and came.isdigit()) or (wanted is not None and int(came) != wanted):
        raise bad_answer(f"{headers.STEP} {came!r}" + ("" if wanted is None else f"; wanted {wanted}"))
    if etag is None:
        raise bad_answer("no ETag with the chain; does a proxy drop it?")
    given = response.headers
    return Stepped(
        int(came),
        etag.group(1),
        given.get(headers.REPLAYED.lower()) == "true",
        given.get("adamd-diverged") == "true",
    )


def read_json(response: Response) -> dict[str, Any]:
    """Read an answer that is a JSON object.

    Raises:
        TransportError: it is something else.

    """
    if response.media_type != headers.JSON:
        raise bad_answer(f"{response.media_type or 'no media type'}; wanted {headers.JSON}")
    try:
        document = json.loads(bytes(response.body))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise bad_answer("a body that is no JSON object")
    return document


def bad_answer(came: str) -> TransportError:
    """Return the error for an answer that no adamd server gives."""
    return TransportError(f"the server answered with {came}. Is this an adamd server, of this version?", phase="answer")
