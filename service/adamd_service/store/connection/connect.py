"""Makes a client of redis-py from a URL: single, Sentinel or Cluster. Nothing is ever retried blindly.

redis-py retries by default. A commit that is sent twice would be answered by its second copy, so that is switched off
here, for every call; what may be repeated is repeated by name, in `redis_store`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import ConnectionPool
from redis.exceptions import AskError, MaxConnectionsError, RedisClusterException, ResponseError
from redis.retry import Retry

from adamd.errors import StoreUnavailable
from adamd_service.store.connection import urls
from adamd_service.store.connection.durability import NodeSettings, look, mode_of
from adamd_service.store.connection.failures import no_permission, translated
from adamd_service.store.connection.sockets import OfSentinel, OfSentinelTls, Plain, Sentinels, Tls, Unix
from adamd_service.store.connection.trust import Trust
from adamd_service.store.outcomes import Connection, StoreRefused

Client: TypeAlias = "redis.Redis | RedisCluster"


@dataclass(frozen=True, slots=True)
class StoreLink:
    """A client, and what is known about the processes that it reaches."""

    client: Client
    trust: Trust


def connect(url: str, timeout: float, max_connections: int) -> StoreLink:
    """Return a client; single-node and Sentinel clients connect when they are first used.

    ``url``: ``redis://``, ``rediss://`` (TLS) or ``unix://`` as redis-py has them; ``redis+cluster://host:port,…``
    (``rediss+cluster://`` for TLS); ``redis+sentinel://[user:password@]host:port,…/service[/db]`` (``rediss+sentinel://``).

    Raises:
        StoreRefused: no such scheme, or a URL that says too little. Nothing of the URL is repeated.
        StoreUnavailable: a cluster that does not answer.

    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, 5.0),
        "max_connections": max_connections,
        "protocol": 2,
        "retry": _never(),
    }
    trust = Trust()
    try:
        parts = urls.parsed(url)
        options |= parts.options
        if parts.scheme.endswith("cluster"):
            return StoreLink(_cluster(parts, options, trust), trust)
        options |= {"trust": trust, "redis_connect_func": trust.greet}
        make = _sentinel if parts.scheme.endswith("sentinel") else _single
        return StoreLink(make(parts, options), trust)
    except (ValueError, TypeError) as error:
        raise StoreRefused(f"--redis-url: {error}") from None


def _never() -> Retry:
    return Retry(NoBackoff(), 0)


def _single(url: urls.StoreUrl, options: dict[str, Any]) -> redis.Redis:
    if url.scheme == "unix":
        options["path"], options["connection_class"] = unquote(url.path), Unix
        if not url.path:
            raise ValueError("a unix socket has a path, as in unix:///run/valkey.sock")
    else:
        ((options["host"], options["port"]),) = url.hosts
        options["connection_class"] = Tls if url.tls else Plain
        options.setdefault("db", _database(url.path.strip("/")))
    return redis.Redis.from_pool(ConnectionPool(**options))


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("what follows the host is no number of a database; wanted one as in redis://host:6379/0")
    return int(text or 0)


def _cluster(url: urls.StoreUrl, options: dict[str, Any], trust: Trust) -> RedisCluster:
    if _database(url.path.strip("/")) or options.pop("db", 0):
        raise ValueError("a Cluster has no databases but 0")
    nodes = [ClusterNode(host, port) for host, port in url.hosts]
    options |= {"ssl": url.tls, "redis_connect_func": trust.connected}
    try:
        with translated():
            return RedisCluster(startup_nodes=nodes, **options)
    except StoreUnavailable as error:
        if "Cluster mode is not enabled" in error.detail:  # redis-py's word for any refusal of CLUSTER SLOTS
            raise StoreRefused(_why_no_slots(nodes[0], options)) from None
        raise StoreUnavailable(f"the cluster cannot be asked: {error.detail}", retry_after=1.0) from None


