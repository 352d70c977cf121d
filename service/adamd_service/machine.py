"""What this machine allows a process: memory and file descriptors."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED_DESCRIPTORS = 2**20  # file descriptors, where there is no limit
RESERVED_DESCRIPTORS = 1024  # file descriptors that are not for HTTP's connections


def memory(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_limits(groups, own)])


def _limits(groups: Path, own: Path) -> list[int]:
    """Return the limits of this process's control groups (version 2 or 1), and of those above them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root, name = (groups, "memory.max") if number == "0" else (groups / "memory", "memory.limit_in_bytes")
        group = root / path.lstrip("/")
        for place in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            try:
                limit = int((place / name).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue
            limits += [limit] if limit > 0 else []
    return limits


def connections(descriptors: int) -> int:
    """Return how many clients may be connected: uploads, the store, gRPC and the log need descriptors too."""
    return max(descriptors // 2, descriptors - RESERVED_DESCRIPTORS)


def descriptor_is_free() -> bool:
    """Say whether one more file can be opened: where it cannot, no connection is taken, and nobody is told."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def raise_descriptors() -> int:
    """Take as many file descriptors as are allowed, as servers do; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems say "unlimited" and take less
            hard = soft
    return UNLIMITED_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
