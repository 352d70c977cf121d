"""What a store's settings promise, in plain words; and a refusal where they promise less than adamd does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.exceptions import ResponseError

from adamd_service.store.connection.failures import NOT_NOW, WORDS, no_permission
from adamd_service.store.outcomes import Connection, StoreLoading, StoreRefused

OLDEST = (6, 2)
POLICIES = {
    "always": "an acknowledged step survives the death of any process and of power",
    "everysec": "an acknowledged step survives the death of adamd; the store's own death may take up to 2 s of them",
    "no": "an acknowledged step survives the death of adamd; the store's own death may take up to 30 s of them",
}
ASYNC = "; a failover to an asynchronous replica may lose steps, and clients are told (history_lost)"
LASTS = "for good: in its redis.conf, or by CONFIG SET {0} and then CONFIG REWRITE, or a restart forgets it"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is accepted of a store, and of what kind it must be.

    Attributes:
        allow_lossy: it may evict, or keep no append-only file.
        trusted: its owner knows, where it does not tell.
        cluster: it is a Cluster, of which several nodes answer.

    """

    allow_lossy: bool = False
    trusted: bool = False
    cluster: bool = False


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One node's settings; None where the store does not tell. ``beginning``: its first file is not whole yet."""

    name: str
    version: tuple[int, ...]
    product: str
    aof: bool
    fsync: str | None
    eviction: str | None
    replicas: int
    replica: bool
    run_id: str = ""
    mode: str = "standalone"
    beginning: bool = False


def look(connection: Connection) -> NodeSettings:
    """Ask a node what it is and how it is set.

    Raises:
        StoreLoading: it does not know yet.
        StoreRefused: it does not say what it is.

    """
    info = info_of(connection)
    settings = _settings(connection) if mode_of(info) != "sentinel" else {}
    product = "Valkey" if "valkey_version" in info else "Redis"
    replicas = info.get("connected_slaves", "")
    return NodeSettings(
        name=f"{product} {(info.get('valkey_version') or info.get('redis_version', '?'))[:40]}",
        version=_version(info),
        product=product,
        aof=keeps_file(info),
        fsync=settings.get("appendfsync"),
        eviction=settings.get("maxmemory-policy") if settings else info.get("maxmemory_policy"),
        replicas=int(replicas) if replicas.isdecimal() else 0,
        replica=is_replica(info),
        run_id=info.get("run_id", ""),
        mode=mode_of(info),
        beginning=_begins_file(info),
    )


def info_of(connection: Connection) -> dict[str, str]:
    """Return what INFO says; raises as `look`."""
    connection.send_command("INFO")
    try:
        raw = connection.read_response(disable_decoding=True)
    except ResponseError as error:
        if isinstance(error, NOT_NOW) or WORDS.search(str(error)):
            raise
        why = no_permission(error) or f"it answers INFO with an error: {error}"
        raise StoreRefused(f"the store does not say what it is: {why}") from None
    if not isinstance(raw, bytes):
        raise StoreRefused("the store does not say what it is: it answers INFO with something else")
    lines = raw.decode(errors="replace").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    if info.get("loading") == "1":
        raise StoreLoading(f"the store is loading its data{_progress(info)}; until then it cannot say what it keeps")
    return info


def _progress(info: Mapping[str, str]) -> str:
    done, seconds = info.get("loading_loaded_perc", "").partition(".")[0], info.get("loading_eta_seconds", "")
    if not done.isdecimal():
        return ""
    return f" ({done} %" + (f", about {seconds} s left)" if seconds.isdecimal() else ")")


def mode_of(info: Mapping[str, str]) -> str:
    """Return standalone, cluster or sentinel."""
    return info.get("redis_mode") or info.get("server_mode") or "standalone"


def is_replica(info: Mapping[str, str]) -> bool:
    """Say whether it takes no writes."""
    return info.get("role") == "slave"


def keeps_file(info: Mapping[str, str]) -> bool:
    """Say whether it keeps an append-only file now that a restart would read."""
    return info.get("aof_enabled") == "1" and not _begins_file(info)


def says_the_same(info: Mapping[str, str], node: NodeSettings) -> bool:
    """Say whether INFO still says of a process what was found before; appendfsync is not in it."""
    return keeps_file(info) == node.aof and info.get("maxmemory_policy", node.eviction) == node.eviction


