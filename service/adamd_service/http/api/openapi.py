"""The parts of the OpenAPI document that FastAPI cannot derive: streamed bodies, headers, settings and responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamd.wire import headers
from adamd.wire.dtypes import ITEMSIZE
from adamd.wire.encodings import ENCODINGS, RAW
from adamd.wire.setting_aliases import ALIASES, TAKEN_BY
from adamd_service.codecs.bodies import CreateDocument
from adamd_service.codecs.checks import AT, MAX_LABEL_NAME
from adamd_service.codecs.documents import PatchDocument
from adamd_service.http.api.openapi_round_settings import rounds_schema
from adamd_service.optim import FAMILY, GROUPED, KINDS, SCHEDULES, WANTED, settings_of

NOT_NEGATIVE = {"type": "number", "minimum": 0}
BETA = NOT_NEGATIVE | {"exclusiveMaximum": 1}
SWITCH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 1}
BOUND = {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}, {"type": "null"}]}
# The schemas of settings that are not a number of 0 or more.
SHAPES: Mapping[str, dict[str, Any]] = {
    "betas": {"type": "array", "items": BETA, "minItems": 2, "maxItems": 2},
    "eps_form": {"type": "string", "enum": ["outside", "hat"]},
    "form": {"type": "string", "enum": ["paper", "torch", "flower"]},
    "alpha": BETA,
    "ema_decay": BETA,
    "gradient_scale": {"type": "number", "exclusiveMinimum": 0},
    "warmup_steps": {"type": "integer", "minimum": 0},
    "schedule": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "enum": list(SCHEDULES)}},
    },
    "lower": BOUND,
    "upper": BOUND,
}
STOP = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "max_steps": COUNT,
        "gradient_norm": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "relative_loss": {
            "type": "object",
            "additionalProperties": False,
            "required": ["window"],
            "properties": {"window": COUNT, "tolerance": BETA},
        },
        "target_loss": {"type": "number"},
    },
}


def settings_schema() -> dict[str, Any]:
    """Return the schema of ``optimizer``: the settings of the whole family, each with its default and who has it.

    The defaults are words: a generated client would send a ``default`` to optimizers that have no such setting.
    """
    settings = {name: _shape(name) | {"description": _words(name)} for name in KINDS}
    aliases = {
        alias: (NOT_NEGATIVE if place is None else BETA) | {"description": _alias_words(setting, place)}
        for alias, (setting, place) in ALIASES.items()
    }
    groups = {"tensors": {"type": "array", "items": {"type": "string"}, "description": WANTED["tensors"]}}
    groups |= {name: settings[name] for name in KINDS if name in GROUPED} | aliases
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "enum": list(FAMILY), "description": "which optimizer; default adam"},
            **settings,
            **aliases,
            "stop": STOP | {"description": "rules that advise when to stop; default none"},
            "keep_best": SWITCH | {"description": "keep the parameters of the lowest loss; default false"},
            "groups": {
                "type": "array",
                "description": f"settings of some tensors: {WANTED['groups']}",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["tensors"],
                    "properties": groups,
                },
            },
        },
    }


def _shape(name: str) -> dict[str, Any]:
    return SHAPES.get(name) or (SWITCH if KINDS[name][0] is bool else NOT_NEGATIVE)


def _words(name: str) -> str:
    """Say what a setting may be, what it is where it is left out, and which optimizers have it, if not all do."""
    settings_by_optimizer = {optimizer: settings_of(FAMILY[optimizer]) for optimizer in FAMILY}
    defaults: dict[str, list[str]] = {}
    for optimizer, settings in settings_by_optimizer.items():
        if name in settings:
            defaults.setdefault(_value(settings[name]), []).append(optimizer)
    everywhere = len(defaults) == 1 and len(*defaults.values()) == len(FAMILY)
    words = [value if everywhere else f"{value} ({', '.join(who)})" for value, who in defaults.items()]
    return f"{WANTED[name]}; default {', '.join(words)}"


def _alias_words(setting: str, place: int | None) -> str:
    """Say what an alias stands for, and which optimizers take it."""
    return f"another name of {setting if place is None else f'{setting}[{place}]'} ({', '.join(TAKEN_BY)})"


def _value(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_value, default))}]"
    return str(default).lower() if isinstance(default, bool | int | float) else str(default)


BINARY = {"schema": {"type": "string", "format": "binary"}}
REF = "^[A-Za-z0-9-][A-Za-z0-9._-]{0,127}$"
NUMBER = {"type": "integer", "minimum": 1, "maximum": headers.MAX_STEP}
TENSORS_JSON = {
    "description": "a number, a nested list of numbers, or an object of them",
    "anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}],
}
GRADIENT_JSON = {
    "schema": {
        "type": "object",
        "required": ["gradient"],
        "additionalProperties": False,
        "properties": {
            "gradient": TENSORS_JSON
            | {"description": "in the shape of the parameters; a tensor that is null is left out"},
            "metrics": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "settings": settings_schema(),
        },
    },
    "example": {"gradient": [0.5, -0.25], "metrics": {"loss": 0.31}, "settings": {"lr": 0.0005}},
}
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "step": {"type": "integer", "description": "the session's, where one is known"},
        "path": {"type": "string", "description": "of what is wrong: a member, a header, a parameter"},
        "index": {"type": "integer", "description": "bad_gradient: the first such element's"},
        "applied": {"description": 'step_superseded: true, false or "unknown": whether this gradient counts'},
        "id": {"type": "string", "description": "session_exists: the session that has the name"},
        "round": {"type": "integer", "description": "round_closed: the session's current round"},
        "counted": {"type": ["boolean", "null"], "description": "round_closed: this client's contribution counted"},
    },
}


def header(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the description of a header; a text, if no schema is given."""
    return {"description": description, "schema": schema or {"type": "string"}}


