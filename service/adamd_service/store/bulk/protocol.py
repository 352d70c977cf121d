"""The protocol that both homes of bulk keep: chunks in the store, and extents in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from adamd.wire.buffers import Bytes
from adamd_service.records import BulkRef
from adamd_service.store.keys import SessionKeys


@dataclass(frozen=True, slots=True)
class BulkName:
    """Whose bytes they are: a step's body, a contribution, or an array of a snapshot.

    Attributes:
        session_id: the session.
        owner: the attempt of a step or a contribution, or the id of a snapshot.
        array: the array's name; "" for a body.
        wiped: it is a contribution, whose bytes are overwritten when nothing names them any more.

    """

    session_id: str
    owner: str
    array: str = ""
    wiped: bool = False

    def key(self, index: int) -> str:
        """Return the key of a chunk in the store."""
        names = SessionKeys(self.session_id)
        return names.snapshot(self.owner, self.array, index) if self.array else names.chunk(self.owner, index)

    def keys(self, ref: BulkRef) -> list[str]:
        """Return the keys of all chunks of ``ref``."""
        return [self.key(index) for index in range(len(ref.chunks))]


class Staging(Protocol):
    """Bytes on their way, which nothing names yet. Used by one thread at a time, except for `abort`.

    ``piece`` is a length in bytes: hand over multiples of it, except at the end.
    """

    piece: int

    def write(self, part: memoryview) -> None:
        """Write the next part, perhaps without waiting for it. ``part`` must not change before `finish`."""

    def finish(self) -> BulkRef:
        """Wait until everything is as durable as the home promises; returns where it lies, also when asked again.

        Raises:
            StoreUnavailable, StoreFull: it is not.

        """

    def abort(self) -> None:
        """Give up, from any thread and without waiting."""


class Bulk(Protocol):
    """One home of bulk. Every method is called from worker threads."""

    def stage(self, name: BulkName, nbytes: int) -> Staging:
        """Return a way to write ``nbytes``.

        Raises:
            Busy: as many as possible are under way.
            StoreFull: there is no room.

        """

    def write(self, name: BulkName, data: Bytes, pace: Callable[[int], None] | None) -> BulkRef:
        """Write bytes that are there already. ``pace`` is told the length of each piece, and may wait or raise."""

    def read(self, name: BulkName, ref: BulkRef, into: Bytes) -> None:
        """Fill ``into``, which is exactly as long. The caller compares the digest.

        Raises:
            ChunkMissing: it is not there.

        """
