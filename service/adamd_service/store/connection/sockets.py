"""redis-py's connections, which also leave a process that takes no writes any more.

A primary that was demoted behind a name or a proxy goes on to answer, with READONLY, and a connection that is kept
never finds the one that took its place. So an answer that says so ends every connection to that process, each when it
is next taken out of its pool, and the name is asked again. Subclasses, because redis-py offers nothing else.
"""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from adamd_service.store.connection.failures import leaves
from adamd_service.store.connection.trust import Trust

NO_SENTINEL = "what answers there is a store, and no Sentinel: redis:// (rediss:// for TLS) names it itself"


class Leaving:
    """What a connection of redis-py's is mixed with. ``trust``: shared by all connections to one address."""

    def __init__(self, *, trust: Trust, **options: Any) -> None:
        self.trust = trust
        self._era = trust.era
        super().__init__(**options)

    @property
    def stale(self) -> bool:
        """Say whether the process that this connection may lead to has been left."""
        return self._era != self.trust.era

    def leave(self) -> None:
        """Have all connections to this process thrown away before they are used again."""
        self.trust.leave(self._era)

    def connect(self) -> None:
        """Connect where it is not connected, and anew where its process was left."""
        if self.stale:
            self.disconnect()  # type: ignore[attr-defined] # redis-py's
            self._era = self.trust.era
        super().connect()  # type: ignore[misc] # redis-py's

    def read_response(self, *args: Any, **more: Any) -> Any:
        """Return an answer."""
        try:
            return super().read_response(*args, **more)  # type: ignore[misc] # redis-py's
        except redis.RedisError as error:
            if leaves(error):
                self.leave()
            raise


class Plain(Leaving, Connection):
    """Over TCP."""


class Tls(Leaving, SSLConnection):
    """Over TCP, encrypted."""

    def _connect(self) -> Any:
        try:
            return super()._connect()  # type: ignore[no-untyped-call] # redis-py's
        except TimeoutError:  # a store without TLS waits for more, for ever
            raise redis.TimeoutError("no answer to the beginning of TLS; without TLS it is redis://") from None


class Unix(Leaving, UnixDomainSocketConnection):
    """On this machine."""


class OfSentinel(Leaving, SentinelManagedConnection):
    """To the primary that a Sentinel names."""


class OfSentinelTls(Leaving, SentinelManagedSSLConnection):
    """The same, encrypted."""


class Sentinels(Sentinel):
    """Sentinels that say why none of them names a primary; redis-py would show the clients, down to their options."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return where the primary is.

        Raises:
            MasterNotFoundError: none says; in words for a person.

        """
        why = []
        for place, sentinel in enumerate(self.sentinels):
            try:
                services = cast("dict[str, dict[str, Any]]", sentinel.sentinel_masters())
            except redis.RedisError as error:
                why.append(NO_SENTINEL if "unknown command" in str(error) else str(error))
                continue
            state = services.get(service_name)
            if state and self.check_master_state(state, service_name):  # type: ignore[no-untyped-call] # redis-py's
                self.sentinels[0], self.sentinels[place] = sentinel, self.sentinels[0]  # asked first from now on
                return state["ip"], state["port"]
            why.append("it is known, and down" if state else "no such service is known")
        raise MasterNotFoundError(f"no Sentinel names a primary now: {'; '.join(dict.fromkeys(why))}")
