"""Makes a directory and files that only this user can read and write. Others could put steps into the store."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamd_service.store.outcomes import StoreRefused


def make(directory: Path, option: str) -> None:
    """Make a directory that nobody else can look into, or see to it that the one that is there is so.

    ``option``: the option of `adamd serve` that chose the directory; the errors name it.

    Raises:
        StoreRefused: it cannot be made, is no directory of its own, or is open to others.

    """
    try:
        # Whoever could write into the directory above could put another one in its place.
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise StoreRefused(f"cannot make {directory}: {error.strerror}; choose another {option}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise StoreRefused(
            f"cannot use {directory}: it is a symbolic link, which may lead to another's files; give {option} the "
            "directory itself"
        )
    if status.st_uid != os.geteuid():
        raise StoreRefused(
            f"cannot use {directory}: it belongs to user {status.st_uid}, and adamd runs as user {os.geteuid()}. Run "
            f"it as that user, give it the files (chown -R {os.geteuid()} {directory}), or choose another {option}"
        )
    if status.st_mode & 0o077:
        raise StoreRefused(
            f"cannot use {directory}: other users can read or write there (mode {status.st_mode & 0o777:o}). "
            f"chmod 700 {directory} after a look at what is in it, or choose another {option}"
        )
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            raise StoreRefused(f"cannot use {path}: it is a symbolic link, and the store would write where it leads")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to write it anew, readable for this user alone, and never through a symbolic link.

    Raises:
        OSError: it cannot be had.

    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)
