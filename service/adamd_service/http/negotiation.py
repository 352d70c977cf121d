"""What the headers say: media types, conditions, keys, settings. Hostile until checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request

from adamd.errors import InvalidRequest, MalformedBody, MediaType, NotAcceptable
from adamd.wire import headers

KNOWN = (headers.OCTETS, headers.SAFETENSORS, headers.JSON)
MAX_METRICS = 64
_CHAIN = re.compile(r'"([0-9a-f]{64})"')
_NUMBER = re.compile(r"[0-9]{1,16}")


def media_type(request: Request, default: str, accepted: tuple[str, ...] = KNOWN) -> str:
    """Return the body's media type.

    Raises:
        MediaType: unknown, or compressed.

    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MediaType(f"Content-Encoding {encoding!r} is not supported; send the body as it is")
    given = request.headers.get("content-type")
    if given is None:
        return default
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        raise MediaType(
            "application/x-www-form-urlencoded is what curl -d and --data-binary send by themselves; add "
            f"-H 'Content-Type: {headers.JSON}' (or use --json) or -H 'Content-Type: {headers.OCTETS}'"
        )
    if kind not in accepted:
        raise MediaType(f"media type {kind!r}; accepted are {', '.join(accepted)}")
    return kind


def accepted_type(request: Request, default: str) -> str:
    """Return the media type that the answer should have.

    Raises:
        NotAcceptable: none of ours.

    """
    given = request.headers.get("accept")
    if given is None:
        return default
    best, chosen = 0.0, None
    for item in given.split(","):
        kind, _, parameters = item.strip().partition(";")
        quality = _quality(parameters)
        kind = kind.strip().lower()
        offers = [default, *KNOWN] if kind in ("*/*", "application/*") else [kind] if kind in KNOWN else []
        if offers and quality > best:
            best, chosen = quality, offers[0]
    if chosen is None:
        raise NotAcceptable(f"Accept {given!r}; this can be answered as {', '.join(KNOWN)}")
    return chosen


def _quality(parameters: str) -> float:
    match = re.search(r"q\s*=\s*([0-9.]+)", parameters)
    try:
        return float(match.group(1)) if match else 1.0
    except ValueError:
        return 0.0


def if_match(request: Request) -> str | None:
    """Return the chain that If-Match names.

    Raises:
        InvalidRequest: it is no chain.

    """
    given = request.headers.get("if-match")
    if given is None or given.strip() == "*":
        return None
    match = _CHAIN.fullmatch(given.strip())
    if match is None:
        raise InvalidRequest('If-Match: wanted one ETag of this session, as in "0123…" (64 hex digits, in quotes)')
    return match.group(1)


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key.

    Raises:
        InvalidRequest: empty, longer than 255, or unprintable.

    """
    given = request.headers.get(headers.IDEMPOTENCY)
    if given is None:
        return None
    key = given.strip().strip('"')
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidRequest("Idempotency-Key: wanted 1 to 255 printable ASCII characters")
    return key


def declared_length(request: Request) -> int | None:
    """Return Content-Length; None where the body is chunked."""
    given = request.headers.get("content-length")
    if given is None:
        return None if "transfer-encoding" in request.headers else 0
    return int(given)


def minimal(request: Request) -> bool:
    """Say whether the client prefers no body (RFC 7240)."""
    return any("return=minimal" in value.replace(" ", "") for value in request.headers.getlist("prefer"))


def step_number(given: str) -> int:
    """Return a step's number.

    Raises:
        InvalidRequest: not 1 to 2^53.

    """
    if _NUMBER.fullmatch(given) is None or not given.isascii() or not 1 <= int(given) <= headers.MAX_STEP:
        raise InvalidRequest(f"step {given[:40]!r}: wanted a number from 1 to 2^53; step 1 is the first update")
    return int(given)


def json_header(request: Request, name: str) -> Any:
    """Return a header's JSON value, None where it is absent.

    Raises:
        InvalidRequest: it is no JSON.

    """
    given = request.headers.get(name)
    if given is None:
        return None
    try:
        return parse_json(given.encode())
    except MalformedBody as error:
        raise InvalidRequest(f"{name}: {error.detail}") from None


def parse_json(data: bytes | memoryview) -> Any:
    """Parse JSON with bounded nesting, refusing NaN and Infinity.

    Raises:
        MalformedBody: it is something else.

    """
    try:
        return from_json(bytes(data), allow_inf_nan=False, cache_strings="keys")
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"not JSON: {error}") from None


def settings(raw: Any) -> Mapping[str, Any] | None:
    """Check that a step's settings are an object; their values are the session's business."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise InvalidRequest('settings: wanted an object, as in {"lr": 0.0005}')
    return raw


def metrics(raw: Any) -> Mapping[str, Any] | None:
    """Check a step's metrics: names to finite numbers or null, at most 64.

    Raises:
        InvalidRequest: something else.

    """
    if raw is None:
        return None
    if not isinstance(raw, dict) or len(raw) > MAX_METRICS:
        raise InvalidRequest(f'metrics: wanted an object of at most {MAX_METRICS} numbers, as in {{"loss": 0.31}}')
    for name, value in raw.items():
        if len(name) > 128:
            raise InvalidRequest(f"metrics: a name has {len(name)} characters; at most 128")
        if value is not None and not (type(value) in (int, float) and abs(value) < 2.0**1023 and math.isfinite(value)):
            raise InvalidRequest(f"metrics.{name}: wanted a finite number or null")
    return raw
