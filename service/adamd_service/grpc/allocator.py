"""Memory for messages, kept instead of given back and asked for again.

gRPC allocates each message anew. glibc maps fresh pages for blocks of that size, or trims its heaps after each, and the
kernel clears the pages every time: a third of the server's time for a step of 40 MB each way (100 ms of CPU, then 65;
213,000 page faults in 20 steps, then 57,000).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 32 * 1024 * 1024  # bytes: idle ones at the top of a heap, and the largest block that comes from a heap


def keep_memory() -> bool:
    """Tell the C library's malloc to keep what it has, within bounds; False where it is not glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
