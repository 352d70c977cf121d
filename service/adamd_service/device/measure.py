"""How fast a GPU copies, and how fast it updates: both without the way to it and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from adamd_service.device.gpu import Gpu
from adamd_service.device.ring import BLOCKS
from adamd_service.device.runtime import Runtime, Stream
from adamd_service.optim.kernels.cuda_source import blocks
from adamd_service.optim.scalars import Scalars


def copy_bandwidth(runtime: Runtime, nbytes: int, repeats: int) -> float:
    """Return the bytes a second of a copy on the device, read and written ones added."""
    with _memory(runtime, 2 * nbytes) as address:
        seconds = _seconds(runtime.stream(), lambda stream: stream.copy(address + nbytes, address, nbytes), repeats)
    return 2 * nbytes / seconds


def update_seconds(gpu: Gpu, scalars: Scalars, size: int, repeats: int) -> float:
    """Return the seconds of one update of ``size`` elements that lie on the device, gradient included."""
    runtime, loaded = gpu.runtime, gpu.loaded(scalars.rule, scalars.dtype)
    kernel = loaded.kernel
    nbytes = -(-size * kernel.dtype.itemsize // 256) * 256
    table = np.zeros(1, kernel.row)
    pinned = runtime.pinned(table.nbytes + 256)
    pinned[:] = 0
    with _memory(runtime, len(kernel.arrays) * nbytes) as address, _memory(runtime, pinned.nbytes) as rows:
        addresses = [address + place * nbytes for place in range(len(kernel.arrays))]
        table[0] = (*addresses, 0, 0, size, *(scalars.typed[place] for place in loaded.scalars))
        pinned[: table.nbytes] = table.view(np.uint8)
        stream = runtime.stream()
        stream.upload(rows, pinned)
        across = blocks(kernel, size, BLOCKS * runtime.processors)
        flag = rows + -(-table.nbytes // 4) * 4
        return _seconds(stream, lambda stream: stream.launch(loaded.function, across, 1, rows, flag), repeats)


def update_bytes(gpu: Gpu, scalars: Scalars) -> int:
    """Return the bytes that an update reads and writes for each element: 28 for Adam in float32."""
    loaded = gpu.loaded(scalars.rule, scalars.dtype)
    return (len(loaded.kernel.arrays) + len(scalars.rule.recurrence.results)) * scalars.dtype.itemsize


def _seconds(stream: Stream, queue: Callable[[Stream], None], repeats: int) -> float:
    """Return what one of ``repeats`` takes that are queued together; the best of three, after one uncounted."""
    queue(stream)
    stream.wait()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(repeats):
            queue(stream)
        stream.wait()
        best = min(best, time.perf_counter() - began)
    return best / repeats


@contextmanager
def _memory(runtime: Runtime, nbytes: int) -> Iterator[int]:
    address = runtime.allocate(nbytes)
    try:
        yield address
    finally:
        runtime.release(address)
