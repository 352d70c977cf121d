"""Finds the parameter group of a tensor, by its exact name or by a pattern of names.

In a pattern `*` stands for any characters, dots among them, and `?` for one; everything else for itself (there are no
character classes: names have brackets), as `fnmatch.fnmatchcase` has it. An exact name wins over a pattern, wherever
both stand; among patterns the first group that matches wins.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

MOST: Final = 256  # patterns of a session
LONGEST: Final = 512  # characters of one, as of a tensor's name
WORK: Final = 100_000_000  # pairs of characters that matching may compare: 0.1 to 0.2 s
GUESS: Final = (
    2_000_000  # pairs of characters that a hint may compare: long names cost difflib a second for 100 of them
)
Entries: TypeAlias = Sequence[Sequence[str]]  # by group


class GroupsError(ValueError):
    """Groups that are refused. path: the place, as `groups[0].tensors[1]`; message: what came and what is wanted."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class Places:
    """The groups' entries, with a cache of the group of each tensor."""

    exact: Mapping[str, int]
    patterns: tuple[tuple[re.Pattern[str], int], ...]
    cache: dict[str, int | None] = field(default_factory=dict)  # at most the layout's names

    def of(self, tensor: str) -> int | None:
        """The group of a tensor of the layout; None: it is in none."""
        if tensor in self.exact:
            return self.exact[tensor]
        if not self.patterns:
            return None
        if tensor not in self.cache:
            self.cache[tensor] = next((group for pattern, group in self.patterns if pattern.match(tensor)), None)
        return self.cache[tensor]


def places(entries: Entries) -> Places:
    """Read the groups' entries. Raises GroupsError where they have too many patterns, or one that is too long."""
    patterns: list[tuple[re.Pattern[str], int]] = []
    for group, index, entry in _entries_of(entries):
        if not is_pattern(entry):
            continue
        path = f"groups[{group}].tensors[{index}]"
        if len(patterns) == MOST:
            raise GroupsError(path, f"{path} is one pattern more than the {MOST} that a session may have")
        if len(entry) > LONGEST:
            raise GroupsError(path, f"{path} has {len(entry)} characters; wanted at most {LONGEST} in a pattern")
        patterns.append((re.compile(fnmatch.translate(entry.replace("[", "[[]"))), group))
    return Places({entry: group for group, _, entry in reversed(_entries_of(entries))}, tuple(patterns))


def is_pattern(entry: str) -> bool:
    """Say whether an entry is a pattern, and no name."""
    return "*" in entry or "?" in entry


def check(entries: Entries, matches: Places, names: Sequence[str]) -> None:
    """Raise GroupsError where a group is empty, an entry fits to nothing in `names`, or a name stands in two places."""
    layout_names = frozenset(names)
    paths: dict[str, str] = {}
    _check_work(entries, names)
    patterns = iter(matches.patterns)
    for group, tensors in enumerate(entries):
        if not tensors:  # any number of them would fit into a head that is written with every step
            path = f"groups[{group}].tensors"
            raise GroupsError(path, f"{path} is empty; wanted at least one tensor name")
        for place, entry in enumerate(tensors):
            path = f"groups[{group}].tensors[{place}]"
            if is_pattern(entry):
                pattern, _ = next(patterns)
                if not any(map(pattern.match, names)):
                    raise GroupsError(
                        path, f"{path} is {_shown(entry)}, which no tensor matches; {_near(entry, names)}"
                    )
            elif entry not in layout_names:
                raise GroupsError(
                    path, f"{path} is {_shown(entry)}, which the layout does not have; {_near(entry, names)}"
                )
            if entry in paths:
                raise GroupsError(
                    path,
                    f"{path} is {_shown(entry)}, already at {paths[entry]}; wanted each tensor in one group at most",
                )
            paths[entry] = path


def _check_work(entries: Entries, names: Sequence[str]) -> None:
    """Behind a star, all that follows in the pattern may be compared at each character of a name."""
    work = sum(len(entry) for _, _, entry in _entries_of(entries) if is_pattern(entry)) * sum(map(len, names))
    if work > WORK:
        raise GroupsError("groups", f"groups have too many patterns, or too long ones, for {len(names)} tensors")


def _entries_of(entries: Entries) -> list[tuple[int, int, str]]:
    return [(group, place, entry) for group, tensors in enumerate(entries) for place, entry in enumerate(tensors)]


def _near(entry: str, names: Sequence[str]) -> str:
    plain = entry.replace("*", "").replace("?", "")[:256]
    many, cutoff = (3, 0.4) if is_pattern(entry) else (1, 0.6)
    looked = names[: min(1000, GUESS // (1 + len(plain) * max(map(len, names[:1000]), default=1)))]
    nearest = difflib.get_close_matches(plain, looked, many, cutoff)
    if not nearest:
        return f"wanted one of the layout's {len(names)} tensors"
    if is_pattern(entry):
        return f"the nearest are {', '.join(map(_shown, nearest))}"
    return f"did you mean {_shown(nearest[0])}?"


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."
