"""BufferPool: buffers that return to the pool when their last view is gone.

Fresh pages cost as much as the loopback network, so a large buffer is worth keeping. But a transport that
returns from ``send()`` has not sent: uvicorn keeps the memoryview until the socket takes it. So a lease ends not
when its user says so but when the last view of it is gone: every NumPy array and memoryview made from the
leased array keeps it alive, and ``weakref.finalize`` gives the memory back to the pool after them.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HUGE = 4 * 1024 * 1024  # bytes from which huge pages are worth it; NumPy's own arrays have them from here on too


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
        self._leased_bytes = 0
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
        owner = None
        with self._lock:
            for i, idle in enumerate(self._idle):
                if nbytes <= len(idle) <= 2 * nbytes:
                    owner = self._idle.pop(i)
                    self._idle_bytes -= len(owner)
                    break
            self._leased_bytes += nbytes if owner is None else len(owner)
        if owner is not None:
            return owner
        try:
            return _mapping(nbytes)
        except BaseException:
            with self._lock:
                self._leased_bytes -= nbytes
            raise

    def _give_back(self, owner: mmap.mmap) -> None:
        with self._lock:
            self._leased_bytes -= len(owner)
            self._idle.append(owner)
            self._idle_bytes += len(owner)
            while self._idle_bytes > self._keep:
                self._idle_bytes -= len(self._idle.pop(0))

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait for the next lease."""
        return self._idle_bytes

    @property
    def leased_bytes(self) -> int:
        """Bytes that someone can still see: bodies and answers under way."""
        return self._leased_bytes


def _mapping(nbytes: int) -> mmap.mmap:
    """Return fresh memory, in huge pages where the system has them: the kernels run a sixth faster over those.

    Private, because Linux gives shared memory (what Python maps by itself) small pages only.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, nbytes)
    owner = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            owner.madvise(mmap.MADV_HUGEPAGE)
    return owner


def when_gone(array: NDArray[Any], call: Callable[[], None]) -> None:
    """Call ``call`` once nobody can see the memory of ``array`` any more, from whichever thread lets go last."""
    owner: NDArray[Any] = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    weakref.finalize(owner, call).atexit = False


class _Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """The array class at which NumPy stops to collapse views."""