_PROBLEM = {
    "description": "A problem document (RFC 9457) with a stable code",
    "content": {headers.PROBLEM: {"schema": PROBLEM_SCHEMA}},
    "headers": {
        headers.STEP: header("the session's current step, where a session is known", {"type": "integer"}),
        "Retry-After": header("seconds, where trying again makes sense", {"type": "integer"}),
    },
}
_STANDING = {
    headers.STEP: header("the session's step", {"type": "integer"}),
    "ETag": header("the chain: which history this step belongs to"),
    headers.DURABILITY: header("what happens to it when the process ends", {"enum": ["committed", "memory"]}),
    headers.REPLAYED: header("true where this very request was answered before", {"enum": ["true"]}),
}
_STEPPED = _STANDING | {
    headers.DIVERGED: header("true where a parameter or a moment is no longer finite", {"enum": ["true"]}),
    headers.DTYPE: header("the dtype of an octet-stream's parameters", {"enum": list(ITEMSIZE)}),
    headers.OVERFLOWED: header("how many finite parameters Adamd-Answer-Dtype made infinite", {"type": "integer"}),
    headers.STOP: header("the rule of optimizer.stop that holds"),
    headers.WARNING: header("why the session stalls silently, with the eps that would help"),
    headers.APPLIED_STEP: header("a repeated POST: the step that its gradient was applied as", {"type": "integer"}),
}

Responses = dict[int | str, dict[str, Any]]


def _good(
    content: dict[str, Any] | None, description: str, response_headers: dict[str, Any] | None = None
) -> dict[str, Any]:
    good: dict[str, Any] = {"description": description}
    if content is not None:
        good["content"] = content
    if response_headers is not None:
        good["headers"] = response_headers
    return good


def responses(good: Responses) -> Responses:
    """Return the good answers of a call beside its refusals."""
    return good | {"4XX": _PROBLEM, "503": _PROBLEM}


