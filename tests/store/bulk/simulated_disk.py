"""A disk that forgets.

At a crash each page that was not synced is kept, lost, or mixed with what was there.
"""

import errno

from adamd_service.store.bulk.extents import PAGE


class Crash(BaseException):
    """The machine has lost its power."""


class SimulatedDisk:
    """`disk.Disk` in memory. ``rng`` decides what a crash leaves; ``crash_at`` counts calls that change something.

    ``faults``: call numbers at which a write or a sync fails with EIO. ``room``: bytes of all files together.
    """

    direct = True

    def __init__(self, rng, room=2**40):
        self.rng = rng
        self.room = room
        self.files = {}
        self.unsynced = {}  # name: {page: bytes}
        self.calls = 0
        self.crash_at = None
        self.faults = set()

    def _call(self, what):
        self.calls += 1
        if self.crash_at is not None and self.calls >= self.crash_at:
            raise Crash(f"{what}, call {self.calls}")
        if self.calls in self.faults:
            raise OSError(errno.EIO, "the disk failed")

    def names(self):
        return list(self.files)

    def make(self, name, nbytes):
        self._call(f"make {name}")
        if nbytes > self.free():
            raise OSError(errno.ENOSPC, "no space left")
        self.files[name] = bytearray(nbytes)
        self.unsynced[name] = {}

    def open(self, name, *, cached=False):
        if name not in self.files:
            raise OSError(errno.ENOENT, "no such file")
        return SimulatedFile(self, name)

    def rename(self, name, new):
        self._call(f"rename {name}")
        self.files[new], self.unsynced[new] = self.files.pop(name), self.unsynced.pop(name)

    def remove(self, name):
        self._call(f"remove {name}")
        del self.files[name], self.unsynced[name]

    def free(self):
        return self.room - sum(map(len, self.files.values()))

    def crash(self):
        """Lose power: keep, forget or tear each page that was not synced."""
        for name, pages in self.unsynced.items():
            for page, data in pages.items():
                fate, place = self.rng.random(), slice(page * PAGE, (page + 1) * PAGE)
                if fate < 0.4:
                    self.files[name][place] = data
                elif fate < 0.6:
                    torn = self.rng.randrange(PAGE)
                    self.files[name][place.start : place.start + torn] = data[:torn]
            pages.clear()
        self.crash_at = None
        self.faults.clear()


class SimulatedFile:
    """A file of it that is open."""

    def __init__(self, disk, name):
        self._disk = disk
        self._name = name

    def write(self, part, offset):
        assert offset % PAGE == 0 and part.nbytes % PAGE == 0, "a direct write begins and ends on a page"
        self._disk._call(f"write {self._name}")
        for start in range(0, part.nbytes, PAGE):
            page = bytes(part[start : start + PAGE])
            assert offset + start + PAGE <= len(self._disk.files[self._name]), "beyond the end of the extent"
            self._disk.unsynced[self._name][(offset + start) // PAGE] = page

    def read(self, into, offset):
        whole = bytearray(self._disk.files[self._name])
        for page, data in self._disk.unsynced[self._name].items():
            whole[page * PAGE : (page + 1) * PAGE] = data
        data = whole[offset : offset + into.nbytes]
        into[: len(data)] = data
        return len(data)

    def sync(self):
        pages = self._disk.unsynced[self._name]
        try:
            self._disk._call(f"sync {self._name}")
        except OSError:
            pages.clear()  # Linux calls them clean, and the next sync of the same file says nothing
            raise
        for page, data in pages.items():
            self._disk.files[self._name][page * PAGE : (page + 1) * PAGE] = data
        pages.clear()

    def close(self):
        pass
