"""Refuses calls at once while a store has stopped answering, until it answers a PING again.

A stopped process, a lost route or a store that is busy for minutes keeps the connection and says nothing. Each call
that waits for it takes a thread for the whole time-out, so hundreds of them would wait for each other. So the first
time-out marks the address as silent: calls to it are refused before they send anything, and one thread asks with a
PING until there is an answer. Each node of a cluster is its own address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import redis
import structlog
from redis.cluster import RedisCluster
from redis.connection import ConnectionPool

from adamd_service.store.connection.connect import Client, sentinels

Place: TypeAlias = "tuple[str, int] | str"  # a host with its port, or a unix socket's path
PING_PAUSE_SECONDS: Final = 0.2  # between two PINGs to a silent store
FIRST_PING_SECONDS, LONGEST_PING_SECONDS = 1.0, 15.0  # that the first PING waits; doubled up to the longest
log = structlog.get_logger()


class Silent(redis.TimeoutError):
    """The store is known to be silent, so nothing was sent."""


class Silences:
    """The addresses of one store that do not answer now. Thread-safe.

    ``why`` says what is known about a store that takes no connection, where anything is.
    """

    def __init__(self) -> None:
        self.why: Callable[[], str | None] = lambda: None
        self._lock = threading.Lock()
        self._places: set[Place] = set()
        self._closed = threading.Event()

    def watch(self, client: Client) -> None:
        """Look at every connection that this client will make."""
        if not isinstance(client, RedisCluster):
            self._watch(client.connection_pool)
            for sentinel in sentinels(client):
                self._watch(sentinel.connection_pool)
            return
        nodes: Any = client.nodes_manager
        make = nodes.create_redis_node

        def create_watched(*args: Any, **options: Any) -> redis.Redis:
            node: redis.Redis = make(*args, **options)
            self._watch(node.connection_pool)
            return node

        nodes.create_redis_node = create_watched
        for node in nodes.nodes_cache.values():
            if node.redis_connection is not None:
                self._watch(node.redis_connection.connection_pool)

    def _watch(self, pool: ConnectionPool) -> None:
        kind = pool.connection_class
        if not issubclass(kind, WatchedConnection):
            pool.connection_class = type(f"Watched{kind.__name__}", (WatchedConnection, kind), {"silences": self})

    def knows(self, place: Place) -> bool:
        """Say whether the store at this address is known not to answer."""
        return bool(self._places) and place in self._places

    def note_time_out(self, place: Place, connect: Callable[[float], Any]) -> None:
        """Note that an address has let a time-out pass. ``connect`` makes a connection with such a time-out."""
        with self._lock:
            if place in self._places or self._closed.is_set():
                return
            self._places.add(place)
        log.warning("the store has stopped answering; calls are refused until it does", store=_shown(place))
        name = "adamd-store-silent"
        try:
            threading.Thread(target=self._ask, args=(place, connect), name=name, daemon=True).start()
        except RuntimeError:  # no thread to be had: nobody else would end the refusals
            with self._lock:
                self._places.discard(place)

    def _ask(self, place: Place, connect: Callable[[float], Any]) -> None:
        patience = FIRST_PING_SECONDS
        try:
            while not self._closed.wait(PING_PAUSE_SECONDS) and not _answers(place, connect(patience)):
                patience = min(2 * patience, LONGEST_PING_SECONDS)
        except Exception as error:  # whatever it is, nobody else would end the refusals
            log.exception("asking a silent store failed", exc_info=error)
        with self._lock:
            self._places.discard(place)
        if not self._closed.is_set():
            log.info("the store answers again", store=_shown(place))

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()


def _answers(place: Place, connection: Any) -> bool:
    """Say whether a store answers at all: a refusal is an answer too, and the next caller gets it."""
    try:
        connection.connect_at(place)
        connection.send_command("PING")
        connection.read_response()
    except redis.TimeoutError:
        return False
    except (redis.RedisError, OSError):
        return True
    finally:
        connection.disconnect()
    return True


class WatchedConnection:
    """Mixed into redis-py's connections: reports time-outs, and sends nothing to a silent store."""

    silences: Silences
    asks_anyway = False

    def __init__(self, **options: Any) -> None:
        self._options = options
        super().__init__(**options)

    @property
    def place(self) -> Place:
        """Where this connection leads, as far as it is known yet."""
        connection: Any = self
        path: str | None = getattr(connection, "path", None)
        return (connection.host, connection.port) if path is None else path

    @property
    def silent(self) -> bool:
        """Say whether nothing would be answered."""
        return not self.asks_anyway and self.silences.knows(self.place)

    def require_answers(self) -> None:
        """Raise Silent where nothing would be answered."""
        if self.silent:
            raise Silent("it has stopped answering; calls are refused until it answers again")

    def report_time_out(self) -> None:
        """Report that an answer did not come in time."""
        if not self.asks_anyway:
            self.silences.note_time_out(self.place, self._again)

    def _again(self, patience: float) -> Any:
        connection = type(self)(**{**self._options, "socket_timeout": patience, "socket_connect_timeout": patience})
        connection.asks_anyway = True
        return connection

    def connect_at(self, place: Place) -> None:
        """Connect to this very address; a Sentinel may have named another one meanwhile."""
        connection: Any = self
        if hasattr(connection, "connect_to"):
            connection.connect_to(place)
        else:
            connection.connect()

    def _connect(self) -> Any:
        self.require_answers()
        above: Any = super()
        try:
            return above._connect()
        except (TimeoutError, redis.TimeoutError):
            self.report_time_out()
            raise
        except OSError as error:
            why = self.silences.why()
            if why is None:
                raise
            raise redis.ConnectionError(why) from error

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, unless nobody would answer."""
        self.require_answers()
        above: Any = super()
        try:
            above.send_packed_command(command, check_health)
        except Silent:
            raise
        except redis.TimeoutError:
            self.report_time_out()
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read, and tell of a time-out."""
        above: Any = super()
        try:
            return above.read_response(*args, **options)
        except Silent:
            raise
        except redis.TimeoutError:
            self.report_time_out()
            raise


def _shown(place: Place) -> str:
    return place if isinstance(place, str) else f"{place[0]}:{place[1]}"
