"""The parts of the OpenAPI document about rounds: settings, headers, tasks, documents, events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamd.wire import headers
from adamd_service.http.api.openapi import (
    HEADERS,
    SENT,
    TENSORS_JSON,
    TEXT,
    Responses,
    header,
    object_of,
    responses,
)

NUMBER = {"type": "integer", "minimum": 1, "maximum": headers.MAX_STEP}
CLIENT = {"type": "string", "pattern": f"^{headers.CLIENT_PATTERN}$"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBERS = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
_MAYBE = {"type": ["number", "null"]}
_MOMENT = {"type": ["string", "null"], "format": "date-time"}
_OBJECT = {"type": "object"}
_STEP = {headers.STEP: header("the session's step", {"type": "integer"})}
_BESIDE_STEPS = ("Adamd-Answer-Dtype", headers.SETTINGS, "Prefer")  # headers of steps that contributions do not have

_TASK = object_of(
    {
        "kind": {"enum": ["train", "evaluate", "stop"], "description": "stop: the last round is over"},
        "round": NUMBER,
        "base_step": _COUNT | {"description": "train from, or evaluate, the parameters at this step"},
        "selected": {"type": ["boolean", "null"], "description": "whether this client is asked; null: nobody asked"},
        "contributed": {"type": "boolean", "description": "its contribution to this round is there"},
        "config": _OBJECT | {"description": "of the owner, fixed when the round opened"},
        "deadline": _MOMENT | {"description": "null: none, or no contribution has come yet"},
        "received": _COUNT,
        "wanted": _COUNT,
        "private": {"type": "array", "items": TEXT, "description": "tensors that stay with the client"},
    }
)
_CONTRIBUTED = object_of(
    {
        "outcome": {"enum": ["accepted", "duplicate"]},
        "round": NUMBER,
        "received": _COUNT,
        "wanted": _COUNT,
        "step": _COUNT | {"description": "the session's"},
    }
)
_CONTRIBUTION = object_of(
    {
        "client": CLIENT,
        "num_examples": {"type": "number"},
        "metrics": _NUMBERS,
        "weight": _MAYBE | {"description": "of all that counted"},
        "norm": _MAYBE,
        "clipped": {"type": "boolean"},
        "staleness": _COUNT,
        "counted": {"type": ["boolean", "null"], "description": "null while the round is open"},
        "reason": {"type": ["string", "null"], "description": "why it did not count"},
    }
)
_EVALUATION = object_of({"num_examples": {"type": "number"}, "clients": _COUNT, "metrics": _NUMBERS})
_LEFT_OUT = object_of({"contributions": _COUNT, "metrics": _COUNT, "names": _COUNT})
_FAILURE = object_of({"code": TEXT, "detail": TEXT})
_ROUND = object_of(
    {
        "round": NUMBER,
        "state": {"enum": ["open", "overdue", "closed"]},
        "base_step": _COUNT,
        "opened_at": _MOMENT,
        "deadline": _MOMENT,
        "closed_at": _MOMENT,
        "closed_by": {"enum": ["quorum", "deadline", "hand", None]},
        "received": _COUNT,
        "wanted": _COUNT,
        "config": _OBJECT,
        "metrics": _NUMBERS | {"description": "of the contributions, weighted by num_examples"},
        "evaluation": {
            "anyOf": [_EVALUATION, {"type": "null"}],
            "description": "of the parameters at base_step, weighted by num_examples",
        },
        "contributions": {"type": "array", "items": _CONTRIBUTION, "description": "by client"},
        "epsilon": _MAYBE | {"description": "spent up to and with this round"},
        "step": {"type": ["integer", "null"], "description": "that it made"},
        "left_out": _LEFT_OUT | {"description": "what is not told, so that it stays within 1 MiB"},
        "failure": {"anyOf": [_FAILURE, {"type": "null"}], "description": "why its last try was begun again"},
    }
)


def _good(content: Mapping[str, Any] | None, words: str, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    good: dict[str, Any] = {"description": words}
    return good | ({"content": content} if content else {}) | ({"headers": told} if told else {})


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {headers.JSON: {"schema": schema}}


def _taken(words: str) -> Responses:
    return responses(
        {
            202: _good(_json(_CONTRIBUTED), f"{words} is durable", _STEP),
            200: _good(_json(_CONTRIBUTED), "the very same was there already", _STEP),
        }
    )


_CSV = {headers.CSV: {"schema": TEXT}}
_PAGE = object_of({"rounds": {"type": "array", "items": _ROUND}, "next_page_token": {"type": ["string", "null"]}})
TASK = responses(
    {
        200: _good(_json(_TASK), "the task", _STEP | {"ETag": header("the chain at base_step")}),
        204: _good(None, "nothing for this client came in wait_s", {"Retry-After": header("0", {"type": "integer"})}),
    }
)
CONTRIBUTED = _taken("the contribution")
EVALUATED = _taken("the evaluation")
ROUND = responses({200: _good(_json(_ROUND) | _CSV, "the round")})
ROUNDS = responses(
    {200: _good(_json(_PAGE) | _CSV, "a page of rounds", {"Link": header("CSV: the next page, where there is one")})}
)
CLOSED = responses({200: _good(_json(_ROUND), "the round as it is now")})
EVENTS = responses({200: _good({headers.EVENTS: {"schema": TEXT}}, "events, as they come")})

_NAMED_JSON = {
    "schema": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": dict.fromkeys(headers.KINDS, TENSORS_JSON) | {"metrics": _NUMBERS},
        "description": "the vector under the name of its Adamd-Kind",
    },
    "example": {"delta": [0.5, -0.25], "metrics": {"loss": 0.31}},
}
CONTRIBUTE: dict[str, Any] = {
    "parameters": [
        *(one for one in HEADERS if one["name"] not in _BESIDE_STEPS),
        {
            "name": headers.KIND,
            "in": "header",
            "schema": {"enum": list(headers.KINDS), "default": headers.KINDS[0]},
            "description": "what the numbers are: trained - pulled, trained, or a gradient",
        },
        {
            "name": headers.NUM_EXAMPLES,
            "in": "header",
            "schema": {"type": "number", "exclusiveMinimum": 0, "default": 1},
            "description": "that it was made from: its weight",
        },
    ],
    "requestBody": {"required": True, "content": {**SENT, headers.JSON: _NAMED_JSON}},
}
EVALUATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            headers.JSON: {
                "schema": {
                    "type": "object",
                    "required": ["num_examples", "metrics"],
                    "additionalProperties": False,
                    "properties": {
                        "num_examples": {"type": "number", "exclusiveMinimum": 0},
                        "metrics": _NUMBERS | {"minProperties": 1},
                    },
                },
                "example": {"num_examples": 50, "metrics": {"accuracy": 0.9}},
            }
        },
    }
}
