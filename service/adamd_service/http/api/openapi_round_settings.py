"""The schema of the settings of a session's rounds, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamd_service.aggregation import settings as aggregation
from adamd_service.rounds import settings as rounds

_COUNT = {"type": "integer", "minimum": 1, "maximum": rounds.MOST_CONTRIBUTIONS}
_FEW = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": ["number", "null"], "exclusiveMinimum": 0}
_NAMED = {"anyOf": [{"type": "string"}, {"type": "object"}]}
_NAMES = {"type": "array", "items": {"type": "string", "minLength": 1}}
SHAPES: Mapping[str, dict[str, Any]] = {
    "mode": {"enum": ["sync", "buffered"]},
    "quorum": _COUNT,
    "min_contributions": _COUNT,
    "max_contributions": _COUNT,
    "deadline_s": _POSITIVE,
    "cohort": _FEW,
    "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": aggregation.MOST_WHOLE},
    "total": _FEW,
    "evaluate": _FEW,
    "config": {"type": "object"},
    "averaged": _NAMES,
    "carry": _NAMES,
    "private": _NAMES,
    "weighting": {"enum": ["num_examples", "equal"]},
    "max_weight": _POSITIVE,
    "clip_norm": _POSITIVE,
    "norm_filter": {"type": ["number", "null"], "exclusiveMinimum": 1},
    "max_staleness": {"type": ["integer", "null"], "minimum": 0},
    "aggregate": _NAMED,
    "staleness": _NAMED,
    "privacy": {"type": ["object", "null"]},
}


def rounds_schema() -> dict[str, Any]:
    """Return the schema of ``rounds`` in a creation; null is none, and the session takes plain steps."""
    words = {**aggregation.WANTED, **rounds.WANTED}
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "required": ["quorum"],
        "properties": {name: shape | {"description": words[name]} for name, shape in SHAPES.items()},
        "description": "the session takes contributions to rounds instead of steps; default none",
    }
