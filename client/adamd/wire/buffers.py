"""Reused buffers that come back by themselves, and only when nobody can see them any more.

Fresh pages cost as much as the loopback network, so a large buffer is worth keeping. But a transport that
returns from ``send()`` has not sent: uvicorn keeps the memoryview until the socket takes it. So a lease ends not
when its user says so but when the last view of it is gone: every NumPy array and memoryview made from the
leased array keeps it alive, and ``weakref.finalize`` gives the memory back to the pool after them.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class BufferPool:
    """A pool of byte buffers, bounded by what it keeps idle.

    Args:
        keep_bytes: idle bytes kept at most; beyond it the oldest idle buffer is let go.
        smallest: below this size a fresh array is cheaper than the pool.

    """

    def __init__(self, keep_bytes: int, smallest: int = 65_536) -> None:
        self._keep = keep_bytes
        self._smallest = smallest
        self._idle: list[mmap.mmap] = []
        self._idle_bytes = 0
        # Re-entrant: the garbage collector may run a finalizer while this very thread holds the lock.
        self._lock = threading.RLock()

    def lease(self, nbytes: int) -> Bytes:
        """Return ``nbytes`` of uninitialised memory, page-aligned. It is back when its last view is gone."""
        if nbytes < self._smallest:
            return np.empty(nbytes, dtype=np.uint8)
        owner = self._take(nbytes)
        # NumPy collapses a chain of views as long as the next base is of the view's own class. A subclass made
        # straight over the mapping is where that ends: its end means the end of every array made from it.
        loan = _Loan((nbytes,), np.uint8, owner)
        weakref.finalize(loan, self._give_back, owner).atexit = False
        return loan.view(np.ndarray)

    def _take(self, nbytes: int) -> mmap.mmap:
        with self._lock:
            for i, owner in enumerate(self._idle):
                if nbytes <= len(owner) <= 2 * nbytes:
                    self._idle_bytes -= len(owner)
                    return self._idle.pop(i)
        return mmap.mmap(-1, nbytes)

    def _give_back(self, owner: mmap.mmap) -> None:
        with self._lock:
            self._idle.append(owner)
            self._idle_bytes += len(owner)
            while self._idle_bytes > self._keep:
                self._idle_bytes -= len(self._idle.pop(0))

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait for the next lease."""
        return self._idle_bytes


class _Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """Where NumPy's collapsing of views ends."""
