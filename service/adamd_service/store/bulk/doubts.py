"""Doubts: calls that were sent and may have named extents, until their outcome is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from adamd.errors import StoreUnavailable
from adamd_service.records import BulkRef, CommitOutcome, Committed, Record
from adamd_service.store.bulk.files import FileBulk

DOUBT_SECONDS: Final = 60.0  # a step without an outcome is asked for after so long
SNAPSHOT_DOUBT_SECONDS: Final = 900.0  # and a snapshot, whose script has no fence: as long as its chunks would live


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that was sent and whose outcome is not known: it may name extents.

    Attributes:
        session_id: whose it is.
        owner: the attempt, or the snapshot's id.
        step: that the attempt would be; None for a snapshot.
        since: by the monotonic clock.
        looks: how often the store was seen not to name the snapshot.

    """

    session_id: str
    owner: str
    step: int | None
    since: float
    looks: int = 0


class Doubts:
    """The calls of this process whose outcome is not known. Thread-safe."""

    def __init__(self, files: Callable[[], FileBulk | None], confirm: Callable[[float], None]) -> None:
        """Hold extents of ``files``, which are None where this process has none; see `Homes.confirm`."""
        self._files = files
        self._confirm = confirm
        self._doubts: dict[tuple[str, str], Doubt] = {}
        self._lock = threading.Lock()

    def add(self, session_id: str, owner: str, refs: Iterable[BulkRef], step: int | None = None) -> bool:
        """Hold extents that are about to be named, until `settle`. False: one of them is not there any more."""
        extents = [ref.extent for ref in refs if ref.extent]
        if not extents:
            return True
        files = self._files()
        if files is None or not files.doubt(session_id, owner, extents):
            return False
        with self._lock:
            self._doubts[session_id, owner] = Doubt(session_id, owner, step, time.monotonic())
        return True

    def settle(self, session_id: str, owner: str, *, named: bool) -> None:
        """Note the outcome: the extents are named now, or nothing that was sent will name them."""
        with self._lock:
            known = self._doubts.pop((session_id, owner), None)
        files = self._files()
        if known is not None and files is not None:
            files.settle(session_id, owner, named=named)
            if named:
                self._confirm(known.since)

    @contextmanager
    def naming(self, session_id: str, record: Record) -> Iterator[Callable[[CommitOutcome], CommitOutcome] | None]:
        """Hold a record's extent in doubt while its commit is under way, and until its outcome is known.

        None: it is not there any more, as chunks whose time has run out.
        """
        attempt = record.attempt
        if not self.add(session_id, attempt, (record.bulk,), record.step):
            yield None
            return

        def known(outcome: CommitOutcome) -> CommitOutcome:
            self.settle(session_id, attempt, named=isinstance(outcome, Committed))
            return outcome

        try:
            yield known
        except StoreUnavailable:  # and StoreFull: the script did not run, and will not
            self.settle(session_id, attempt, named=False)
            raise

    def sweep(
        self, outcome: Callable[[str, str, int], str], snapshots: Callable[[str], Collection[str]], now: float
    ) -> int:
        """Find out what became of old doubts, so that a lost answer costs no disk for ever; returns how many ended.

        Args:
            outcome: says of a session, an attempt and its step: committed, fenced or unknown, as `resolve` does.
            snapshots: returns the ids of the snapshots that a session's head names; none where it is gone.
            now: by the monotonic clock.

        A snapshot's script has no fence. It is given up when the store did not name it at two looks, one sweep apart:
        the store had read everything that was sent before the first of them.

        """
        with self._lock:
            doubts = list(self._doubts.values())
        ended = 0
        for doubt in doubts:
            if doubt.step is not None and now - doubt.since > DOUBT_SECONDS:
                known = outcome(doubt.session_id, doubt.owner, doubt.step)  # unknown: long ago, and freed since
                ended += self._ended(doubt, named=known == "committed")
            elif doubt.step is None and now - doubt.since > SNAPSHOT_DOUBT_SECONDS:
                ended += self._snapshot_swept(doubt, named=doubt.owner in snapshots(doubt.session_id))
        return ended

    def _snapshot_swept(self, doubt: Doubt, *, named: bool) -> bool:
        if not named and not doubt.looks:
            with self._lock:
                self._doubts[doubt.session_id, doubt.owner] = replace(doubt, looks=1)
            return False
        return self._ended(doubt, named=named)

    def _ended(self, doubt: Doubt, *, named: bool) -> bool:
        self.settle(doubt.session_id, doubt.owner, named=named)
        files = self._files()
        if files is not None:
            files.release(doubt.session_id, doubt.owner)
        return True
