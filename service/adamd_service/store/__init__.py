"""The store: sessions in Redis or Valkey. One implementation of the protocol, embedded by default."""

from adamd_service.store.bulk.protocol import Staging
from adamd_service.store.embedded.server import EmbeddedStore
from adamd_service.store.outcomes import (
    ChunkMissing,
    Created,
    HeadVersion,
    Repeated,
    StoreLoading,
    StoreRefused,
    Taken,
    UnknownOutcome,
)
from adamd_service.store.read_ahead import Reader, is_quick
from adamd_service.store.redis_store import RedisStore

__all__ = [
    "ChunkMissing",
    "Created",
    "EmbeddedStore",
    "HeadVersion",
    "Reader",
    "RedisStore",
    "Repeated",
    "Staging",
    "StoreLoading",
    "StoreRefused",
    "Taken",
    "UnknownOutcome",
    "is_quick",
]
