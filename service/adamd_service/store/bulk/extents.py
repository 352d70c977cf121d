"""Which extents are free and who has the others. Pure: it opens no file."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Final

PAGE: Final = 4096  # bytes; direct writes begin and end at multiples of it
SMALLEST_BYTES: Final = 512 * 1024  # of an extent
STEPS: Final = 8  # size classes from one power of two to the next: at most an eighth of an extent is waste
NAME: Final = re.compile(r"x([0-9]{6,15})-([0-9]{1,12})")


class Use(Enum):
    """What an extent is used for."""

    FREE = "free"
    STAGED = "staged"  # it is written, and nothing names it
    DOUBT = "doubt"  # a commit that names it was sent, and its outcome is not known
    NAMED = "named"  # the store names it
    HELD = "held"  # nothing names it any more, but a store that loses its last seconds would name it again


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has an extent: a session's attempt or snapshot, and which array of the latter."""

    session_id: str
    owner: str
    array: str = ""


@dataclass(slots=True)
class _Extent:
    use: Use = Use.FREE
    owner: Owner | None = None


MANY: Final = Owner("", "")  # the store names it for several; none of them may free it, and digests tell whose it is


def class_of(nbytes: int) -> int:
    """Return the bytes of the smallest size class that holds ``nbytes``.

    Between 2^k and 2^(k+1) there are `STEPS` classes, at equal distances.
    """
    need = max(nbytes, SMALLEST_BYTES)
    step = max(PAGE, (1 << (need - 1).bit_length()) // 2 // STEPS)
    return -(-need // step) * step


def name_of(size: int, number: int) -> str:
    """Return the name of an extent's file."""
    return f"x{size:06d}-{number}"


def size_of(name: str) -> int:
    """Return an extent's bytes.

    Raises:
        ValueError: it is no name of an extent.

    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no extent")
    return int(match[1])


class Extents:
    """The extents of a directory. Not thread-safe: `FileBulk` holds its lock around each call.

    An extent that is not free has one owner, and only its owner frees it. So a name that is read twice, or late, frees
    nothing that others have by now.
    """

    def __init__(self) -> None:
        self._extents: dict[str, _Extent] = {}
        self._free: dict[int, list[str]] = defaultdict(list)  # by size class; the last one is taken first
        self._of: dict[str, set[str]] = defaultdict(set)  # by session
        self._least: dict[int, int] = {}  # by size class: the fewest that were free since `unused` looked
        self._next = 1
        self.bytes = 0
        self.free_bytes = 0

    def add(self, name: str, use: Use = Use.FREE, owner: Owner | None = None) -> None:
        """Add an extent that is in the directory."""
        if name in self._extents:
            raise ValueError(f"the extent {name} is there twice")
        size = size_of(name)
        self.skip(name)
        self.bytes += size
        self._extents[name] = _Extent()
        if use is Use.FREE:
            self._release(name)
        else:
            self._assign(name, use, owner)

    def skip(self, name: str) -> None:
        """Make no extent by this name: it is there, or the store names it and its file is lost."""
        self._next = max(self._next, int(name.rpartition("-")[2]) + 1)

    def new_name(self, nbytes: int) -> str:
        """Return the name of an extent to be made for ``nbytes``. No name is used twice."""
        name = name_of(class_of(nbytes), self._next)
        self._next += 1
        return name

    def take(self, nbytes: int, owner: Owner) -> str | None:
        """Return a free extent for ``nbytes``, staged for ``owner`` from now on; None where there is none."""
        free = self._free.get(class_of(nbytes))
        if not free:
            return None
        name = free.pop()
        size = size_of(name)
        self._least[size] = min(self._least.get(size, len(free)), len(free))
        self.free_bytes -= size
        self._assign(name, Use.STAGED, owner)
        return name

    def move(self, name: str, owner: Owner, before: frozenset[Use], after: Use) -> bool:
        """Change what ``owner`` uses an extent for; False where it is another's, or used for something else."""
        extent = self._extents.get(name)
        if extent is None or extent.owner != owner or extent.use not in before:
            return False
        if after is Use.FREE:
            self._unassign(name)
            self._release(name)
        else:
            extent.use = after
        return True

    def has(self, name: str, owner: Owner) -> bool:
        """Say whether an extent is ``owner``'s, or perhaps: its session's or somebody's, where nobody knows more."""
        extent = self._extents.get(name)
        return extent is not None and extent.owner in (owner, Owner(owner.session_id, ""), MANY)

    def forget(self, name: str) -> None:
        """Take an extent out of the list for good: its file is removed or retired."""
        extent = self._extents.pop(name)
        size = size_of(name)
        self.bytes -= size
        if extent.use is Use.FREE:
            self._free[size].remove(name)
            self.free_bytes -= size
        else:
            self._extents[name] = extent
            self._unassign(name)
            del self._extents[name]

    def of_session(self, session_id: str) -> list[tuple[str, Owner, Use]]:
        """Return the extents that a session has."""
        found = []
        for name in sorted(self._of.get(session_id, ())):
            extent = self._extents[name]
            assert extent.owner is not None
            found.append((name, extent.owner, extent.use))
        return found

    def named(self) -> dict[str, Owner]:
        """Return the extents that the store names, and their owners."""
        every = self._extents.items()
        return {name: one.owner for name, one in every if one.use is Use.NAMED and one.owner is not None}

    def excess(self, most: int) -> list[str]:
        """Return free extents to remove, so that at most ``most`` bytes are free: the largest class first."""
        excess, names = self.free_bytes - most, list[str]()
        for size in sorted(self._free, reverse=True):
            for name in self._free[size]:
                if excess <= 0:
                    return names
                names.append(name)
                excess -= size
        return names

    def unused(self) -> list[str]:
        """Return the free extents that nobody needed since this was asked before."""
        least, self._least = self._least, {size: len(names) for size, names in self._free.items()}
        return [name for size, names in self._free.items() for name in names[: least.get(size, 0)]]

    def _assign(self, name: str, use: Use, owner: Owner | None) -> None:
        extent = self._extents[name]
        extent.use, extent.owner = use, owner
        if owner is not None:
            self._of[owner.session_id].add(name)

    def _unassign(self, name: str) -> None:
        extent = self._extents[name]
        if extent.owner is not None:
            names = self._of[extent.owner.session_id]
            names.discard(name)
            if not names:
                del self._of[extent.owner.session_id]
        extent.use, extent.owner = Use.FREE, None

    def _release(self, name: str) -> None:
        size = size_of(name)
        self._free[size].append(name)
        self.free_bytes += size
