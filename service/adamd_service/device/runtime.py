"""The protocol of the few CUDA calls that this package makes.

`cupy_runtime` makes them on a GPU. The tests have a second implementation that runs the same kernels on this CPU,
with the same asynchronous streams and the same bounded memory.

Addresses are numbers, as CUDA's own. Nothing here computes.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from adamd.wire.buffers import Bytes
from adamd_service.optim.kernels.cuda_source import CudaKernel


class OutOfMemory(Exception):
    """The device has no room for what was asked; nothing else is wrong with it."""


class DeviceLost(Exception):
    """CUDA reported an error other than a lack of memory. Such an error stays: every later call of the process gets it
    too, and what the device holds is not to be believed. Only a new process goes on.
    """


class Stream(Protocol):
    """A queue of work. Calls return at once, and what they name must stay as it is until `wait` has returned."""

    def upload(self, to: int, source: Bytes) -> None:
        """Copy pinned memory to the device."""

    def download(self, into: Bytes, source: int) -> None:
        """Copy the device's memory into pinned memory."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy on the device."""

    def launch(self, function: Any, across: int, down: int, rows: int, diverged: int) -> None:
        """Run a kernel (`Runtime.load`) on a grid of across × down blocks, over a table and its flags on the device."""

    def wait(self) -> None:
        """Return when all of it is done. Raises DeviceLost."""


class Runtime(Protocol):
    """One device. Every call may raise DeviceLost."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def processors(self) -> int:
        """How many multiprocessors it has."""

    @property
    def total(self) -> int:
        """Bytes of memory on it."""

    def free(self) -> int:
        """Bytes that nobody uses now."""

    def enter(self) -> None:
        """Make it the calling thread's device."""

    def allocate(self, nbytes: int) -> int:
        """Reserve memory, aligned to 256 bytes. Raises OutOfMemory."""

    def release(self, address: int) -> None:
        """Give it back; nothing that is under way may use it."""

    def pinned(self, nbytes: int) -> NDArray[Any]:
        """Host memory (uint8) that the device reaches by itself; it comes back with the array."""

    def stream(self) -> Stream:
        """A new stream."""

    def load(self, kernel: CudaKernel) -> Any:
        """Compile a kernel, or take it from the cache, and load it; for `Stream.launch`."""
