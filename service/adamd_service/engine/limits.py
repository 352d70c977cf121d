"""The bounds of law 7."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound that the engine upholds; in bytes unless named otherwise."""

    body: int
    in_flight: int
    hot: int
    memory_sessions: int
    idle_buffers: int
    upload_gap: float  # seconds without a byte
    threads: int
    kernels: int
    snapshot_ratio: float
    snapshot_records: int
    snapshot_pace: float  # bytes a second
    calls: int = 512  # gRPC calls at once
    streams: int = 128  # of them on one connection
    sessions: int = 100_000
    store: int | None = None  # that the private store may hold; None: it is not ours
