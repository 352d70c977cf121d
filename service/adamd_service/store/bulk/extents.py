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
NAME: Final = re.compile(r"[cx]([0-9]{6,15})-([0-9]{1,12})")
WIPED: Final = "c"  # begins the names of extents for contributions, which are overwritten before they are used again
KEPT: Final = "x"  # begins all other names


class Use(Enum):
    """What an extent is used for."""

    FREE = "free"
    STAGED = "staged"  # it is written, and nothing names it
    DOUBT = "doubt"  # a commit that names it was sent, and its outcome is not known
    NAMED = "named"  # the store names it
    DIRTY = "dirty"  # nothing names it, and a contribution's bytes in it are still to be overwritten
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


def name_of(size: int, number: int, kind: str = KEPT) -> str:
    """Return the name of an extent's file; ``kind`` is `KEPT` or `WIPED`."""
    return f"{kind}{size:06d}-{number}"


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
        # By kind and size class; the last one is taken first.
        self._free: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._dirty = set[str]()
        self._of: dict[str, set[str]] = defaultdict(set)  # by session
        # By kind and size class: the fewest that were free since `unused` looked.
        self._least: dict[tuple[str, int], int] = {}
        self._next = 1
        self.bytes = 0
        self.free_bytes = 0

    def add(self, name: str, use: Use = Use.FREE, owner: Owner | None = None) -> None:
        """Add an extent that is in the directory."""
        if name in self._extents:
            raise ValueError(f"the extent {name} is there twice")
        size, number = size_of(name), int(name.rpartition("-")[2])
        self._next = max(self._next, number + 1)
        self.bytes += size
        self._extents[name] = _Extent()
        if use is Use.FREE:
            self._let_go(name)
        else:
            self._assign(name, use, owner)

    def new_name(self, nbytes: int, kind: str = KEPT) -> str:
        """Return the name of an extent to be made for ``nbytes``. No name is used twice."""
        name = name_of(class_of(nbytes), self._next, kind)
        self._next += 1
        return name

    def take(self, nbytes: int, owner: Owner, kind: str = KEPT) -> str | None:
        """Return a free extent for ``nbytes``, staged for ``owner`` from now on; None where there is none."""
        place = kind, class_of(nbytes)
        free = self._free.get(place)
        if not free:
            return None
        name = free.pop()
        self._least[place] = min(self._least.get(place, len(free)), len(free))
        self.free_bytes -= size_of(name)
        self._assign(name, Use.STAGED, owner)
        return name

    def move(self, name: str, owner: Owner, before: frozenset[Use], after: Use) -> bool:
        """Change what ``owner`` uses an extent for; False where it is another's, or used for something else."""
        extent = self._extents.get(name)
        if extent is None or extent.owner != owner or extent.use not in before:
            return False
        if after is Use.FREE:
            self._unassign(name)
            self._let_go(name)
        else:
            extent.use = after
        return True

    def take_dirty(self) -> str | None:
        """Return an extent that is to be overwritten, to one caller; None where there is none."""
        return self._dirty.pop() if self._dirty else None

    def wiped(self, name: str) -> None:
        """Note that an extent of `take_dirty` is overwritten: it is free."""
        self._extents[name].use = Use.FREE
        self._release(name)

    def has(self, name: str, owner: Owner) -> bool:
        """Say whether an extent is ``owner``'s, or perhaps: its session's or somebody's, where nobody knows more."""
        extent = self._extents.get(name)
        return extent is not None and extent.owner in (owner, Owner(owner.session_id, ""), MANY)

    def forget(self, name: str) -> None:
        """Take an extent out of the list for good: its file is removed or retired."""
        extent = self._extents.pop(name)
        size = size_of(name)
        self.bytes -= size
        self._dirty.discard(name)
        if extent.use is Use.FREE:
            self._free[_place(name)].remove(name)
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

    def free_of(self, size: int) -> int:
        """Return how many extents of a size class are free, of those that are not for contributions."""
        return len(self._free.get((KEPT, size), ()))

    def spare(self, most: int) -> list[str]:
        """Return free extents to remove, so that at most ``most`` bytes are free: the largest class first."""
        excess, names = self.free_bytes - most, list[str]()
        for place in sorted(self._free, key=lambda place: place[1], reverse=True):
            for name in self._free[place]:
                if excess <= 0:
                    return names
                names.append(name)
                excess -= place[1]
        return names

    def unused(self) -> list[str]:
        """Return the free extents that nobody needed since this was asked before."""
        least, self._least = self._least, {place: len(names) for place, names in self._free.items()}
        return [name for place, names in self._free.items() for name in names[: least.get(place, 0)]]

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

    def _let_go(self, name: str) -> None:
        if name.startswith(WIPED):
            self._extents[name].use = Use.DIRTY
            self._dirty.add(name)
        else:
            self._release(name)

    def _release(self, name: str) -> None:
        self._free[_place(name)].append(name)
        self.free_bytes += size_of(name)


def _place(name: str) -> tuple[str, int]:
    return name[0], size_of(name)
