"""Reads and checks request headers: media types, conditions, keys, settings. Nothing in them is trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from adamd.errors import InvalidRequest, MalformedBody, MediaType, NotAcceptable, WrongDtype
from adamd.wire import headers
from adamd.wire.dtypes import ITEMSIZE
from adamd.wire.encodings import ENCODINGS, RAW
from adamd.wire.layout import shown
from adamd_service.codecs import checks, rounds
from adamd_service.codecs.checks import parse_json
from adamd_service.records import Base

KNOWN = (headers.OCTETS, headers.SAFETENSORS, headers.JSON)
_CHAIN = re.compile(r'"[0-9a-f]{64}"')
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_TAGS = re.compile(rf"{_TAG.pattern}(?:[ \t]*,[ \t,]*{_TAG.pattern})*")
_BASE = re.compile(r"(?P<step>[0-9]{1,16})(?:;\s?chain=(?P<chain>[0-9a-f]{64}))?(?:;\s?most=(?P<most>[0-9]{1,9}))?")
_FLOAT = re.compile(r"[0-9]{1,16}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,16}")


def only(request: Request, name: str) -> str | None:
    """Return a header that may come only once; None if it is absent.

    Raises:
        InvalidRequest: it comes twice: two readers could take different ones.

    """
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(f"{name}: the header comes {len(values)} times; wanted once")
    return values[0] if values else None


def check_query(request: Request, allowed: Sequence[str]) -> None:
    """Refuse a query with a member that means nothing here, or one that comes twice.

    Raises:
        InvalidRequest: by name, with those that are known.

    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in allowed:
            hint = f"known are {', '.join(allowed)}" if allowed else "this call has no query"
            raise InvalidRequest(f"{shown(name)} in the query: unknown; {hint}", path=name[:64])
        if names.count(name) > 1:
            raise InvalidRequest(f"{name}: it is in the query {names.count(name)} times; wanted once", path=name)


def dtype(request: Request) -> str | None:
    """Return Adamd-Dtype.

    Raises:
        WrongDtype: none of ours.

    """
    value = only(request, headers.DTYPE)
    if value is not None and value not in ITEMSIZE:
        raise WrongDtype(f"{headers.DTYPE}: unknown dtype {shown(value)}; known are {', '.join(ITEMSIZE)}")
    return value


def encoding(request: Request) -> str:
    """Return Adamd-Encoding, raw where it is absent.

    Raises:
        MediaType: none of ours.

    """
    value = only(request, headers.ENCODING)
    if value is not None and value not in ENCODINGS:
        raise MediaType(f"{headers.ENCODING}: unknown encoding {shown(value)}; known are {', '.join(ENCODINGS)}")
    return value or RAW


def answer_dtype(request: Request, kind: str) -> str | None:
    """Return Adamd-Answer-Dtype, None where it is absent.

    Raises:
        WrongDtype: none of ours.
        InvalidRequest: the answer is JSON, whose numbers have no dtype.

    """
    value = only(request, headers.ANSWER_DTYPE)
    if value is None:
        return None
    if value not in ITEMSIZE:
        raise WrongDtype(f"{headers.ANSWER_DTYPE}: unknown dtype {shown(value)}; known are {', '.join(ITEMSIZE)}")
    if kind == headers.JSON:
        raise InvalidRequest(
            f"{headers.ANSWER_DTYPE}: JSON's numbers have no dtype; leave it out, or Accept {headers.OCTETS}"
        )
    return value


