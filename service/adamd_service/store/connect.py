"""From a URL to a client of redis-py: single, Sentinel or Cluster. Nothing is ever retried blindly.

redis-py retries by default. A commit that is sent twice would be answered by its second copy, so that is switched off
here, for every call; what may be repeated is repeated by name, in `redis_store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, ConnectionPool
from redis.exceptions import AskError, MaxConnectionsError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from adamd.errors import StoreUnavailable
from adamd_service.store.outcomes import StoreRefused

Client: TypeAlias = "redis.Redis | RedisCluster"
Connection: TypeAlias = Any  # redis-py's connections share a base class that is not public


def connect(url: str, timeout: float, max_connections: int) -> Client:
    """Return a client; single-node and Sentinel clients connect when they are first used.

    ``url``: ``redis://``, ``rediss://`` (TLS) or ``unix://`` as redis-py has them; ``redis+cluster://host:port,…``
    (``rediss+cluster://`` for TLS); ``redis+sentinel://[user:password@]host:port,…/service[/db]`` (``rediss+sentinel://``).

    Raises:
        StoreRefused: no such scheme, or a URL that says too little.
        StoreUnavailable: a cluster that does not answer.

    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, 5.0),
        "max_connections": max_connections,
        "protocol": 2,
    }
    try:
        scheme, query = urlsplit(url).scheme, dict(parse_qsl(urlsplit(url).query))
        if "decode_responses" in query:
            raise ValueError("decode_responses must stay off: bodies are bytes")
        if scheme in ("redis+cluster", "rediss+cluster"):
            return _cluster(url, options)
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel(url, options)
        if scheme in ("redis", "rediss", "unix"):
            return _single(url, options)
    except (ValueError, TypeError) as error:
        raise StoreRefused(f"--redis-url: {error}") from None
    raise StoreRefused(
        f"--redis-url: scheme {scheme!r}; known are redis://, rediss://, unix://, redis+sentinel://, redis+cluster://"
    )


def _single(url: str, options: dict[str, Any]) -> redis.Redis:
    client = redis.Redis.from_url(url, retry=_never(), **options)
    pool = client.connection_pool
    pool.connection_class(**pool.connection_kwargs)  # an unknown option in the URL's query shows here, not later
    return client


def _never() -> Retry:
    return Retry(NoBackoff(), 0)


def _hosts(url: str, default: int) -> list[tuple[str, int]]:
    parts = urlsplit(url)
    hosts = []
    for item in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = item.rpartition(":") if ":" in item and not item.endswith("]") else (item, "", "")
        if not host:
            raise ValueError(f"no host in {item!r}")
        hosts.append((host.strip("[]"), int(port or default)))
    return hosts


def _login(url: str) -> dict[str, Any]:
    """Return what the URL says about user, password, TLS and, in its query, anything else that redis-py knows."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    parsers = cast("dict[str, Callable[[str], Any]]", URL_QUERY_ARGUMENT_PARSERS)
    found: dict[str, Any] = {name: parsers.get(name, str)(value) for name, value in parse_qsl(parts.query)}
    if user:
        found["username"] = unquote(user)
    if password:
        found["password"] = unquote(password)
    if parts.scheme.startswith("rediss"):
        found["ssl"] = True
    return found


def _cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in _hosts(url, 6379)]
    try:
        return RedisCluster(startup_nodes=nodes, retry=_never(), **{**options, **_login(url)})
    except (redis.RedisError, RedisClusterException) as error:
        raise StoreUnavailable(f"the cluster does not answer: {error}", retry_after=1.0) from None


def _sentinel(url: str, options: dict[str, Any]) -> redis.Redis:
    path = [part for part in urlsplit(url).path.split("/") if part]
    if not path:
        raise ValueError("redis+sentinel:// names the service too, as in redis+sentinel://host:26379/mymaster")
    login = _login(url)
    sentinel_options = {"socket_timeout": min(options["socket_timeout"], 2.0), "protocol": 2, "retry": _never()}
    for name in ("sentinel_username", "sentinel_password"):
        if name in login:
            sentinel_options[name.removeprefix("sentinel_")] = login.pop(name)
    sentinel = Sentinel(_hosts(url, 26379), sentinel_kwargs=sentinel_options, **login)
    database = int(path[1]) if len(path) > 1 else 0
    return cast(redis.Redis, sentinel.master_for(path[0], db=database, retry=_never(), **{**options, **login}))


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


def nodes(client: Client) -> list[redis.Redis]:
    """Return a client for each node that holds data."""
    if not isinstance(client, RedisCluster):
        return [client]
    return [client.get_redis_connection(node) for node in client.get_primaries()]
