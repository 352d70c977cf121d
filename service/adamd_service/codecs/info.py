"""What a server tells about itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from adamd.wire import channel
from adamd.wire.dtypes import SESSION_DTYPES
from adamd.wire.encodings import ENCODINGS
from adamd_service.engine import Engine
from adamd_service.optim import FAMILY, NUMERICS_ID, settings_of

MAX_JSON = 32 * 1024 * 1024  # programs send bytes
BESIDE: dict[str, Any] = {"stop": {}, "keep_best": False}  # settings of every session, whatever its optimizer


def server_info(engine: Engine) -> dict[str, Any]:
    """Return the version, the numerics, the bounds, and what the store promises."""
    limits = engine.limits
    return {
        "version": version("adamd"),
        "replica": engine.replica,
        "numerics": NUMERICS_ID,
        "device": engine.device.described,
        "store": engine.store.promise,
        "limits": {
            "body_bytes": limits.body,
            "json_bytes": min(MAX_JSON, limits.body),
            "in_flight_bytes": limits.in_flight,
            "sessions": limits.sessions,
            "store_bytes": limits.store,
        },
        "grpc": {
            "message_bytes": channel.MAX_MESSAGE,
            "unary_bytes": channel.UNARY,
            "streams": limits.streams,
            "calls": limits.calls,
            "least_ping_seconds": channel.LEAST_PING,
        },
        "dtypes": list(SESSION_DTYPES),
        "optimizers": list(FAMILY),
        "settings": {name: {**settings_of(optimizer), **BESIDE} for name, optimizer in FAMILY.items()},
        "encodings": list(ENCODINGS),
    }
