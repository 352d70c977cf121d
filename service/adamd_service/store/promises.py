"""What a store's settings promise, in plain words; and a refusal where they promise less than adamd does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis
from redis.exceptions import ResponseError

from adamd_service.store.connect import Client, nodes
from adamd_service.store.outcomes import StoreRefused

OLDEST = (6, 2)
POLICIES = {
    "always": "an acknowledged step survives the death of any process and of power",
    "everysec": "an acknowledged step survives the death of adamd; the store's own death may take up to 2 s of them",
    "no": "an acknowledged step survives the death of adamd; the store's own death may take up to 30 s of them",
}
ASYNC = "; a failover to an asynchronous replica may lose steps, and clients are told (history_lost)"


@dataclass(frozen=True, slots=True)
class Found:
    """One node's settings; None where the store does not tell."""

    name: str
    version: tuple[int, ...]
    product: str
    aof: bool
    fsync: str | None
    eviction: str | None
    replicas: int
    replica: bool


def checked(client: Client, *, allow_lossy: bool, trusted: bool) -> str:
    """Return what the store promises, in one line.

    Raises:
        StoreRefused: too old, may evict, keeps no AOF, or does not tell.

    """
    found = [_look(node) for node in nodes(client)]
    for node in found:
        _require(node, allow_lossy=allow_lossy, trusted=trusted)
    return _said(found, trusted=trusted)


def _look(node: redis.Redis) -> Found:
    info = node.info()
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    settings = _settings(node)
    return Found(
        name=f"{product} {version}",
        version=tuple(int(part) for part in str(info["redis_version"]).split(".")[:2] if part.isdigit()),
        product=product,
        aof=bool(info.get("aof_enabled")),
        fsync=settings.get("appendfsync"),
        eviction=settings.get("maxmemory-policy") if settings else info.get("maxmemory_policy"),
        replicas=int(info.get("connected_slaves", 0)),
        replica=info.get("role") == "slave",
    )


def _settings(node: redis.Redis) -> dict[str, str]:
    try:
        names = ("appendfsync", "maxmemory-policy")
        return {name: cast("dict[str, str]", node.config_get(name))[name] for name in names}
    except (ResponseError, KeyError):  # managed services forbid CONFIG
        return {}


def _require(node: Found, *, allow_lossy: bool, trusted: bool) -> None:
    if node.version < OLDEST:
        raise StoreRefused(f"{node.name} is too old: wanted Redis 6.2 or later, or Valkey")
    if node.replica:
        raise StoreRefused(f"this {node.product} is a replica, which takes no writes: name its primary")
    if node.fsync is None and not trusted:
        raise StoreRefused(
            f"this {node.product} forbids CONFIG, so adamd cannot see whether it keeps what it acknowledges. If you "
            "know that it has an AOF and evicts nothing, say --store-trusted"
        )
    if allow_lossy or trusted:
        return
    if _evicts(node):
        raise StoreRefused(
            f"this {node.product} may evict keys (maxmemory-policy {node.eviction}): sessions would be lost silently. "
            "CONFIG SET maxmemory-policy noeviction, or say --allow-lossy-store"
        )
    if not node.aof:
        raise StoreRefused(
            f"this {node.product} keeps no append-only file: acknowledged steps would die with it. "
            "CONFIG SET appendonly yes (and appendfsync always or everysec), or say --allow-lossy-store"
        )


def _evicts(node: Found) -> bool:
    return node.eviction not in (None, "noeviction")


def _said(found: list[Found], *, trusted: bool) -> str:
    # The weakest node speaks for all of them.
    names = sorted({node.name for node in found})
    where = names[0] if len(found) == 1 else f"{len(found)} nodes of {', '.join(names)}"
    evicts = "; it may evict keys: sessions may be lost" if any(_evicts(node) for node in found) else ""
    if any(node.fsync is None for node in found):
        said = "its owner says that it persists" if evicts else "its owner says that it persists and never evicts"
        return f"{where}: CONFIG is forbidden; {said}{evicts}"
    if not all(node.aof for node in found):
        said = "no append-only file: the store's death takes everything since its last RDB snapshot"
    else:
        weakest = max((node.fsync or "no" for node in found), key=list(POLICIES).index)
        said = f"appendfsync {weakest}: {POLICIES[weakest]}"
    asynchronous = ASYNC if any(node.replicas for node in found) else ""
    return f"{where}, {said}{asynchronous}{evicts}" + (" (trusted)" if trusted else "")