# Code generators that keep a single media type should keep octet-stream. They take the first of a response, and the
# last binary one of a request (tests/languages runs openapi-python-client).
_TENSORS = {headers.OCTETS: BINARY, headers.SAFETENSORS: BINARY}
SENT = {headers.SAFETENSORS: BINARY, headers.OCTETS: BINARY}
_NUMBERED = {
    "type": "object",
    "required": ["step", "parameters"],
    "properties": {
        "step": {"type": "integer"},
        "parameters": {"description": "in the shape of the creation; null where the session has diverged"},
        "diverged": {"const": True, "description": "parameters are no longer finite, and JSON has no NaN"},
    },
}
_LAYOUT = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "shape"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 512},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    },
}
TEXT: dict[str, Any] = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE = {"type": ["number", "null"]}
_IDENTITY = {
    "id": TEXT,
    "name": {"type": ["string", "null"]},
    "step": _COUNT,
    "dtype": {"enum": ["float32", "float64"]},
    "durability": {"enum": ["committed", "memory"]},
    "labels": TEXTS,
    "created_at": {"type": "number", "description": "Unix seconds"},
}
_WARNING = {
    "type": "object",
    "required": ["code", "detail", "eps"],
    "properties": {
        "code": {
            "type": "string",
            "description": "gradient_below_eps, second_moment_underflow; of a creation: sorted_by_name, where the "
            "tensors of its body came in another order than that of layout",
        },
        "detail": TEXT,
        "eps": _MAYBE | {"description": "one that would help, where there is one"},
    },
}
_PROGRESS = {
    "type": "object",
    "description": "losses and norms so far; each where it is known",
    "properties": {
        "loss": {"type": "number", "description": "the last"},
        "lowest": {"type": "number"},
        "lowest_step": _COUNT | {"description": "of the parameters that have the lowest"},
        "reference": {"type": "number", "description": "of the rule relative_loss"},
        "stale": _COUNT | {"description": "losses since the reference"},
        "norm": {"type": "number"},
        "first_norm": {"type": "number"},
        "stalls": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "what warnings are made of",
        },
    },
}


def object_of(members: dict[str, Any], *optional: str) -> dict[str, Any]:
    """Return the schema of an object that has all these members, but perhaps for some."""
    required = [name for name in members if name not in optional]
    return {"type": "object", "required": required, "properties": members}


