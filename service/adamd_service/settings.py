"""The server's settings: the command line over ``ADAMD_…`` in the environment over defaults."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adamd.wire import channel
from adamd_service.device.choose import ASKED
from adamd_service.engine import Limits

MIB = 1024 * 1024
CALLS = 512  # gRPC calls at once
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _data_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "adamd"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "adamd"


def _words(given: Any) -> Any:
    """Split what one environment variable holds: words, with commas or spaces between."""
    return tuple(re.findall(r"[^,\s]+", given)) if isinstance(given, str) else given


def _origins(given: tuple[str, ...]) -> tuple[str, ...]:
    for origin in given:
        if origin in ("*", "null"):
            raise ValueError(
                f"{origin} would let every web page change what is stored here; name the pages' origins instead"
            )
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin[:200]!r} is no origin; wanted scheme://host[:port], as in http://localhost:3000")
    return tuple(_written(origin) for origin in given)


def _written(origin: str) -> str:
    """Return an origin as a browser writes it: lower case, without the scheme's own port."""
    origin = origin.lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "\0"))


def _hosts(given: tuple[str, ...]) -> tuple[str, ...]:
    for host in given:
        if _HOST.fullmatch(host) is None:
            raise ValueError(f"{host[:200]!r} is no host name; wanted one without scheme and port, as in adamd.local")
    return given


class ServerSettings(BaseSettings):
    """Every bound and address of a server. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="ADAMD_", extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = channel.DEFAULT_PORT
    data_dir: Path = Field(default_factory=_data_dir)
    redis_url: str | None = None
    device: str = Field("auto", pattern=f"^{ASKED}$")
    device_bytes: int | None = Field(None, ge=1)
    fsync: Literal["always", "everysec"] = "always"
    allow_lossy_store: bool = False
    store_trusted: bool = False
    store_timeout: float = Field(10.0, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    cors_origin: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_origins)] = ()
    allowed_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_hosts)] = ()

    max_body_bytes: int = Field(2048 * MIB, ge=1)
    in_flight_bytes: int = Field(default_factory=lambda: max(512 * MIB, _physical() // 4), ge=1)
    hot_bytes: int = Field(default_factory=lambda: max(256 * MIB, _physical() // 2), ge=1)
    memory_session_bytes: int = Field(default_factory=lambda: max(256 * MIB, _physical() // 4), ge=1)
    idle_buffer_bytes: int = Field(128 * MIB, ge=0)
    upload_gap: float = Field(30.0, gt=0)
    shutdown_grace: float = Field(30.0, gt=0)
    threads: int = Field(32, ge=2, le=256)
    snapshot_ratio: float = Field(4.0, gt=0)
    snapshot_records: int = Field(1024, ge=1)
    snapshot_pace: float = Field(128.0 * MIB, gt=0)
    grpc_calls: int | None = Field(None, ge=1)  # as many as `CALLS`, and as messages fit into the bytes in flight
    grpc_streams: int = Field(128, ge=1)

    def limits(self) -> Limits:
        """Return the bounds that the engine upholds."""
        return Limits(
            body=self.max_body_bytes,
            in_flight=self.in_flight_bytes,
            hot=self.hot_bytes,
            memory_sessions=self.memory_session_bytes,
            idle_buffers=self.idle_buffer_bytes,
            upload_gap=self.upload_gap,
            threads=self.threads,
            kernels=os.cpu_count() or 1,
            snapshot_ratio=self.snapshot_ratio,
            snapshot_records=self.snapshot_records,
            snapshot_pace=self.snapshot_pace,
            calls=self.grpc_calls or max(1, min(CALLS, self.in_flight_bytes // channel.MAX_MESSAGE)),
            streams=self.grpc_streams,
        )
