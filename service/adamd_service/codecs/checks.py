"""Checks JSON, settings, metrics, keys and chains for every transport, with the same error texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from adamd.errors import InvalidRequest, InvalidSettings, MalformedBody, TooLarge, UnknownSession
from adamd.wire import headers
from adamd.wire.layout import shown
from adamd_service.optim import FAMILY, settings_of

MAX_METRICS, MAX_METRICS_BYTES = 64, 16 * 1024  # in JSON: 64 names of 128 ASCII characters fit
MAX_LABELS, MAX_LABEL_NAME, MAX_LABEL = 64, 128, 1024  # of a session; characters
PAGE, LONGEST_PAGE, LONGEST_TOKEN = 100, 1000, 200  # sessions; characters
MAX_PARTS = 1_000_000  # lists, objects and strings in one JSON text: empty ones take twenty times their text
MAX_SETTINGS = 1024 * 1024  # bytes of a step's settings, in JSON
STEP_MEMBERS = ("gradient", "metrics", "settings")  # of a step's JSON body
STEP_WANTED = '{"gradient": …} and, if you like, "metrics" and "settings"'
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CHAIN = re.compile(r"[0-9a-f]{64}")
AT = ("average", "ema", "best")  # parameters beside those that gradients are taken at
_REF = re.compile(headers.REF_PATTERN)


def session_ref(value: str) -> str:
    """Return what names a session: its id or its name.

    Raises:
        UnknownSession: it can be neither.

    """
    if _REF.fullmatch(value) is None:
        raise UnknownSession(f"{shown(value)} is neither a session's id nor a name ({headers.NAME_WORDS})")
    return value


def at(value: str | None) -> str | None:
    """Return which parameters are asked for: None for those that gradients are taken at.

    Raises:
        InvalidRequest: there are none such.

    """
    if value is None or value in AT:
        return value
    raise InvalidRequest(f"at is {shown(value)}; known are {', '.join(AT)}, or nothing", path="at")


def chain(value: str, where: str) -> str:
    """Return a chain.

    Raises:
        InvalidRequest: it is none.

    """
    if _CHAIN.fullmatch(value) is None:
        raise InvalidRequest(f"{where}: {shown(value)} is no chain of a session: 64 hexadecimal digits")
    return value


def key(value: str, where: str) -> str:
    """Return an idempotency key.

    Raises:
        InvalidRequest: empty, longer than 255, or unprintable.

    """
    if not 1 <= len(value) <= 255 or not value.isascii() or not value.isprintable():
        raise InvalidRequest(f"{where}: wanted 1 to 255 printable ASCII characters")
    return value


def step_number(value: int) -> int:
    """Return a step's number.

    Raises:
        InvalidRequest: not 1 to 2^53.

    """
    if not 1 <= value <= headers.MAX_STEP:
        raise InvalidRequest(f"step {value}: wanted a number from 1 to 2^53; step 1 is the first update")
    return value


def parse_json(data: bytes | memoryview) -> Any:
    """Parse JSON with bounded nesting, bounded expansion, and no member twice; NaN and Infinity are no JSON.

    Raises:
        MalformedBody: it is something else.
        TooLarge: it has so many parts that they would fill the memory.

    """
    text = bytes(data)
    if text.count(b"[") + text.count(b"{") + text.count(b'"') // 2 > MAX_PARTS:
        raise TooLarge(f"JSON of more than {MAX_PARTS} lists, objects and strings; send octet-stream or safetensors")
    try:
        value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"not JSON: {error}") from None
    # The parser keeps the last of two members with one name; another reader might keep the first. Outside strings
    # each colon is a member.
    if _members(value) != _STRING.sub(b"", text).count(b":"):
        raise MalformedBody("not JSON that can be relied on: an object has two members with one name")
    return value


def _members(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(_members(item) for item in value.values() if type(item) in (dict, list))
    if type(value) is list:
        return sum(_members(item) for item in value if type(item) in (dict, list))
    return 0


def step_members(raw: Any) -> Mapping[str, Any]:
    """Check that a step's JSON body is an object that has a gradient, and no member that a step does not have.

    Raises:
        InvalidRequest: it is not; ``path`` names the member.

    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"the body is {_shown_input(raw)}; wanted {STEP_WANTED}")
    for name in raw:
        if name not in STEP_MEMBERS:
            where = _printed(name[:64])
            near = get_close_matches(where, STEP_MEMBERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(STEP_MEMBERS)}"
            raise InvalidRequest(f"{where}: unknown; {hint}", path=where)
    if "gradient" not in raw:
        raise InvalidRequest(f"gradient: missing; wanted {STEP_WANTED}", path="gradient")
    return raw


