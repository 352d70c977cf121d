"""What the disk under the servers' data takes for the same bytes, written as plainly as a user would."""

from __future__ import annotations

import os
from pathlib import Path

from bench.clock import Floats, timed


class LocalFile:
    """The vector in a local file: a new one for each step, or one that is overwritten in place; synced or not."""

    def __init__(self, directory: Path, gradient: Floats, *, recycled: bool, synced: bool) -> None:
        kind = "recycled" if recycled else "fresh"
        self.name = f"{kind} file, fdatasync" if synced else f"{kind} file"
        self._directory = directory / self.name.replace(", ", "-").replace(" ", "-")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._bytes = memoryview(gradient).cast("B")
        self._recycled = recycled
        self._synced = synced
        self._count = 0

    @timed
    def step(self) -> None:
        path = self._path()
        with path.open("r+b" if self._recycled and path.exists() else "wb", buffering=0) as file:
            written = 0
            while written < self._bytes.nbytes:
                written += file.write(self._bytes[written:])
            if self._synced:
                os.fdatasync(file.fileno())
        self._count += 1

    def settle(self) -> None:
        """Leave nothing to be written while the next contender is timed."""
        if not self._recycled:
            self.close()
        elif self._path().exists():
            with self._path().open("r+b") as file:
                os.fdatasync(file.fileno())

    def close(self) -> None:
        for path in self._directory.iterdir():
            path.unlink()

    def _path(self) -> Path:
        return self._directory / ("vector" if self._recycled else f"vector-{self._count}")


def local_files(directory: Path, gradient: Floats) -> list[LocalFile]:
    """Return all four: fresh and recycled, each with and without a sync."""
    return [
        LocalFile(directory, gradient, recycled=recycled, synced=synced)
        for recycled in (False, True)
        for synced in (False, True)
    ]
