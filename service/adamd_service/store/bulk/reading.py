"""Reads extents: past the page cache through aligned memory, and contributions through the cache."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from adamd.errors import Damaged
from adamd.wire.buffers import Bytes
from adamd_service.records import BulkRef
from adamd_service.store.bulk.disk import OpenFile
from adamd_service.store.bulk.extents import PAGE, WIPED
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.outcomes import ChunkMissing

BOUNCE_BYTES: Final = 1024 * 1024  # of aligned memory, for bytes that do not begin on a page


class Bounce:
    """Memory that begins on a page, for each thread its own."""

    def __init__(self) -> None:
        self._local = threading.local()

    def memory(self) -> memoryview:
        """Return this thread's `BOUNCE_BYTES`."""
        bounce: memoryview | None = getattr(self._local, "bounce", None)
        if bounce is None:
            bounce = self._local.bounce = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        return bounce


@dataclass(frozen=True, slots=True)
class Reading:
    """Reads open extents. Its methods raise OSError, and ChunkMissing where a file is shorter than it was."""

    bounce: Bounce

    def whole(self, file: OpenFile, ref: BulkRef, target: memoryview) -> None:
        """Fill the target with all of an extent, where it can be without a copy."""
        direct = ref.length // PAGE * PAGE if address(target) % PAGE == 0 else 0
        if direct and file.read(target[:direct], 0) < direct:
            raise _shorter(ref)
        self.part(file, ref, direct, target[direct:])

    def part(self, file: OpenFile, ref: BulkRef, start: int, target: memoryview) -> None:
        """Fill the target with the bytes from ``start`` on."""
        if not is_cached(ref.extent):
            self._through_bounce(file, ref, start, target)
        elif file.read(target, start) < target.nbytes:
            raise _shorter(ref)

    def _through_bounce(self, file: OpenFile, ref: BulkRef, start: int, target: memoryview) -> None:
        bounce, done = self.bounce.memory(), 0
        while done < target.nbytes:
            skipped = (start + done) % PAGE
            length = min(BOUNCE_BYTES - skipped, target.nbytes - done)
            if file.read(bounce[: pages(skipped + length)], start + done - skipped) < skipped + length:
                raise _shorter(ref)
            target[done : done + length] = bounce[skipped : skipped + length]
            done += length


@dataclass(frozen=True, slots=True)
class ExtentReader:
    """An extent that stays open while its parts are read, by several threads at once."""

    reading: Reading
    name: BulkName
    ref: BulkRef
    file: OpenFile

    def read(self, start: int, into: Bytes) -> None:
        """Fill ``into`` with the bytes from ``start`` on.

        Raises:
            ChunkMissing: the file is shorter than it was.
            Damaged: it cannot be read, or there are not as many bytes.

        """
        if start + into.nbytes > self.ref.length:
            raise Damaged(f"an extent with {self.ref.length} bytes for bytes {start} to {start + into.nbytes}")
        with damaged(self.name, self.ref):
            self.reading.part(self.file, self.ref, start, memoryview(into))

    def close(self) -> None:
        """Close it, once nobody reads it."""
        self.file.close()


@contextmanager
def damaged(name: BulkName, ref: BulkRef) -> Iterator[None]:
    """Raise Damaged for the disk's errors."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"the extent {ref.extent} of {name.owner} cannot be read: {error.strerror}") from None


def is_cached(extent: str) -> bool:
    """Say whether an extent is written and read through the page cache: a contribution's."""
    return extent.startswith(WIPED)


def _shorter(ref: BulkRef) -> ChunkMissing:
    return ChunkMissing(f"the extent {ref.extent} is shorter than it was")


def pages(nbytes: int) -> int:
    """Return bytes, rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def address(part: memoryview) -> int:
    """Return where the memory begins."""
    address: int = np.frombuffer(part, np.uint8).__array_interface__["data"][0]
    return address