_SESSION_SCHEMA = object_of(
    {
        **_IDENTITY,
        "chain": TEXT | {"description": "names the history: 64 hexadecimal digits"},
        "incarnation": TEXT | {"description": "random at creation: no two histories share it"},
        "optimizer": {"type": "object", "description": "all its settings"},
        "lr": {"type": "number", "minimum": 0, "description": "of the next step, by the schedule"},
        "settings_revision": _COUNT | {"description": "counts the changes of settings"},
        "layout": _LAYOUT,
        "vector": {"type": "boolean", "description": "it was made from one plain array"},
        "parameters_missing": {"type": "boolean", "description": "PUT …/parameters before step 1"},
        "diverged": {"type": "boolean", "description": "a parameter or a moment is no longer finite"},
        "stop": {"type": ["string", "null"], "description": "the rule of optimizer.stop that holds"},
        "warnings": {"type": "array", "items": _WARNING},
        "progress": _PROGRESS,
        "snapshot_step": {"type": ["integer", "null"], "description": "of the last snapshot"},
        "metrics": {
            "type": "object",
            "additionalProperties": _MAYBE,
            "description": 'GET: what the last step carried, as {"loss": 0.31}',
        },
        "rounds": {"type": ["object", "null"], "description": "their settings; null: the session takes plain steps"},
        "round": {
            "type": "object",
            "required": ["round", "received", "wanted"],
            "properties": {"round": COUNT, "received": _COUNT, "wanted": _COUNT},
            "description": "GET, with rounds: the open one",
        },
    },
    "metrics",
    "round",
)
_SUMMARY = {
    **_IDENTITY,
    "step": {"type": ["integer", "null"], "minimum": 0, "description": "null, like the rest, where it is damaged"},
    "dtype": {"enum": ["float32", "float64", None]},
    "durability": {"enum": ["committed", "memory", None]},
    "optimizer": {"type": ["string", "null"]},
    "parameters": {"type": ["integer", "null"], "minimum": 0, "description": "elements, of all tensors together"},
    "damaged": TEXT | {"description": "why this session cannot be used; it can be deleted"},
}
_SESSION = {headers.JSON: {"schema": _SESSION_SCHEMA}}
_LISTED = {
    headers.JSON: {
        "schema": object_of(
            {
                "sessions": {"type": "array", "items": object_of(_SUMMARY, "damaged")},
                "next_page_token": {"type": ["string", "null"]},
            }
        )
    }
}
_NAMES = {"type": "array", "items": TEXT}
INFO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the server",
        "content": {
            headers.JSON: {
                "schema": object_of(
                    {
                        **dict.fromkeys(("version", "replica", "numerics", "device"), TEXT),
                        "store": TEXT | {"description": "its promise, in plain words"},
                        "limits": object_of(
                            dict.fromkeys(
                                ("body_bytes", "json_bytes", "in_flight_bytes", "sessions", "waiting"), _COUNT
                            )
                            | {
                                "store_bytes": {
                                    "type": ["integer", "null"],
                                    "description": "what the private store may hold; null: the store is another's",
                                },
                                "bulk_spare_bytes": {
                                    "type": ["integer", "null"],
                                    "description": "free extents that are kept; null: large vectors lie in the store",
                                },
                            }
                        ),
                        "grpc": object_of(
                            dict.fromkeys(("message_bytes", "unary_bytes", "streams", "calls"), _COUNT)
                            | {"least_ping_seconds": {"type": "number"}}
                        ),
                        **dict.fromkeys(("dtypes", "optimizers", "encodings"), _NAMES),
                        "settings": {
                            "type": "object",
                            "additionalProperties": {"type": "object"},
                            "description": "of each optimizer, with their defaults",
                        },
                    }
                )
            }
        },
    }
}
_PARAMETERS = {**_TENSORS, headers.JSON: {"schema": _NUMBERED}}
SESSION = responses({200: _good(_SESSION, "the session", _STANDING)})
CREATED = responses(
    {201: _good(_SESSION, "the session", _STANDING | {"Location": header("the session's own address")})}
)
PAGE = responses({200: _good(_LISTED, "a page of sessions")})
EMPTY = responses({204: _good(None, "done")})
_ANSWER = {
    "name": headers.ANSWER_DTYPE,
    "in": "header",
    "schema": {"enum": list(ITEMSIZE)},
    "description": "round the answer's parameters to this (not in JSON), to nearest, ties to even",
}
_AT = {
    "name": "at",
    "in": "query",
    "schema": {"enum": list(AT)},
    "description": "average: the parameters to evaluate, where the optimizer has others (schedule_free_adamw); ema: "
    "their moving average, where the session keeps one (ema_decay); "
    "best: those of the lowest loss, where keep_best is true (progress.lowest_step says of which step)",
}
READ: dict[str, Any] = {"parameters": [_ANSWER, _AT]}
PARAMETERS = responses(
    {
        200: _good(_PARAMETERS, "the parameters", _STEPPED),
        204: _good(None, "the session has not made min_step in wait_s", {"Retry-After": header("0", COUNT)}),
    }
)
STEPPED = responses(
    {
        200: _good(_PARAMETERS, "the parameters after the step", _STEPPED),
        204: _good(None, "the step counts; Prefer: return=minimal asked for no parameters", _STEPPED),
    }
)
STATE = responses({200: _good({headers.SAFETENSORS: BINARY}, "the state", _STANDING)})

