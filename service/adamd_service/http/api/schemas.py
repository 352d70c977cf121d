"""What an optimizer's settings may be, as JSON schema: made of what they are checked by, so that both say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamd_service.optim import FAMILY, GROUPED, KINDS, SCHEDULES, WANTED, settings_of

NUMBER = {"type": "number", "minimum": 0}
BETA = NUMBER | {"exclusiveMaximum": 1}
SWITCH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 1}
BOUND = {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}, {"type": "null"}]}
# Where it is not a number of 0 or more.
SHAPES: Mapping[str, dict[str, Any]] = {
    "betas": {"type": "array", "items": BETA, "minItems": 2, "maxItems": 2},
    "eps_form": {"type": "string", "enum": ["outside", "hat"]},
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
    told = {name: _shape(name) | {"description": _words(name)} for name in KINDS}
    groups = {"tensors": {"type": "array", "items": {"type": "string"}, "description": WANTED["tensors"]}}
    groups |= {name: told[name] for name in KINDS if name in GROUPED}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "enum": list(FAMILY), "description": "which optimizer; default adam"},
            **told,
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
    return SHAPES.get(name) or (SWITCH if KINDS[name][0] is bool else NUMBER)


def _words(name: str) -> str:
    """Say what a setting may be, what it is where it is left out, and which optimizers have it, if not all do."""
    had = {optimizer: settings_of(FAMILY[optimizer]) for optimizer in FAMILY}
    defaults: dict[str, list[str]] = {}
    for optimizer, settings in had.items():
        if name in settings:
            defaults.setdefault(_value(settings[name]), []).append(optimizer)
    everywhere = len(defaults) == 1 and len(*defaults.values()) == len(FAMILY)
    said = [value if everywhere else f"{value} ({', '.join(who)})" for value, who in defaults.items()]
    return f"{WANTED[name]}; default {', '.join(said)}"


def _value(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_value, default))}]"
    return str(default).lower() if isinstance(default, bool | int | float) else str(default)
