"""The server's settings: the command line wins over ``ADAMD_…`` in the environment, and both over defaults.

A setting's description says what it may be. The message about a wrong value quotes it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adamd.wire import channel
from adamd_service.device.choose import ASKED
from adamd_service.engine import Limits
from adamd_service.machine import memory

MIB = 1024 * 1024
MAX_GRPC_CALLS = 512  # gRPC calls at once
PREFIX = "ADAMD_"
CLIENTS = ("URL", "API_KEY")  # what the SDK reads, and the other commands
# What Kubernetes sets in every pod beside a service named adamd, or adamd-something.
KUBERNETES = re.compile(r"([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_ROOT = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")


def _data_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "adamd"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "adamd"


def _words(value: Any) -> Any:
    """Split the value of an environment variable at commas and spaces."""
    return tuple(re.findall(r"[^,\s]+", value)) if isinstance(value, str) else value


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin in ("*", "null"):
            raise ValueError(
                f"{origin} would let every web page change what is stored here; name the pages' origins instead"
            )
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin[:200]!r} is no origin; wanted scheme://host[:port], as in http://localhost:3000")
    return tuple(_written(origin) for origin in origins)


def _written(origin: str) -> str:
    """Return an origin as a browser writes it: lower case, without the scheme's own port."""
    origin = origin.lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "\0"))


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if _HOST.fullmatch(host) is None:
            raise ValueError(f"{host[:200]!r} is no host name; wanted one without scheme and port, as in adamd.local")
    return hosts


def _root_path(value: str) -> str:
    if _ROOT.fullmatch(value) is None:
        raise ValueError(f"{value[:200]!r} is no path; wanted one that a proxy puts before ours, as in /adamd")
    return value.rstrip("/")


def _bytes(value: Any) -> Any:
    """Read a size as people write it; a number is bytes. What it cannot read is refused by pydantic."""
    try:
        return TypeAdapter(ByteSize).validate_python(value) if isinstance(value, str) else value
    except ValidationError:
        return value


RATIO_IN_FILES = 1.5  # bytes of log by bytes of state: what it costs in time and on the disk is in docs/decisions
RATIO_IN_STORE = 4.0
PORT = "a port: a whole number from 0 to 65535, 0 for a free one"
SIZE = "a number of bytes, as in 2147483648, 2GB or 512MiB"
SECONDS = "seconds, more than 0"
COUNT = "a whole number, 1 or more"
SWITCH = "true or false"
ORIGINS = "origins of web pages, as in http://localhost:3000"
HOSTS = "host names, as in adamd.local"
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=1, description=SIZE)]
Seconds = Annotated[float, Field(gt=0, description=SECONDS)]


