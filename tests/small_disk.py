"""A small disk of a test's own, which another program can fill."""

import errno
import os
import subprocess
import threading
from contextlib import contextmanager

import pytest

MIB = 2**20
PIECE = 64 * 1024
LOOK = 0.01  # seconds between two looks for room that has come back


@contextmanager
def small_disk(here, mib):
    """Mount a disk of so many MiB (tmpfs) at a directory, which is made. Only root can; others skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    here.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", here]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield here
    finally:
        subprocess.run(["umount", "-l", here], check=True)


class Hog:
    """Another program on the disk: from `fill` to `empty` it takes all the room that there is, and what comes free."""

    def __init__(self, disk):
        self.disk = disk
        self.path = disk / "hog"
        self.over = threading.Event()
        self.thread = None

    def fill(self):
        """Return when nothing is free any more."""
        self.over.clear()
        self._take()
        self.thread = threading.Thread(target=self._go_on, name="hog")
        self.thread.start()

    def empty(self):
        """Give everything back."""
        self.over.set()
        self.thread.join()
        self.path.unlink()

    def free(self):
        seen = os.statvfs(self.disk)
        return seen.f_bavail * seen.f_frsize

    def _go_on(self):
        while not self.over.wait(LOOK):
            self._take()

    def _take(self):
        with self.path.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PIECE))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
