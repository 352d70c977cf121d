"""The names of all keys: a session's keys share one hash tag, and those of a tenant's index another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from adamd_service.records import RING, SnapshotRef


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """One session's keys. All of them hash to one slot of a cluster."""

    id: str

    def _key(self, *parts: object) -> str:
        return ":".join(("adamd", "{" + (_escaped(self.id) or "%") + "}", *map(str, parts)))

    @property
    def prefix(self) -> str:
        """What every key of the session begins with."""
        return self._key("")

    @property
    def pattern(self) -> str:
        """Glob of SCAN that every key of the session matches, and no other."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*"

    @property
    def head(self) -> str:
        """Hash: where the session stands."""
        return self._key("head")

    @property
    def ring(self) -> str:
        """Hash: slot (step modulo 256) to ``step digest attempt.sum chain``."""
        return self._key("ring")

    @property
    def gone(self) -> str:
        """String with a TTL: the tombstone."""
        return self._key("gone")

    @property
    def bulk(self) -> str:
        """String: the token of the server start whose extents the session may name, where replicas share a store."""
        return self._key("bulk")

    @property
    def garbage(self) -> str:
        """List: what is unnamed and may be unlinked once no reader is at work."""
        return self._key("garbage")

    @property
    def readers(self) -> str:
        """Sorted set: a reader's lease to when it began."""
        return self._key("readers")

    @property
    def round(self) -> str:
        """Hash: where the open round stands."""
        return self._key("round")

    @property
    def pending(self) -> str:
        """Hash: ``round:client`` to a contribution that waits to be counted."""
        return self._key("pending")

    @property
    def counted(self) -> str:
        """Hash: ``round:client`` to ``digest step`` of a contribution that was counted; step 0: it was left out."""
        return self._key("counted")

    @property
    def clients(self) -> str:
        """Set: the clients that have asked for a task."""
        return self._key("clients")

    @property
    def evaluations(self) -> str:
        """Hash: client to what it measured at the parameters that the open round begins with."""
        return self._key("evaluations")

    @property
    def ending(self) -> list[str]:
        """The keys that delete.lua declares."""
        own = [self.head, self.gone, self.garbage, self.ring, self.readers, self.bulk]
        return [*own, self.round, self.pending, self.counted, self.clients, self.evaluations]

    @property
    def setting(self) -> list[str]:
        """The keys that parameters.lua declares before chunks."""
        return [self.head, self.garbage, self.bulk, self.pending]

    def contribution(self, attempt: str) -> str:
        """String: a small contribution's bytes."""
        return self._key("contribution", attempt)

    def closed_round(self, number: int) -> str:
        """String: the document of a closed round."""
        return self._key("rounds", number)

    def record(self, step: int) -> str:
        """Hash: one step in the log."""
        return self._key("record", step)

    def chunk(self, attempt: str, index: int) -> str:
        """String: a chunk of a body."""
        return self._key("body", attempt, index)

    def body(self, attempt: str, count: int) -> list[str]:
        """Every chunk of a body, in order."""
        return [self.chunk(attempt, index) for index in range(count)]

    def snapshot(self, snapshot: str, array: str, index: int) -> str:
        """String: a chunk of a snapshot's array."""
        return self._key("snapshot", snapshot, array, index)

    def snapshot_chunks(self, snapshot: str, arrays: Iterable[tuple[str, int]]) -> list[str]:
        """Every chunk of a snapshot, in order; ``arrays`` are (name, how many chunks)."""
        return [self.snapshot(snapshot, name, index) for name, count in arrays for index in range(count)]

    def fence(self, attempt: str) -> str:
        """String with a TTL: this attempt must not commit any more."""
        return self._key("fence", attempt)

    def idempotency(self, key: str) -> str:
        """String with a TTL: ``digest step`` of a client's key (hashed: it may hold anything)."""
        return self._key("key", _hashed(key))


@dataclass(frozen=True, slots=True)
class IndexKeys:
    """One tenant's index, in a slot of its own."""

    tenant: str

    def _key(self, *parts: str) -> str:
        return ":".join(("adamd", "{index." + _escaped(self.tenant) + "}", *parts))

    @property
    def names(self) -> str:
        """Hash: name to id."""
        return self._key("names")

    @property
    def sessions(self) -> str:
        """Sorted set: id to created_at."""
        return self._key("sessions")

    @property
    def deleted(self) -> str:
        """Set: ids of deleted sessions whose garbage is still to be unlinked."""
        return self._key("deleted")

    @property
    def rounds(self) -> str:
        """Set: ids of sessions with rounds, for the servers that close these."""
        return self._key("rounds")

    @property
    def littered(self) -> str:
        """Set: ids of sessions that go on, and may have garbage."""
        return self._key("littered")

    def claim(self, session_id: str) -> str:
        """String with a short TTL: this session is being created now."""
        return self._key("claim", session_id)

    def former(self, name: str) -> str:
        """String with a TTL: the session that had this name and was deleted."""
        return self._key("former", name)

    def idempotency(self, key: str) -> str:
        """String with a TTL: ``digest id`` of a creation's key."""
        return self._key("key", _hashed(key))


KEPT_ROUNDS = 1000  # documents of closed rounds
BULK = "adamd:{bulk}:identity"  # string: the identity of the bulk directory
BULK_ALIVE = "adamd:{bulk}:alive"  # string with a TTL: the place of the directory whose server lives
BULK_OF_SESSIONS = "adamd:{*}:bulk"  # a pattern: every session's `SessionKeys.bulk`
BULK_SESSIONS = "adamd:{bulk}:sessions"  # set: ids of sessions that may have extents


def session_of(bulk_token: bytes) -> str:
    """Return the session whose key of `BULK_OF_SESSIONS` this is; "" where it is no session's."""
    tag = bulk_token.decode(errors="replace").removeprefix("adamd:{").removesuffix("}:bulk")
    session_id = tag.replace("%7D", "}").replace("%25", "%")
    return session_id if SessionKeys(session_id).bulk.encode() == bulk_token else ""


def replica(name: str) -> str:
    """String with a TTL: this server process lives."""
    return f"adamd:replica:{name}"


def slot(step: int) -> int:
    """Return a step's place in the ring."""
    return step % RING


def _escaped(name: str) -> str:
    """Return an id or a tenant for a hash tag. One from outside may hold anything, and must not end the tag early."""
    return name.replace("%", "%25").replace("}", "%7D")


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def snapshot_keys(names: SessionKeys, snapshots: tuple[SnapshotRef, ...]) -> list[str]:
    """Return the keys of all chunks of these snapshots."""
    lists = (names.snapshot_chunks(ref.id, ((a.name, len(a.bulk.chunks)) for a in ref.arrays)) for ref in snapshots)
    return list(chain.from_iterable(lists))


def snapshot_lengths(snapshots: tuple[SnapshotRef, ...]) -> list[int]:
    """Return their lengths in bytes, in the same order."""
    return [length for ref in snapshots for array in ref.arrays for length in array.bulk.chunks]
