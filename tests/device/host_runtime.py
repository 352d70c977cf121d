"""`runtime.Runtime` on this CPU: malloc'ed memory, threads as streams, the CUDA source compiled as C++.

Nothing is made up: what a GPU would copy and compute is copied and computed, as late as a stream allows, so that a buffer
which is used again too early, a missing wait or a wrong address shows as wrong bits or as an error here.
"""

import ctypes
import queue
import random
import threading
import time

import numpy as np

from adamd_service.device.runtime import DeviceLost, OutOfMemory
from optim.cuda_host import compiled

ALIGNED = 256


class HostRuntime:
    def __init__(self, total=64 << 20, *, late=True, processors=2, name="host", lost_after=None):
        self.lost_after = lost_after  # launches, after which every call fails
        self.name, self.total, self.processors = name, total, processors
        self.used = self.most = 0
        self.late = late
        self.refuse = 0  # allocations that fail although there is room, as where memory is in pieces
        self.lost = None  # the words of an error that stays
        self.launches, self.rows = [], 0  # grids of the launches
        self._memory = {}
        self._entered = threading.local()
        self._lock = threading.Lock()

    def free(self):
        return self.total - self.used

    def enter(self):
        self._entered.yes = True

    def allocate(self, nbytes):
        with self._lock:
            if self.refuse:
                self.refuse -= 1
                raise OutOfMemory("in pieces")
            if self.used + nbytes > self.total:
                raise OutOfMemory(f"{nbytes} bytes")
            room = np.full(nbytes + ALIGNED, 0xFF, np.uint8)  # NaN, wherever it is read unwritten
            address = -(-room.ctypes.data // ALIGNED) * ALIGNED
            self._memory[address] = room, nbytes
            self.used += nbytes
            self.most = max(self.most, self.used)
            return address

    def release(self, address):
        with self._lock:
            room, nbytes = self._memory.pop(address)
            room[:] = 0xFF  # whoever still reads it gets NaN
            self.used -= nbytes

    def pinned(self, nbytes):
        return np.full(nbytes, 0xFF, np.uint8)

    def stream(self):
        return HostStream(self)

    def load(self, kernel):
        return kernel

    def inside(self, address, nbytes):
        """As compute-sanitizer would: whatever is touched lies inside one allocation."""
        with self._lock:
            assert any(a <= address and address + nbytes <= a + n for a, (_, n) in self._memory.items()), (
                "out of bounds"
            )

    def check(self):
        if self.lost:
            raise DeviceLost(self.lost)


class HostStream:
    def __init__(self, runtime):
        self._runtime = runtime
        self._queue = queue.SimpleQueue()
        self._error = None
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            call = self._queue.get()
            if isinstance(call, threading.Event):
                call.set()
                continue
            if self._runtime.late:
                time.sleep(random.random() * 0.002)
            try:
                call()
            except BaseException as error:
                self._error = error

    def _put(self, call):
        self._runtime.check()
        self._queue.put(call)

    def upload(self, to, source):
        def copy():
            self._runtime.inside(to, source.nbytes)
            ctypes.memmove(to, source.ctypes.data, source.nbytes)

        self._put(copy)

    def download(self, into, source):
        def copy():
            self._runtime.inside(source, into.nbytes)
            ctypes.memmove(into.ctypes.data, source, into.nbytes)

        self._put(copy)

    def copy(self, to, source, nbytes):
        def copy():
            self._runtime.inside(to, nbytes)
            self._runtime.inside(source, nbytes)
            ctypes.memmove(to, source, nbytes)

        self._put(copy)

    def launch(self, function, across, down, rows, diverged):
        def run():
            self._runtime.inside(rows, down * function.row.itemsize)
            self._runtime.inside(diverged, 4 * down)
            self._runtime.launches.append((across, down))
            if self._runtime.lost_after is not None and len(self._runtime.launches) > self._runtime.lost_after:
                self._runtime.lost = "cudaErrorIllegalAddress: an illegal memory access was encountered"
                return
            for row in np.frombuffer(
                (ctypes.c_uint8 * (down * function.row.itemsize)).from_address(rows), function.row
            ):
                self._in_bounds(function, row)
            compiled(function.name, function.source)(rows, diverged, across, down, 2)

        self._put(run)

    def _in_bounds(self, kernel, row):
        size, itemsize = int(row["size"]), kernel.dtype.itemsize
        if not size:
            return
        reach = size
        if row["index"]:
            self._runtime.inside(int(row["index"]), 4 * size)
            reach = 1 + int(max((ctypes.c_uint32 * size).from_address(int(row["index"]))))
        for name in (*kernel.arrays, "out"):
            if name != "out" or row["out"]:
                self._runtime.inside(int(row[name]), itemsize * (size if name in ("g", "out") else reach))

    def wait(self):
        over = threading.Event()
        self._queue.put(over)
        over.wait()
        self._runtime.check()
        error, self._error = self._error, None
        if error is not None:
            raise error