_TAG = '(W/)?"[!#-~]*"'
HEADERS = [
    {
        "name": "If-Match",
        "in": "header",
        "schema": {"type": "string", "pattern": rf"^(\*|{_TAG}(, *{_TAG})*)$"},
        "description": "the ETag that the answer of step n-1 had, as it came: the history that this step builds on. "
        "One that does not match is answered 412, and a weak one never matches; of a list one has to; * matches any",
    },
    {"name": headers.DTYPE, "in": "header", "schema": {"enum": list(ITEMSIZE)}},
    {
        "name": headers.ENCODING,
        "in": "header",
        "schema": {"enum": list(ENCODINGS), "default": RAW},
        "description": "how an octet-stream's gradient is written",
    },
    _ANSWER,
    {"name": headers.SETTINGS, "in": "header", "schema": {"type": "string"}, "description": "JSON"},
    {"name": headers.METRICS, "in": "header", "schema": {"type": "string"}, "description": "JSON"},
    {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "description": "return=minimal: no parameters"},
]


def _key(required: bool) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"}
    return {"name": headers.IDEMPOTENCY, "in": "header", "required": required, "schema": schema}


def _create_schema() -> dict[str, Any]:
    schema = CreateDocument.model_json_schema()
    for name in ("state", "vector"):  # they belong to an export, which is no JSON
        del schema["properties"][name]
    del schema["$defs"]
    schema["properties"]["layout"] = _LAYOUT | {
        "type": ["array", "null"],
        "description": "with a dtype, in the place of parameters; or beside an object of them: the tensors' order",
    }
    schema["properties"]["parameters"] = TENSORS_JSON
    schema["properties"]["optimizer"] = settings_schema()
    schema["properties"]["rounds"] = rounds_schema()
    schema["properties"]["labels"] |= {"propertyNames": {"minLength": 1, "maxLength": MAX_LABEL_NAME}}
    # Inside allOf: generators take an anyOf next to the properties for the whole schema.
    later = {"required": ["layout", "dtype"], "properties": {"layout": {"type": "array"}, "dtype": {"type": "string"}}}
    schema["allOf"] = [{"anyOf": [{"required": ["parameters"]}, later]}]
    return schema


def _patch_schema() -> dict[str, Any]:
    schema = PatchDocument.model_json_schema()
    schema["properties"]["optimizer"] = settings_schema()
    schema["properties"]["labels"] |= {"propertyNames": {"minLength": 1, "maxLength": MAX_LABEL_NAME}}
    return schema


_EXAMPLE = {"parameters": [1.0, 2.0], "optimizer": {"name": "adam", "lr": 0.1}}
_STEP_BODY = {"required": True, "content": {**SENT, headers.JSON: GRADIENT_JSON}}
CREATE: dict[str, Any] = {
    "parameters": [_key(required=False)],
    "requestBody": {
        "required": True,
        "content": {
            headers.JSON: {"schema": _create_schema(), "example": _EXAMPLE},
            headers.SAFETENSORS: BINARY,
        },
    },
}
MATCHED: dict[str, Any] = {
    "parameters": [HEADERS[0] | {"description": "the session's ETag: another one by now, and nothing changes (412)"}]
}
PATCH: dict[str, Any] = MATCHED | {
    "requestBody": {"required": True, "content": {headers.JSON: {"schema": _patch_schema()}}}
}
TENSORS: dict[str, Any] = {
    "parameters": [HEADERS[1]],
    "requestBody": {"required": True, "content": {**SENT, headers.JSON: {"schema": TENSORS_JSON}}},
}
GRADIENT: dict[str, Any] = {"parameters": [*HEADERS, _key(required=False)], "requestBody": _STEP_BODY}
_BASE = {
    "name": headers.BASE,
    "in": "header",
    "schema": {"type": "string", "pattern": "^[0-9]{1,16}(; ?chain=[0-9a-f]{64})?(; ?most=[0-9]{1,9})?$"},
    "description": "the step that the gradient was taken at, the chain of it, and how many steps may have come since",
}
POSTED: dict[str, Any] = {"parameters": [*HEADERS, _BASE, _key(required=True)], "requestBody": _STEP_BODY}