def media_type(request: Request, default: str, accepted: tuple[str, ...] = KNOWN) -> str:
    """Return the body's media type.

    Raises:
        MediaType: unknown, or compressed.

    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MediaType(f"Content-Encoding {shown(encoding)} is not supported; send the body as it is")
    value = only(request, "content-type")
    if value is None:
        return default
    kind = value.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        raise MediaType(
            "application/x-www-form-urlencoded is what curl -d and --data-binary send by themselves; add "
            f"-H 'Content-Type: {headers.JSON}' (or use --json) or -H 'Content-Type: {headers.OCTETS}'"
        )
    if kind not in accepted:
        raise MediaType(f"media type {shown(kind)}; accepted are {', '.join(accepted)}")
    return kind


def accepted_type(request: Request, default: str, known: Sequence[str] = KNOWN) -> str:
    """Return the media type that the answer should have, one of ``known``.

    Raises:
        NotAcceptable: none of ours.

    """
    value = ",".join(request.headers.getlist("accept"))
    if not value.strip():
        return default
    best, chosen = 0.0, None
    for item in value.split(","):
        kind, _, parameters = item.strip().partition(";")
        quality = _quality(parameters)
        kind = kind.strip().lower()
        offers = [default, *known] if kind in ("*/*", "application/*") else [kind] if kind in known else []
        if offers and quality > best:
            best, chosen = quality, offers[0]
    if chosen is None:
        raise NotAcceptable(f"Accept {shown(value)}; this can be answered as {', '.join(known)}")
    return chosen


def _quality(parameters: str) -> float:
    match = re.search(r"q\s*=\s*([0-9.]+)", parameters)
    try:
        return float(match.group(1)) if match else 1.0
    except ValueError:
        return 0.0


def if_match(request: Request) -> tuple[str, ...]:
    """Return the chains that If-Match names, one of which has to be the session's; none: any will do.

    An entity tag is opaque (RFC 9110, 8.8.3): one that is no chain, or is weak, matches none; it stands here as sent.

    Raises:
        InvalidRequest: it is no list of entity tags.

    """
    lines = request.headers.getlist("if-match")
    if not lines:
        return ()
    value = ",".join(lines).strip(" \t,")
    if value == "*":
        return ()
    if _TAGS.fullmatch(value) is None:
        raise InvalidRequest(
            f"If-Match is {shown(value)}; wanted the ETag of an answer as it came, in double quotes, or a list, or *"
        )
    tags = _TAG.findall(value)
    chains = tuple(tag[1:-1] for tag in tags if _CHAIN.fullmatch(tag))
    return chains or tuple(tags[:1])


def base(request: Request) -> Base | None:
    """Return Adamd-Base: what the gradient of a POST was taken at.

    Raises:
        InvalidRequest: it is not as in 41;chain=…;most=3.

    """
    value = only(request, headers.BASE)
    if value is None:
        return None
    match = _BASE.fullmatch(value)
    if match is None or int(match["step"]) > headers.MAX_STEP:
        raise InvalidRequest(
            f"{headers.BASE} is {shown(value)}; wanted the step that the gradient was taken at, with its chain and "
            "how many steps may have come since where you know them: 41;chain=<64 hexadecimal digits>;most=3"
        )
    return Base(int(match["step"]), match["chain"], None if match["most"] is None else int(match["most"]))


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key.

    Raises:
        InvalidRequest: empty, longer than 255, or unprintable.

    """
    value = only(request, headers.IDEMPOTENCY)
    if value is None:
        return None
    return checks.key(value.strip().strip('"'), headers.IDEMPOTENCY)


def declared_length(request: Request) -> int | None:
    """Return Content-Length; None where the body is chunked."""
    value = request.headers.get("content-length")
    if value is None:
        return None if "transfer-encoding" in request.headers else 0
    return int(value)


def minimal(request: Request) -> bool:
    """Say whether the client prefers no body (RFC 7240)."""
    value = ",".join(request.headers.getlist("prefer")).lower().replace(" ", "").replace('"', "")
    return any(re.split("[;,]", item)[0] == "return=minimal" for item in value.split(","))


def step_number(value: str) -> int:
    """Return a step's number.

    Raises:
        InvalidRequest: not 1 to 2^53.

    """
    if _NUMBER.fullmatch(value) is None or not value.isascii():
        raise InvalidRequest(f"step {shown(value)}: wanted a number from 1 to 2^53; step 1 is the first update")
    return checks.step_number(int(value))


def round_number(value: str) -> int:
    """Return a round's number.

    Raises:
        InvalidRequest: not 1 to 2^53.

    """
    if _NUMBER.fullmatch(value) is None or not value.isascii():
        raise InvalidRequest(
            f"round {shown(value)}: wanted a number from 1 to 2^53; round 1 makes step 1", path="round"
        )
    return rounds.round_number(int(value))


def num_examples(request: Request) -> float:
    """Return Adamd-Num-Examples, 1 where it is absent.

    Raises:
        InvalidRequest: no finite number above 0.

    """
    value = only(request, headers.NUM_EXAMPLES)
    if value is None:
        return 1.0
    number = value.strip()
    return rounds.num_examples(float(number) if _FLOAT.fullmatch(number) is not None else number, headers.NUM_EXAMPLES)


def json_header(request: Request, name: str) -> Any:
    """Return a header's JSON value, None where it is absent.

    Raises:
        InvalidRequest: it is no JSON.

    """
    value = only(request, name)
    if value is None:
        return None
    try:
        return parse_json(value.encode("latin-1"))  # the bytes that came; JSON is UTF-8
    except MalformedBody as error:
        raise InvalidRequest(f"{name}: {error.detail}") from None
