"""Problem documents (RFC 9457) that are fit to be sent: bounded, and real JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adamd.errors import AdamdError


def problem_document(error: AdamdError, longest: int) -> dict[str, Any]:
    """Return an error's document, its detail cut to ``longest`` characters."""
    document = error.problem()
    if len(error.detail) > longest:
        document["detail"] = f"{error.detail[:longest]}…"
    made: dict[str, Any] = _finite(document)
    return made


def _finite(value: Any) -> Any:
    """Never echo NaN into JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
