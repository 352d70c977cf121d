"""Watches the room on the private store's disk: growth is refused before it is full, deletion never is.

A store that cannot append to its file ends, at each start anew. So nothing may grow unless what is free also holds one
rewrite of the file: unlinked keys give their room back only when the file is rewritten, and a rewrite is written
beside the old one. A small file is kept in reserve: should another program fill the disk, removing it leaves room for a
DELETE.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from adamd.errors import StoreFull
from adamd_service.store.embedded.private_files import opened

MIB: Final = 2**20
LOOK_VALID_SECONDS: Final = 0.005  # of one look at the disk: others fill it too
IN_FLIGHT_SECONDS: Final = 0.25  # after which accepted bytes show on the disk: the store writes before it answers
log = structlog.get_logger()


class DiskRoom:
    """What may still be written into a directory's disk. Thread-safe.

    Bounds shrink with the disk: ``margin`` bytes stay free beside what a rewrite needs, and the reserve and the floor,
    below which nothing at all is written, are parts of it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "reserve"
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()  # when so many bytes were let in
        self._recent_bytes = 0
        self._since = 0  # bytes let in since it was asked how much a rewrite would write
        self._free = self._looked = 0.0
        self._needed = 0
        self.margin = self.reserve = self.floor = 0
        self.full = False
        self.unable = ""  # why the store could not write lately, whatever is free: a quota, a limit on files

    def require(self, nbytes: int) -> None:
        """Accept bytes that stay.

        Raises:
            StoreFull: then a rewrite would no longer fit.

        """
        with self._lock:
            now = time.monotonic()
            self._look(now, LOOK_VALID_SECONDS)
            if self.unable or not self._fits(nbytes):
                raise StoreFull(self.reason(nbytes), retry_after=2.0)
            self._recent.append((now, nbytes))
            self._recent_bytes += nbytes
            self._since += nbytes

    def require_any(self) -> None:
        """Raise StoreFull if hardly anything more is accepted."""
        with self._lock:
            self._look(time.monotonic(), LOOK_VALID_SECONDS)
            if self.unable or not self._fits(self._least):
                raise StoreFull(self.reason(), retry_after=2.0)

    def require_spare(self) -> None:
        """Accept something small, or something that makes room.

        Raises:
            StoreFull: there is no room even for that.

        """
        with self._lock:
            self._look(time.monotonic(), LOOK_VALID_SECONDS)
            if self._free >= self.floor:
                return
            self._file.unlink(missing_ok=True)
            self._look(time.monotonic(), 0.0)
            if self._free < self.floor:
                raise StoreFull(self.reason(), retry_after=2.0)

    def is_full(self) -> bool:
        """Say whether there is no room for anything."""
        with suppress(StoreFull):
            self.require_spare()
            return False
        return True

    def reason(self, nbytes: int | None = None) -> str:
        """Return why so many bytes are not accepted; None: why hardly anything is."""
        if self.unable:
            return f"the store cannot write to its disk ({self.unable}); delete sessions, or make room for it"
        needed = self._wanted(self._least if nbytes is None else nbytes)
        return (
            f"the store's disk is nearly full: {self._free / MIB:,.1f} MiB are free, and {needed / MIB:,.1f} are "
            "needed to rewrite its file; delete sessions, or make room there"
        )

    def look(self, needed: int) -> None:
        """Look at the disk, from time to time. ``needed``: bytes that a rewrite of the file would write."""
        with self._lock:
            self._look(time.monotonic(), 0.0)
            self._needed, self._since = needed, self._recent_bytes
            has_reserve = self._file.exists()
            if self._free < self.floor and has_reserve:
                self._file.unlink(missing_ok=True)
                self._look(time.monotonic(), 0.0)
            elif not has_reserve and self._free >= needed + self.margin + 2 * self.reserve:
                self._keep()
            full = bool(self.unable) or not self._fits(self._least)
            if full != self.full:
                self.full = full
                if full:
                    log.error("the store takes no more", reason=self.reason(), directory=str(self._directory))
                else:
                    log.info("the store has room again", directory=str(self._directory))

    @property
    def available(self) -> float:
        """Bytes that are free for growth; each byte of a body needs two."""
        return self._free - self._needed - self.margin

    def fits_a_rewrite(self) -> bool:
        """Say whether the file could be rewritten now."""
        return self._free >= self._needed + self.floor

    @property
    def _least(self) -> int:
        """Bytes that a store accepts which is not full."""
        return self.margin // 4

    def _fits(self, nbytes: int) -> bool:
        return self._free >= self._wanted(nbytes)

    def _wanted(self, nbytes: int) -> int:
        """Return what has to be free for so much: once for the file as it is, and once for the rewritten one."""
        return self._needed + self._since + self._recent_bytes + self.margin + 2 * nbytes

    def _look(self, now: float, fresh: float) -> None:
        if now - self._looked < fresh:
            return
        disk = os.statvfs(self._directory)
        self._free, self._looked = (
            (disk.f_bavail * disk.f_frsize if disk.f_blocks else math.inf),
            now,
        )  # not every one tells
        total = disk.f_blocks * disk.f_frsize
        self.margin = min(64 * MIB, total // 16)
        self.reserve = min(16 * MIB, total // 64)
        self.floor = self.reserve // 4
        while self._recent and self._recent[0][0] < now - IN_FLIGHT_SECONDS:
            self._recent_bytes -= self._recent.popleft()[1]

    def _keep(self) -> None:
        with suppress(OSError, AttributeError), opened(self._file) as file:  # not every system has it
            os.posix_fallocate(file, 0, self.reserve)