def _why_no_slots(node: ClusterNode, options: dict[str, Any]) -> str:
    """Return why a node does not tell its slots: ask it what it is."""
    node_options = {
        name: value for name, value in options.items() if name not in ("redis_connect_func", "max_connections")
    }
    with closing(redis.Redis(node.host, node.port, **node_options)) as client, translated():
        if mode_of(client.info("server")) == "standalone":
            return "this store is no Cluster: write redis:// (rediss:// for TLS) and one host"
        try:
            client.execute_command("CLUSTER", "SLOTS")
        except ResponseError as error:
            return no_permission(error) or f"this Cluster does not tell its slots: {error}"
        return "this Cluster does not tell its slots"


def _sentinel(url: urls.StoreUrl, options: dict[str, Any]) -> redis.Redis:
    service, _, database = url.path.strip("/").partition("/")
    if not service:
        raise ValueError("redis+sentinel:// names the service too, as in redis+sentinel://host:26379/mymaster")
    options.setdefault("db", _database(database))
    timeout = min(options["socket_timeout"], 2.0)
    asking = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "protocol": 2, "retry": _never()}
    make = cast(Any, Sentinels)  # redis-py's is not typed
    sentinel = make(list(url.hosts), sentinel_kwargs={**asking, **url.of_sentinels})
    options["connection_class"] = OfSentinelTls if url.tls else OfSentinel
    return cast(redis.Redis, sentinel.master_for(unquote(service), **options))


@contextmanager
def borrowed(client: Client, key: str) -> Iterator[Connection]:
    """Lend a connection to the node that holds ``key``, for bulk work. It is thrown away after any error."""
    with refreshing(client):
        pool = pool_of(client, key)
        connection = pool.get_connection()
        try:
            yield connection
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


@contextmanager
def refreshing(client: Client) -> Iterator[None]:
    """Look up a cluster's slots again after an error that says that one has moved, or that its node is gone.

    redis-py does so for its own commands; bulk work goes past them, and would ask the same wrong node for ever.
    """
    try:
        yield
    except MaxConnectionsError:
        raise
    except (redis.ConnectionError, redis.TimeoutError, AskError):
        if isinstance(client, RedisCluster):
            with suppress(redis.RedisError, RedisClusterException, OSError):
                client.nodes_manager.initialize()
        raise


def pool_of(client: Client, key: str) -> ConnectionPool:
    """Return the pool of connections to the node that holds ``key``."""
    if not isinstance(client, RedisCluster):
        return client.connection_pool
    node = client.get_node_from_key(key)
    if node is None:
        raise StoreUnavailable("no node of the cluster holds this session's slot now", retry_after=1.0)
    return client.get_redis_connection(node).connection_pool


def close(client: Client) -> None:
    """Close a client's connections: to the store, and to the Sentinels that were asked for it."""
    for sentinel in sentinels(client):
        sentinel.close()
    client.close()


def sentinels(client: Client) -> Sequence[redis.Redis]:
    """Return the clients of the Sentinels that name the store; none where it is named itself."""
    if isinstance(client, RedisCluster):
        return ()
    manager: Any = getattr(client.connection_pool, "sentinel_manager", None)
    return () if manager is None else cast("list[redis.Redis]", manager.sentinels)


def nodes(client: Client) -> list[redis.Redis]:
    """Return a client for each node that holds data."""
    if not isinstance(client, RedisCluster):
        return [client]
    return [client.get_redis_connection(node) for node in client.get_primaries()]


def node_settings(client: Client, *, all_of_them: bool = True) -> list[NodeSettings]:
    """Return the settings of each node that holds data. Not ``all_of_them``: of those that answer, at least one.

    Raises:
        redis.RedisError: one does not answer.
        StoreLoading, StoreRefused: as `durability.look`.

    """
    settings, away = [], None
    for node in nodes(client):
        pool = node.connection_pool
        try:
            connection = pool.get_connection()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            away = error
            continue
        try:
            settings.append(look(connection))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            connection.disconnect()
            away = error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
    if away is not None and (all_of_them or not settings):
        raise away
    return settings
