"""What is wrong in a JSON document, in our words: its field, what came, what is accepted."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd.wire.layout import shown
from adamd_service.codecs.checks import MAX_LABELS
from adamd_service.optim import FAMILY, settings_of

Model = TypeVar("Model", bound=BaseModel)
WANTED = {
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
    # A name that came from outside may be of any length, and half a character.
    where = ".".join(str(part)[:64] for part in place).encode(errors="backslashreplace").decode()[:256]
    if fault["type"] == "extra_forbidden":
        known = list(model.model_fields)
        near = get_close_matches(str(place[-1])[:64], known, n=1)
        if "optimizer" in known and any(place[-1] in settings_of(optimizer) for optimizer in FAMILY.values()):
            near = [f"optimizer.{where}"]
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise InvalidRequest(f"{where}: unknown; {hint}", path=where)
    first = str(place[0]) if place else ""
    wanted = WANTED.get(f"{first}[]" if place[1:] else first) or WANTED[first]
    came = "missing" if fault["type"] == "missing" else _came(fault["input"])
    raise InvalidRequest(f"{where or 'the body'} is {came}; wanted {wanted}", path=where)


def _came(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)
