"""Opens a store's bulk directory: lock, identity, and the list of what is free."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from adamd_service.store.bulk.directory import BulkDirectory
from adamd_service.store.bulk.disk import RealDisk
from adamd_service.store.bulk.extents import NAME, Extents, Owner, Use
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.outcomes import StoreRefused
from adamd_service.store.redis_store import RedisStore

WRITERS: Final = 4  # threads that write: a disk wants several writes at once
SPARE_BYTES: Final = 1024 * 1024 * 1024  # of free extents
HOLD_SECONDS: Final = 3.0  # a store that syncs every second may lose 2 of them
MARGIN_BYTES: Final = 128 * 1024 * 1024  # of the disk that stay free, or an eighth of it: twice the store's own margin
log = structlog.get_logger()


@contextmanager
def bulk_files(
    path: Path,
    store: RedisStore,
    *,
    synced: bool,
    written: bool = True,
    spare: int = SPARE_BYTES,
    shared: bool = False,
    server: str = "",
    hold: float = 0.0,
    option: str = "--bulk-dir",
    allow_lost: bool = False,
) -> Iterator[FileBulk]:
    """Open the directory at ``path`` for this store, which keeps its bulk there until the end.

    Args:
        path: the directory; it is made where it is missing.
        store: whose bulk it is.
        written: new bulk goes there; else only what is there is read.
        spare: bytes of free extents that are kept at most.
        synced: every body is on the disk before its step is committed; else the store's own sync takes it along.
        shared: other replicas use the store too.
        server: what people call this server.
        hold: seconds of history that the store may lose; see `FileBulk`.
        option: of `adamd serve`, which chose ``path``; errors name it.
        allow_lost: take the directory although sessions lose their vectors, which lay in another one.

    Raises:
        StoreRefused: the directory cannot be used, or is not the one that the store knows.

    """
    directory = BulkDirectory(path, option)
    directory.open()
    try:
        identity = directory.agree(store.bulk.notes, server, allow_lost=allow_lost)
        if shared:
            store.bulk.notes.live(directory.place)
            store.bulk.notes.replace_tokens(identity)  # before the names are read: nothing may be named after that
        try:
            disk = RealDisk(path)
            extents = listed(disk.names(), store.bulk.named())
        except OSError as error:
            raise StoreRefused(f"cannot use {path}: {error.strerror}; choose another {option}") from None
        margin = min(MARGIN_BYTES, shutil.disk_usage(path).total // 8)
        writers = ThreadPoolExecutor(WRITERS, "adamd-bulk")
        files = FileBulk(
            disk, extents, store.bulk.notes.expect, writers, synced=synced, margin=margin, spare=spare, hold=hold
        )
        store.bulk.keep_in(files, written=written, shared=identity if shared else None)
        if directory.is_new and not shared:  # no extent before the note is safe: else they look like another store's
            store.bulk.files_from = time.monotonic() + hold
        try:
            yield files
        finally:
            files.close()
            store.bulk.end()
    finally:
        directory.close()


def listed(names: Iterable[str], owners: Mapping[str, Owner]) -> Extents:
    """Return the extents among these files. What the store names is its owner's, and the rest is free."""
    extents, present = Extents(), set(filter(NAME.fullmatch, names))
    for name in sorted(present):
        owner = owners.get(name)
        extents.add(name, Use.FREE if owner is None else Use.NAMED, owner)
    lost = defaultdict[str, list[str]](list)
    for name in sorted(owners.keys() - present):
        extents.skip(name)
        lost[owners[name].session_id].append(name)
    for session_id, missing in lost.items():
        log.error(
            "extents that the store names are not in the bulk directory",
            session=session_id,
            count=len(missing),
            first=missing[0],
        )
    return extents
