"""What redis-py raises, in adamd's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from adamd.errors import InternalError, StoreFull, StoreUnavailable

# Answers that say "not now" rather than "never": the store turns away a write that it may take later.
NOT_NOW = (
    "LOADING",
    "READONLY",
    "MISCONF",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
    "BUSY",
    "MOVED",
    "ASK",
)


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
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise StoreUnavailable(f"the store does not answer: {error}", retry_after=1.0) from error
    except redis.RedisError as error:
        raise refused(error) from error


def refused(error: redis.RedisError) -> StoreFull | StoreUnavailable | InternalError:
    """Return what an answer of the store means that is an error: the store did not do what was asked."""
    said = str(error)
    if isinstance(error, OutOfMemoryError) or "OOM" in said[:80]:
        return StoreFull("the store has no memory left; delete sessions or enlarge it (maxmemory)", retry_after=5.0)
    if not isinstance(error, ResponseError) or any(word in said[:80] for word in NOT_NOW):
        return StoreUnavailable(f"the store cannot take this now: {said}", retry_after=1.0)
    return InternalError(f"the store refused: {said}")
