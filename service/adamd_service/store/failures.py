"""What redis-py raises, in adamd's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import (
    AskError,
    ClusterError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)

from adamd.errors import Damaged, InternalError, StoreFull, StoreUnavailable

# Answers that say "not now" rather than "never": the store turns away a write that it may take later. redis-py takes
# the first word off those that it knows; Redis 6.2 puts those of a script's commands into the middle of its own text.
NOT_NOW = (ReadOnlyError, AskError, TryAgainError, ClusterError, MasterDownError)
WORDS = re.compile(r"\b(LOADING|READONLY|MISCONF|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|TRYAGAIN|BUSY|MOVED|ASK)\b")
FULL = re.compile(r"\bOOM\b")
NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|File too large")
# RedisClusterException is no RedisError: the cluster has no node to ask, or none that answers.
AWAY = (redis.ConnectionError, redis.TimeoutError, RedisClusterException, OSError)


@contextmanager
def translated() -> Iterator[None]:
    """Turn redis-py's errors into the error tree's.

    Raises:
        StoreFull: it has no memory left.
        StoreUnavailable: it does not answer, or not now.
        InternalError: it refuses what adamd asks.

    """
    try:
        yield
    except AWAY as error:
        raise away(error) from error
    except redis.RedisError as error:
        raise refused(error) from error


def away(error: Exception) -> StoreUnavailable:
    """Return what a store that gives no answer means."""
    return StoreUnavailable(f"the store does not answer: {error}", retry_after=1.0)


def refused(error: redis.RedisError) -> StoreFull | StoreUnavailable | InternalError:
    """Return what an answer of the store means that is an error: the store did not do what was asked."""
    said = str(error)
    if isinstance(error, OutOfMemoryError) or FULL.search(said):
        return StoreFull(
            "the store has no memory left; delete sessions, or enlarge it (ADAMD_STORE_BYTES for the private store, "
            "maxmemory for your own)",
            retry_after=5.0,
        )
    if NO_ROOM.search(said):
        return StoreFull(f"the store cannot write to its disk: {said}; delete sessions, or make room", retry_after=5.0)
    if not isinstance(error, ResponseError) or isinstance(error, NOT_NOW) or WORDS.search(said):
        return StoreUnavailable(f"the store cannot take this now: {said}", retry_after=1.0)
    if "WRONGTYPE" in said:
        return Damaged("a key in the store is of another type than adamd makes it (WRONGTYPE)")
    return InternalError(f"the store refused: {said}")


def not_begun(said: str) -> bool:
    """Say whether an answer that is an error came before a script wrote anything, so that it may be sent again."""
    return said.startswith(("NOSCRIPT ", "NOAUTH ")) or bool(WORDS.search(said) or FULL.search(said))
