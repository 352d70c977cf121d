"""A tenant's index: names, the list of sessions, and the keys of repeated creations.

It lies in a slot of its own, so a creation is two scripts: claim here, then make the session there. A claim whose
session never came (its server died in between) or is gone is repaired by the next creation that meets it: first it
fences the id with a tombstone, so that a late creator fails, then it releases the claim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import redis

from adamd.errors import Busy, InvalidRequest, SessionDeleted, StoreFull, StoreUnavailable, UnknownSession
from adamd_service.records import IdempotencyKey, Spec
from adamd_service.store.connection.connect import Client
from adamd_service.store.keys import IndexKeys, SessionKeys
from adamd_service.store.outcomes import Repeated, Taken
from adamd_service.store.scripts import script

DAY_SECONDS = 86_400
MAX_SESSIONS = 100_000  # of a tenant
CLAIM_SECONDS = 5.0  # after which a claim without a session counts as abandoned, by the store's own clock
SAME_TIME_SESSIONS = 64  # created in the same microsecond; a page may have to skip them
CLAIM_TRIES = 8
DELETED, NEVER_CREATED = "deleted", "never made"  # what a tombstone says


def claim(client: Client, spec: Spec, key: IdempotencyKey | None, most: int = MAX_SESSIONS) -> Taken | Repeated | None:
    """Claim a session's name and key; None on success. ``most``: sessions that a tenant may have.

    Raises:
        Busy: another creation with this name or key is under way.
        StoreFull: it has as many.

    """
    keys = IndexKeys(spec.tenant)
    name, digest = spec.name or "", "" if key is None else key.digest
    script_keys = _script_keys(keys, spec.id, name, key)
    args: list[str | bytes | int] = [
        spec.id,
        name,
        repr(spec.created_at),
        digest,
        DAY_SECONDS,
        round(CLAIM_SECONDS * 1000),
        most,
    ]
    for _ in range(CLAIM_TRIES):
        verdict = script("claim")(client, script_keys, *args)
        if verdict[0] == b"claimed":
            return None
        if verdict[0] == b"full":
            raise StoreFull(
                f"there are {most} sessions, as many as this server keeps; delete some, or raise ADAMD_MAX_SESSIONS",
                retry_after=5.0,
            )
        if verdict[0] == b"name":
            outcome = _owner(client, spec.tenant, verdict[1].decode(), name, None)
        else:
            known_digest, _, owner = verdict[1].decode().partition(" ")
            if known_digest != digest:
                return Taken("idempotency", owner)
            outcome = _owner(client, spec.tenant, owner, name, key)
        if outcome is not None:
            return outcome
    raise StoreUnavailable("others claim this name again and again; try again", retry_after=0.5)


def _owner(client: Client, tenant: str, owner: str, name: str, key: IdempotencyKey | None) -> Taken | Repeated | None:
    """Answer for the session that has the claim; release the claim where there is no such session."""
    keys = SessionKeys(owner)
    if client.exists(keys.head):
        return Taken("name", owner, _step(client, keys)) if key is None else Repeated(owner)
    tombstone = client.get(keys.gone)
    if tombstone == DELETED.encode() and key is not None:
        raise SessionDeleted(f"the session {owner} that this Idempotency-Key created is deleted; use a new key")
    if tombstone is None and _under_way(client, tenant, owner):
        raise Busy(f"session {owner} is being created with this name or key just now; try again", retry_after=1.0)
    if _ended(client, owner):
        release(client, tenant, owner, name, key)
    return None


def _step(client: Client, keys: SessionKeys) -> int:
    """Return a session's step, 0 where its head is damaged: the name is taken all the same."""
    with suppress(redis.ResponseError, ValueError, TypeError):
        return int(cast(bytes, client.hget(keys.head, "step")))
    return 0


def name_of(client: Client, tenant: str, session_id: str) -> str:
    """Return the name that a session has in the index, "" if none. For a session whose head is damaged."""
    owners = cast("Iterator[tuple[bytes, bytes]]", client.hscan_iter(IndexKeys(tenant).names))
    return next((name.decode() for name, owner in owners if owner == session_id.encode()), "")


