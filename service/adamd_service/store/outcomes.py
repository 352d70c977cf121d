"""The results that the store returns besides data, and the exceptions that it raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import redis

from adamd.errors import StoreUnavailable
from adamd_service.records import Head

Connection: TypeAlias = Any  # redis-py's connections share a base class that is not public


class StoreRefused(Exception):
    """The store at this URL would not keep what adamd promises; says what it found and what to do."""


class StoreLoading(StoreUnavailable):
    """The store is reading its file: it knows neither its data nor, yet, whether it keeps them."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after=1.0)


class Unfit(redis.ConnectionError):
    """A connection that must not be used: the process at its other end is not one that adamd may ask."""


class UnknownOutcome(Exception):
    """A commit was sent and no answer came: it may have happened."""


class ChunkMissing(StoreUnavailable):
    """What the head names is not there (any more): reload the head and start again.

    ``snapshot``: the id of the one that it belongs to; "" where it is a part of the log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after=0.5)
        self.snapshot = ""


@dataclass(frozen=True, slots=True)
class Created:
    """The session is there."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same Idempotency-Key with the same creation made session ``id`` earlier."""

    id: str


@dataclass(frozen=True, slots=True)
class Taken:
    """Nothing was made: the name is session ``id``'s, or the key came with another creation."""

    reason: Literal["name", "idempotency"]
    id: str
    step: int = 0


@dataclass(frozen=True, slots=True)
class HeadVersion:
    """The few fields of a head that change: enough to see whether a cache is still right."""

    incarnation: str
    step: int
    chain: str
    settings_revision: int
    parameters_missing: bool

    def is_of(self, head: Head) -> bool:
        """Say whether this is where ``head`` stands."""
        return self == HeadVersion(
            head.incarnation, head.step, head.chain, head.settings_revision, head.parameters_missing
        )
