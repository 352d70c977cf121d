"""What redis-py raises, in adamd's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.sentinel import MasterNotFoundError

from adamd.errors import Damaged, InternalError, StoreFull, StoreUnavailable
from adamd_service.store.outcomes import Unfit

# Answers that say "not now" rather than "never": the store turns away a write that it may take later. redis-py takes
# the first word off those that it knows; Redis 6.2 puts those of a script's commands into the middle of its own text.
NOT_NOW = (ReadOnlyError, AskError, TryAgainError, ClusterError, MasterDownError)
WORDS = re.compile(r"\b(LOADING|READONLY|MISCONF|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|TRYAGAIN|BUSY|MOVED|ASK)\b")
FULL = re.compile(r"\bOOM\b")
NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|File too large")
# RedisClusterException is no RedisError: the cluster has no node to ask, or none that answers.
AWAY = (redis.ConnectionError, redis.TimeoutError, RedisClusterException, OSError)

# Answers of a process that takes no writes as it stands, while another may have taken its place behind the same name.
LEFT = (ReadOnlyError, BusyLoadingError, MasterDownError)
LEFT_WORDS = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|NOREPLICAS|MISCONF)\b|previous master")

# What a user of the store has to have. `tests/store/test_permissions.py` runs a store with just these.
RULES = "~adamd:* +@read +@write +@connection +@scripting -@dangerous +info +time +config|get +cluster|slots"
# A script that is not allowed one of its commands says so in the middle of its text: 7.0 in these words, 6.2 in those.
FORBIDDEN = re.compile(r"\bNOPERM\b|ACL failure in script|[Tt]he user executing the script can't")


@contextmanager
def translated(session_id: str = "") -> Iterator[None]:
    """Turn redis-py's errors into the error tree's. ``session_id``: whose keys are asked for, if it is one's alone.

    Raises:
        StoreFull: it has no memory left.
        StoreUnavailable: it does not answer, or not now.
        InternalError: it refuses what adamd asks.

    """
    try:
        yield
    except Unfit as error:
        raise StoreUnavailable(str(error), retry_after=1.0) from error
    except (AuthenticationError, AuthorizationError) as error:
        text = "the store does not know the user or the password that --redis-url names, or wants one"
        raise StoreUnavailable(f"{text}: {error}", retry_after=5.0) from error
    except MasterNotFoundError as error:
        raise StoreUnavailable(str(error), retry_after=1.0) from None
    except AWAY as error:
        raise away(error) from error
    except redis.RedisError as error:
        raise refused(error, session_id) from error


def away(error: Exception) -> StoreUnavailable:
    """Return what a store that gives no answer means."""
    return StoreUnavailable(f"the store does not answer: {error}", retry_after=1.0)


def refused(error: redis.RedisError, session_id: str = "") -> StoreFull | StoreUnavailable | InternalError:
    """Return what an answer of the store means that is an error: the store did not do what was asked."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or FULL.search(text):
        return StoreFull(
            "the store has no memory left; delete sessions, or enlarge it (ADAMD_STORE_BYTES for the private store, "
            "maxmemory for your own)",
            retry_after=5.0,
        )
    if NO_ROOM.search(text):
        return StoreFull(f"the store cannot write to its disk: {text}; delete sessions, or make room", retry_after=5.0)
    if isinstance(error, MovedError):
        return StoreUnavailable(f"another node of a Cluster holds this slot (MOVED {text})", retry_after=1.0)
    if isinstance(error, InvalidResponse):
        text = f"what answers at the store's address does not speak its protocol: {text}"
        return StoreUnavailable(text, retry_after=5.0)
    forbidden = no_permission(error)
    if forbidden is not None:
        return StoreUnavailable(forbidden, retry_after=5.0)
    if not isinstance(error, ResponseError) or isinstance(error, NOT_NOW) or WORDS.search(text):
        return StoreUnavailable(f"the store cannot take this now: {text}", retry_after=1.0)
    if "WRONGTYPE" in text:
        whose = f"of session {session_id} " if session_id else ""
        return Damaged(
            f"a key {whose}in the store is of another type than adamd makes it (WRONGTYPE); {Damaged.ADVICE}"
        )
    return InternalError(f"the store refused: {text}")


def no_permission(error: redis.RedisError) -> str | None:
    """Say what the store's user lacks; None where it is another error."""
    text = str(error)
    if not isinstance(error, NoPermissionError) and FORBIDDEN.search(text) is None:
        return None
    return f"the store does not let adamd's user do this ({text}). It needs: ACL SETUSER <user> {RULES}"


def in_the_middle(error: redis.RedisError) -> bool:
    """Say whether a script was not allowed one of its commands: it may have run others before."""
    return not isinstance(error, NoPermissionError) and no_permission(error) is not None


def leaves(error: BaseException) -> bool:
    """Say whether an answer means that another process may be the one to ask now."""
    return isinstance(error, LEFT) or (isinstance(error, redis.RedisError) and leaves_by(str(error)))


def leaves_by(text: str) -> bool:
    """Say the same of an answer's text."""
    return LEFT_WORDS.search(text) is not None


def not_begun(text: str) -> bool:
    """Say whether an answer that is an error came before a script wrote anything, so that it may be sent again."""
    return text.startswith(("NOSCRIPT ", "NOAUTH ", "NOPERM ")) or bool(WORDS.search(text) or FULL.search(text))