class ServerSettings(BaseSettings):
    """Every bound and address of a server. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    host: str = Field("127.0.0.1", description="an address of this machine")
    port: int = Field(8000, ge=0, le=65535, description=PORT)
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = Field(
        channel.DEFAULT_PORT, description=f"{PORT}, or off"
    )
    data_dir: Path = Field(default_factory=_data_dir, description="a directory")
    redis_url: SecretStr | None = Field(None, description="a store's URL, as in redis://localhost:6379")
    redis_url_file: Path | None = Field(None, description="a file that holds a store's URL")
    device: str = Field("auto", pattern=f"^{ASKED}$", description="auto, cpu, cuda, or cuda:N as in cuda:0")
    device_bytes: Size | None = Field(None, description=SIZE)
    fsync: Literal["always", "everysec"] = Field("always", description="always or everysec")
    bulk_dir: Path | None = Field(None, description="a directory")
    bulk: Literal["files", "store"] = Field("files", description="files or store")
    bulk_spare_bytes: Annotated[int, BeforeValidator(_bytes), Field(ge=0, description=SIZE)] = 1024 * MIB
    allow_lossy_store: bool = Field(False, description=SWITCH)
    store_trusted: bool = Field(False, description=SWITCH)
    store_timeout: Seconds = 10.0
    store_bytes: Size = Field(default_factory=lambda: max(256 * MIB, memory() // 2))
    max_sessions: int = Field(100_000, ge=1, description=COUNT)
    max_waiting: int = Field(1024, ge=1, description=COUNT)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")
    cors_origin: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_origins)] = Field(
        (), description=ORIGINS
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_hosts)] = Field(
        (), description=HOSTS
    )
    root_path: Annotated[str, AfterValidator(_root_path)] = Field("", description="a path, as in /adamd")

    max_body_bytes: Size = 2048 * MIB
    in_flight_bytes: Size = Field(default_factory=lambda: max(512 * MIB, memory() // 4))
    hot_bytes: Size = Field(default_factory=lambda: max(256 * MIB, memory() // 2))
    memory_session_bytes: Size = Field(default_factory=lambda: max(256 * MIB, memory() // 4))
    idle_buffer_bytes: Annotated[int, BeforeValidator(_bytes), Field(ge=0, description=SIZE)] = 128 * MIB
    upload_gap: Seconds = 30.0
    shutdown_grace: Seconds = 30.0
    threads: int = Field(32, ge=2, le=256, description="a whole number from 2 to 256")
    snapshot_ratio: float | None = Field(None, gt=0, description="a number above 0")
    snapshot_records: int = Field(1024, ge=1, description=COUNT)
    snapshot_pace: Annotated[float, BeforeValidator(_bytes), Field(gt=0, description=f"{SIZE}, a second")] = 128.0 * MIB
    # As many as `CALLS`, and as messages fit into the bytes in flight.
    grpc_calls: int | None = Field(None, ge=1, description=COUNT)
    grpc_streams: int = Field(128, ge=1, description=COUNT)

    @property
    def bulk_in_files(self) -> bool:
        """Whether new bulk goes into files: beside the private store, or in the directory that is named."""
        return self.bulk == "files" and (self.store_is_private or self.bulk_dir is not None)

    @property
    def store_is_private(self) -> bool:
        """Whether the server starts a store of its own."""
        return self.redis_url is None and self.redis_url_file is None

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
            snapshot_ratio=self.snapshot_ratio or (RATIO_IN_FILES if self.bulk_in_files else RATIO_IN_STORE),
            snapshot_records=self.snapshot_records,
            snapshot_pace=self.snapshot_pace,
            calls=self.grpc_calls or max(1, min(MAX_GRPC_CALLS, self.in_flight_bytes // channel.MAX_MESSAGE)),
            streams=self.grpc_streams,
            sessions=self.max_sessions,
            waiting=self.max_waiting,
            store=self.store_bytes if self.redis_url is None else None,
            bulk_spare=self.bulk_spare_bytes if self.bulk_in_files else None,
        )


def refused(error: ValidationError, options: Collection[str]) -> str:
    """Say what is wrong: the option or variable, its value, what is wanted. ``options``: those of the command line."""
    return "; ".join(dict.fromkeys(_refused(fault, options) for fault in error.errors(include_url=False)))


def _refused(fault: ErrorDetails, options: Collection[str]) -> str:
    name = str(fault["loc"][0])
    field = ServerSettings.model_fields[name]
    where = f"--{name.replace('_', '-')}" if name in options else f"{PREFIX}{name.upper()}"
    own = fault.get("ctx", {}).get("error")  # of a validator here, in its own words
    if isinstance(own, ValueError):
        return f"{where}: {own}"
    value = "(hidden)" if name == "redis_url" else str(fault["input"])
    message = f"{where} is {value[:200]!r}; wanted {field.description}"
    if name == "port" and value.startswith("tcp://"):
        message += (
            ". Kubernetes sets this variable where a service is named adamd: "
            "give the pod enableServiceLinks: false, or the service another name"
        )
    return message


def unknown(environ: Collection[str]) -> list[str]:
    """Return a warning for each variable ``ADAMD_…`` that no program of adamd reads, with the one probably meant.

    An API key is told too: only clients send it. The others are not refused: a variable may belong to a newer version,
    or to another program.
    """
    names = sorted({*CLIENTS, *(name.upper() for name in ServerSettings.model_fields)})
    lines = []
    for name in sorted(environ):
        prefix, own = name[: len(PREFIX)].upper(), name[len(PREFIX) :].upper()
        if prefix == PREFIX and own == "API_KEY":
            lines.append(f"{name} is set, but this server checks no key: whoever reaches its ports may use it")
        if prefix != PREFIX or own in names or KUBERNETES.fullmatch(own):
            continue
        near = get_close_matches(own[:100], names, n=1)
        hint = (
            f"did you mean {PREFIX}{near[0]}?" if near else "adamd serve --help and docs/running-a-server.md list them"
        )
        lines.append(f"the environment variable {name[:100]} is not known and does nothing; {hint}")
    return lines
