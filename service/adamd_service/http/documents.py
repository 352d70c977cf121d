"""What the OpenAPI document says about bodies that are streamed past FastAPI, and the small JSON documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd_service.http.bodies import CreateDocument
from adamd_service.records import Head

BINARY = {"schema": {"type": "string", "format": "binary"}}
NUMBER = {"type": "integer", "minimum": 1, "maximum": headers.MAX_STEP}
GRADIENT_JSON = {
    "schema": {
        "type": "object",
        "required": ["gradient"],
        "additionalProperties": False,
        "properties": {
            "gradient": {"description": "in the shape of the parameters; a tensor that is null is left out"},
            "metrics": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "settings": {"type": "object"},
        },
    },
    "example": {"gradient": [0.5, -0.25], "metrics": {"loss": 0.31}, "settings": {"lr": 0.0005}},
}
PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "step": {"type": "integer"},
    },
}


class PatchDocument(BaseModel):
    """What a PATCH changes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    optimizer: dict[str, Any] | None = None
    labels: dict[str, str] | None = Field(None, max_length=64)


def patch(raw: Any) -> PatchDocument:
    """Check a PATCH.

    Raises:
        InvalidRequest: with the first fault's place.

    """
    try:
        return PatchDocument.model_validate(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InvalidRequest(f"{where or 'body'}: {fault['msg']}", path=where) from None


def summary(head: Head) -> dict[str, Any]:
    """Return one line of the list."""
    return {
        "id": head.spec.id,
        "name": head.spec.name,
        "step": head.step,
        "optimizer": head.settings.get("name"),
        "parameters": head.spec.layout.size,
        "dtype": head.spec.dtype,
        "durability": head.spec.durability,
        "labels": head.spec.labels,
        "created_at": head.spec.created_at,
    }


def _responses(status: int, content: dict[str, Any] | None, said: str) -> dict[int | str, dict[str, Any]]:
    problem = {"description": "A problem document (RFC 9457)", "content": {headers.PROBLEM: {"schema": PROBLEM_SCHEMA}}}
    good: dict[str, Any] = {"description": said}
    if content is not None:
        good["content"] = content
    return {status: good, "4XX": problem, "503": problem}


_TENSORS = {headers.OCTETS: BINARY, headers.SAFETENSORS: BINARY}
_OBJECT = {headers.JSON: {"schema": {"type": "object"}}}
SESSION = _responses(200, _OBJECT, "the session")
PAGE = _responses(200, _OBJECT, "a page of sessions")
EMPTY = _responses(204, None, "done")
PARAMETERS = _responses(200, _OBJECT | _TENSORS, "the parameters")
STEPPED = _responses(200, _OBJECT | _TENSORS, "the parameters after the step")
STATE = _responses(200, {headers.SAFETENSORS: BINARY}, "the state")

_HEADERS = [
    {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": "the chain at step n-1"},
    {"name": headers.DTYPE, "in": "header", "schema": {"enum": ["float16", "bfloat16", "float32", "float64"]}},
    {"name": headers.SETTINGS, "in": "header", "schema": {"type": "string"}, "description": "JSON"},
    {"name": headers.METRICS, "in": "header", "schema": {"type": "string"}, "description": "JSON"},
]


def _key(required: bool) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 255}
    return {"name": headers.IDEMPOTENCY, "in": "header", "required": required, "schema": schema}


_STEP_BODY = {"required": True, "content": {headers.JSON: GRADIENT_JSON, **_TENSORS}}
CREATE: dict[str, Any] = {
    "parameters": [_key(required=False)],
    "requestBody": {
        "required": True,
        "content": {
            headers.JSON: {"schema": CreateDocument.model_json_schema(), "example": {"parameters": [1.0, 2.0]}},
            headers.SAFETENSORS: BINARY,
        },
    },
}
PATCH: dict[str, Any] = {
    "requestBody": {"required": True, "content": {headers.JSON: {"schema": PatchDocument.model_json_schema()}}}
}
TENSORS: dict[str, Any] = {
    "parameters": [_HEADERS[1]],
    "requestBody": {"required": True, "content": {headers.JSON: {"schema": {}}, **_TENSORS}},
}
GRADIENT: dict[str, Any] = {"parameters": _HEADERS, "requestBody": _STEP_BODY}
POSTED: dict[str, Any] = {"parameters": [*_HEADERS, _key(required=True)], "requestBody": _STEP_BODY}