def settings(raw: Any) -> Mapping[str, Any] | None:
    """Check that a step's settings are an object of real JSON; their values are the session's business.

    Raises:
        InvalidRequest: no object.
        InvalidSettings: a number like 1e999, which the digest could not hold, or far too many of them.

    """
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise InvalidRequest('settings: wanted an object, as in {"lr": 0.0005}')
    try:
        length = len(json.dumps(raw, allow_nan=False))
    except ValueError:
        raise InvalidSettings("settings: a number is too large; wanted finite ones", path="settings") from None
    if length > MAX_SETTINGS:
        raise InvalidSettings(f"settings: {length} bytes; at most {MAX_SETTINGS}", path="settings")
    integers: dict[str, Any] = _with_integers(raw)
    return integers


def _with_integers(value: Any) -> Any:
    """Write whole numbers as integers: 1 and 1.0 are one number, and protobuf has no integers in its objects.

    The digest covers the settings, so a step that is sent again by another transport has to give the same text.
    """
    if type(value) is float and value.is_integer() and abs(value) < 2.0**53:
        return int(value)
    if type(value) is dict:
        return {name: _with_integers(item) for name, item in value.items()}
    return [_with_integers(item) for item in value] if type(value) is list else value


def metrics(raw: Any) -> Mapping[str, Any] | None:
    """Check a step's metrics: names to finite numbers or null, at most 64, and 16 KiB.

    Raises:
        InvalidRequest: something else.

    """
    if raw is None:
        return None
    if not isinstance(raw, dict) or len(raw) > MAX_METRICS:
        raise InvalidRequest(f'metrics: wanted an object of at most {MAX_METRICS} numbers, as in {{"loss": 0.31}}')
    for name, value in raw.items():
        if not 1 <= len(name) <= 128 or not name.isprintable():
            raise InvalidRequest(f"metrics: {shown(name)} is no name of 1 to 128 printable characters")
        if value is not None and not (type(value) in (int, float) and abs(value) < 2.0**1023 and math.isfinite(value)):
            raise InvalidRequest(f"metrics.{name}: wanted a finite number or null")
    length = len(json.dumps(raw))
    if length > MAX_METRICS_BYTES:
        raise InvalidRequest(f"metrics: {length} bytes as JSON; wanted at most {MAX_METRICS_BYTES}")
    return raw


Model = TypeVar("Model", bound=BaseModel)
EXPECTED = {
    "": "a JSON object",
    "name": headers.NAME_WORDS,
    "optimizer": 'an object such as {"name": "adam", "lr": 0.001}',
    "layout": 'a list such as [{"name": "w", "shape": [784, 10]}]',
    "layout[]": 'an object such as {"name": "w", "shape": [784, 10]}',
    "dtype": "float32 or float64",
    "durability": "committed or memory",
    "labels": f'an object of at most {MAX_LABELS} texts, such as {{"team": "blue"}}',
    "labels[]": "a text",
    "vector": "true or false",
    "rounds": 'an object such as {"quorum": 6}',
    "state": "the counts as an export has them",
}


def validated(model: type[Model], raw: Any) -> Model:
    """Check a JSON document.

    Raises:
        InvalidRequest: with the first fault's place.

    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
    place = fault["loc"]
    where = _printed(".".join(str(part)[:64] for part in place))
    if fault["type"] == "extra_forbidden":
        names = list(model.model_fields)
        near = get_close_matches(str(place[-1])[:64], names, n=1)
        if "optimizer" in names and any(place[-1] in settings_of(optimizer) for optimizer in FAMILY.values()):
            near = [f"optimizer.{where}"]
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
        raise InvalidRequest(f"{where}: unknown; {hint}", path=where)
    first = str(place[0]) if place else ""
    expected = EXPECTED.get(f"{first}[]" if place[1:] else first) or EXPECTED[first]
    actual = "missing" if fault["type"] == "missing" else _shown_input(fault["input"])
    raise InvalidRequest(f"{where or 'the body'} is {actual}; wanted {expected}", path=where)


def _printed(name: str) -> str:
    """Return a name that came from outside, which may be of any length and have half a character."""
    return name.encode(errors="backslashreplace").decode()[:256]


def _shown_input(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)