def give_up(client: Client, spec: Spec, key: IdempotencyKey | None) -> None:
    """Release the claim of a creation that failed, unless its session has come after all."""
    if _ended(client, spec.id):
        release(client, spec.tenant, spec.id, spec.name or "", key)


def tidy(client: Client, tenant: str, session_id: str) -> None:
    """Take a session off the list that is deleted, or was claimed and never made."""
    if not _under_way(client, tenant, session_id) and _ended(client, session_id):
        release(client, tenant, session_id, "")


def _under_way(client: Client, tenant: str, session_id: str) -> bool:
    return bool(client.exists(IndexKeys(tenant).claim(session_id)))


def _ended(client: Client, session_id: str) -> bool:
    """Make sure that a session which is not there never will be; False if it has just come."""
    keys = SessionKeys(session_id)
    if client.exists(keys.gone):
        return True
    return script("delete")(client, keys.ending, DAY_SECONDS, NEVER_CREATED, "absent", "", "")[0] == b"deleted"


def release(
    client: Client, tenant: str, session_id: str, name: str, key: IdempotencyKey | None = None, remember: int = 0
) -> None:
    """Give back a session's name, and its place in the list. ``remember``: seconds that the name answers 410."""
    script_keys = _script_keys(IndexKeys(tenant), session_id, name, key)
    script("release")(client, script_keys, session_id, name, remember, "" if key is None else key.digest)


def _script_keys(keys: IndexKeys, session_id: str, name: str, key: IdempotencyKey | None) -> list[str]:
    """Return the keys that claim.lua and release.lua declare."""
    client_key = keys.idempotency("" if key is None else key.key)
    return [keys.names, keys.sessions, keys.former(name), client_key, keys.claim(session_id)]


def find(client: Client, tenant: str, name: str) -> str:
    """Return the id of the session that has this name.

    Raises:
        SessionDeleted: it was deleted within a day.
        UnknownSession: there is none.

    """
    keys = IndexKeys(tenant)
    owner = client.hget(keys.names, name)
    if owner is not None:
        return cast(bytes, owner).decode()
    former = client.get(keys.former(name))
    if former is not None:
        raise SessionDeleted(f"the session {name!r} ({cast(bytes, former).decode()}) is deleted")
    raise UnknownSession(f"there is no session {name!r}")


def place(token: str | None) -> tuple[float, str] | None:
    """Read a page's token.

    Raises:
        InvalidRequest: it is not a token of this server.

    """
    if token is None:
        return None
    score, _, session_id = token.partition("~")
    try:
        created_at = float(score)
    except ValueError:
        created_at = math.nan
    if not math.isfinite(created_at) or not session_id:
        raise InvalidRequest("page_token: wanted the next_page_token of an earlier answer", path="page_token")
    return created_at, session_id


def token(last: tuple[str, float]) -> str:
    """Return the token of the page after a session."""
    return f"{last[1]!r}~{last[0]}"


def page(client: Client, tenant: str, size: int, after: tuple[float, str] | None) -> list[tuple[str, float]]:
    """Return (id, created_at) of the sessions after a place, oldest first; ``size`` + 1 where there are more."""
    low = "-inf" if after is None else repr(after[0])
    sessions: list[tuple[str, float]] = []
    start, count = 0, size + 1 + SAME_TIME_SESSIONS
    while len(sessions) <= size:
        members = client.zrangebyscore(IndexKeys(tenant).sessions, low, "+inf", start=start, num=count, withscores=True)
        rows = [
            (cast(bytes, member).decode(errors="backslashreplace"), float(score))
            for member, score in cast("list[tuple[Any, Any]]", members)
        ]
        sessions += [row for row in rows if after is None or (row[1], row[0]) > after]
        if len(rows) < count:
            break
        start += count
    return sessions[: size + 1]
