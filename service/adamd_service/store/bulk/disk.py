"""The disk as a port: the few file calls that bulk needs, and the real ones.

The tests have a disk that forgets.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from adamd_service.store.bulk.extents import PAGE

DIRECT: Final = getattr(os, "O_DIRECT", 0)
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FLAGS: Final = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


class OpenFile(Protocol):
    """A file that is open. Every method raises OSError."""

    def write(self, part: memoryview, offset: int) -> None:
        """Write all of ``part``. Where `Disk.direct` is set: whole pages, from memory that begins on a page."""

    def read(self, into: memoryview, offset: int) -> int:
        """Fill ``into`` as far as the file goes; returns the bytes."""

    def sync(self) -> None:
        """Wait until what was written would survive a power cut."""

    def close(self) -> None:
        """Close it."""


class Disk(Protocol):
    """A directory. Every method raises OSError."""

    direct: bool  # writes go past the page cache

    def names(self) -> list[str]:
        """Return the names of the files in it."""

    def make(self, name: str, nbytes: int) -> None:
        """Make a file of so many bytes, with room for all of them, and sync its name."""

    def open(self, name: str, *, cached: bool = False) -> OpenFile:
        """Open a file to read and write it; ``cached``: through the page cache, also where `direct` is set."""

    def rename(self, name: str, new: str) -> None:
        """Rename a file, and sync the names."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def free(self) -> int:
        """Return the bytes that are free."""


class RealFile:
    """A file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, part: memoryview, offset: int) -> None:
        """Write all of ``part``."""
        while part.nbytes:
            count = os.pwrite(self._descriptor, part, offset)
            part, offset = part[count:], offset + count

    def read(self, into: memoryview, offset: int) -> int:
        """Fill ``into`` as far as the file goes; returns the bytes."""
        start = offset
        while into.nbytes and (count := os.preadv(self._descriptor, [into], offset)):
            into, offset = into[count:], offset + count
        return offset - start

    def sync(self) -> None:
        """Sync the data."""
        getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class RealDisk:
    """A directory of this machine. ``direct``: None finds out whether the file system takes direct writes."""

    def __init__(self, directory: Path, *, direct: bool | None = None) -> None:
        self._directory = directory
        self.direct = self._takes_direct() if direct is None else direct

    def _takes_direct(self) -> bool:
        """Write one page past the page cache: tmpfs and some overlays refuse that, at `open` or at the write."""
        if not DIRECT:
            return False
        probe = self._directory / "probe"
        page = mmap.mmap(-1, PAGE)
        try:
            descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | DIRECT | FLAGS, 0o600)
            try:
                os.pwrite(descriptor, page, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, *FULL):
                raise
            return False  # on a full disk too: through the page cache goes everywhere
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return True

    def names(self) -> list[str]:
        """Return the names of the files in it, and of nothing else."""
        with os.scandir(self._directory) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]

    def make(self, name: str, nbytes: int) -> None:
        """Make a file of so many bytes, with room for all of them, and sync its name."""
        path = self._directory / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, 0o600)
        try:
            try:
                self._allocate(descriptor, nbytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_names(self._directory)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise

    def _allocate(self, descriptor: int, nbytes: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, nbytes)
        else:
            os.ftruncate(descriptor, nbytes)

    def open(self, name: str, *, cached: bool = False) -> RealFile:
        """Open a file to read and write it; ``cached``: through the page cache, also where `direct` is set."""
        descriptor = os.open(self._directory / name, os.O_RDWR | FLAGS | (DIRECT if self.direct and not cached else 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", name)
        return RealFile(descriptor)

    def rename(self, name: str, new: str) -> None:
        """Rename a file, and sync the names."""
        (self._directory / name).rename(self._directory / new)
        sync_names(self._directory)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._directory / name).unlink(missing_ok=True)

    def free(self) -> int:
        """Return the bytes that are free."""
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else 2**63  # not every one tells


def sync_names(directory: Path) -> None:
    """Sync a directory itself: the names of the files in it would survive a power cut then. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