def _begins_file(info: Mapping[str, str]) -> bool:
    """Say whether the file was switched on a moment ago: until all that was there before is in it, a restart reads none
    of it, while ``aof_enabled`` is 1 already. Before 7.0 a file had no base of its own, but was empty meanwhile.
    """
    writes = "1" in (info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled"))
    sizes = (info.get("aof_base_size"), *(() if _version(info) >= (7,) else (info.get("aof_current_size"),)))
    return info.get("aof_enabled") == "1" and writes and set(sizes) == {"0"}


def _version(info: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(int(part) for part in info.get("redis_version", "").split(".")[:2] if part.isdecimal())


def _settings(connection: Connection) -> dict[str, str]:
    settings: dict[str, str] = {}
    try:
        for name in ("appendfsync", "maxmemory-policy"):
            connection.send_command("CONFIG", "GET", name)
            answer = connection.read_response(disable_decoding=True)
            if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[1], bytes):
                return {}
            settings[name] = answer[1].decode(errors="replace")
    except ResponseError as error:  # managed services forbid CONFIG, each in words of its own
        if isinstance(error, NOT_NOW) or WORDS.search(str(error)):
            raise
        return {}
    return settings


def why_not(node: NodeSettings, terms: Terms) -> str | None:
    """Say why a node cannot be used under these terms, and what to do; None where it can."""
    reason = _wrong_kind(node, terms)
    if reason is not None:
        return reason
    if node.fsync is None and not terms.trusted:
        return (
            f"this {node.product} forbids CONFIG, so adamd cannot see whether it keeps what it acknowledges. Let its "
            "user read two settings (+config|get), or, if you know that it has an AOF and evicts nothing, say "
            "--store-trusted"
        )
    if terms.allow_lossy or terms.trusted:
        return None
    if _evicts(node):
        return (
            f"this {node.product} may evict keys (maxmemory-policy {node.eviction}): sessions would be lost silently. "
            f"Set maxmemory-policy noeviction {LASTS.format('maxmemory-policy noeviction')}. Or say --allow-lossy-store"
        )
    if node.beginning:
        return (
            f"this {node.product} writes its append-only file for the first time; until it is whole, it keeps nothing"
        )
    if not node.aof:
        return (
            f"this {node.product} keeps no append-only file: acknowledged steps would die with it. Set appendonly yes "
            f"(and appendfsync always or everysec) {LASTS.format('appendonly yes')}. Or say --allow-lossy-store"
        )
    return None


def _wrong_kind(node: NodeSettings, terms: Terms) -> str | None:
    if node.mode == "sentinel":
        return (
            "this is a Sentinel, which knows the store and is none: write redis+sentinel:// (rediss+sentinel:// for "
            "TLS), and the name of the service behind a /, as in redis+sentinel://host:26379/mymaster"
        )
    if node.mode == "cluster" and not terms.cluster:
        return (
            f"this {node.product} is a node of a Cluster and holds a part of the keys: write redis+cluster:// "
            "(rediss+cluster:// for TLS)"
        )
    if node.version < OLDEST:
        return f"{node.name} is too old: wanted Redis 6.2 or later, or Valkey"
    if node.replica:
        return f"this {node.product} is a replica, which takes no writes: name its primary"
    return None


def _evicts(node: NodeSettings) -> bool:
    return node.eviction not in (None, "noeviction")


def promise_of(every_node: Iterable[NodeSettings], terms: Terms) -> str:
    """Return what nodes promise together, in one line: the weakest speaks for all of them."""
    nodes, trusted = list(every_node), terms.trusted
    names = sorted({node.name for node in nodes})
    where = names[0] if len(nodes) == 1 else f"{len(nodes)} nodes of {', '.join(names)}"
    evicts = "; it may evict keys: sessions may be lost" if any(_evicts(node) for node in nodes) else ""
    if any(node.fsync is None for node in nodes):
        words = "its owner says that it persists" if evicts else "its owner says that it persists and never evicts"
        return f"{where}: CONFIG is forbidden; {words}{evicts}"
    if not all(node.aof for node in nodes):
        words = "no append-only file: the store's death takes everything since its last RDB snapshot"
    else:
        weakest = max((node.fsync if node.fsync in POLICIES else "no" for node in nodes), key=list(POLICIES).index)
        words = f"appendfsync {weakest}: {POLICIES[weakest]}"
    asynchronous = ASYNC if any(node.replicas for node in nodes) else ""
    return f"{where}, {words}{asynchronous}{evicts}" + (" (trusted)" if trusted else "")
