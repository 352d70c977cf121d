"""CUDA through CuPy: the calls of `runtime`, and nothing else. CuPy is imported when a device is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.wire.buffers import Bytes
from adamd_service.device.cubins import cubin
from adamd_service.device.nvrtc import nvrtc
from adamd_service.device.runtime import DeviceLost, OutOfMemory
from adamd_service.optim.kernels.cuda_source import THREADS, CudaKernel

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class NoDevice(Exception):
    """There is no GPU that can be used here; the message says what was found."""


def found() -> list[CupyRuntime]:
    """Return the GPUs of this machine.

    Raises:
        NoDevice: CuPy, the driver or the GPU is missing.

    """
    try:
        from cupy.cuda import runtime as cuda
    except ImportError as error:
        raise NoDevice(f"CuPy is not installed ({error}): pip install 'adamd[gpu]'") from None
    try:
        count = cuda.getDeviceCount()
    except cuda.CUDARuntimeError as error:
        raise NoDevice(
            f"no NVIDIA driver that fits was found ({error}); nvidia-smi shows the one that there is"
        ) from None
    if count == 0:
        raise NoDevice("the NVIDIA driver is here, but no GPU")
    return [CupyRuntime(number) for number in range(count)]


@contextmanager
def told() -> Iterator[None]:
    """Turn CUDA's errors into `runtime`'s. Whatever is not a lack of memory is taken for one that stays."""
    from cupy_backends.cuda.api.driver import CUDADriverError
    from cupy_backends.cuda.api.runtime import CUDARuntimeError

    try:
        yield
    except (CUDARuntimeError, CUDADriverError) as error:
        if error.status == OUT_OF_MEMORY:
            raise OutOfMemory(str(error)) from None
        raise DeviceLost(str(error)) from error


class CupyStream:
    """See `runtime.Stream`."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda.runtime
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def upload(self, to: int, source: Bytes) -> None:
        """See `runtime.Stream`."""
        with told():
            self._cuda.memcpyAsync(
                to, source.ctypes.data, source.nbytes, self._cuda.memcpyHostToDevice, self._stream.ptr
            )

    def download(self, into: Bytes, source: int) -> None:
        """See `runtime.Stream`."""
        with told():
            self._cuda.memcpyAsync(
                into.ctypes.data, source, into.nbytes, self._cuda.memcpyDeviceToHost, self._stream.ptr
            )

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See `runtime.Stream`."""
        with told():
            self._cuda.memcpyAsync(to, source, nbytes, self._cuda.memcpyDeviceToDevice, self._stream.ptr)

    def launch(self, function: Any, across: int, down: int, rows: int, diverged: int) -> None:
        """See `runtime.Stream`."""
        with told():
            arguments = (np.uint64(rows), np.uint64(diverged))
            function((across, down, 1), (THREADS, 1, 1), arguments, stream=self._stream)

    def wait(self) -> None:
        """See `runtime.Stream`."""
        with told():
            self._stream.synchronize()


class CupyRuntime:
    """See `runtime.Runtime`. number: the device's, as in CUDA_VISIBLE_DEVICES."""

    def __init__(self, number: int) -> None:
        from cupy.cuda import runtime as cuda

        self._cuda = cuda
        self.number = number
        with told():
            properties = cuda.getDeviceProperties(number)
        name = properties["name"]
        self.name = f"{name.decode() if isinstance(name, bytes) else name} (cuda:{number})"
        self.processors = int(properties["multiProcessorCount"])
        self.total = int(properties["totalGlobalMem"])
        self.arch = f"sm_{properties['major']}{properties['minor']}"
        self._modules: list[Any] = []  # a function is good as long as its module lives

    def free(self) -> int:
        """See `runtime.Runtime`."""
        self.enter()
        with told():
            available, _ = self._cuda.memGetInfo()
        return int(available)

    def enter(self) -> None:
        """See `runtime.Runtime`."""
        with told():
            self._cuda.setDevice(self.number)

    def allocate(self, nbytes: int) -> int:
        """See `runtime.Runtime`. From CUDA itself: a pool would keep what an eviction has freed."""
        self.enter()
        with told():
            return int(self._cuda.malloc(max(1, nbytes)))

    def release(self, address: int) -> None:
        """See `runtime.Runtime`."""
        self.enter()
        with told():
            self._cuda.free(address)

    def pinned(self, nbytes: int) -> NDArray[Any]:
        """See `runtime.Runtime`."""
        import cupy

        self.enter()
        with told():
            memory = cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def stream(self) -> CupyStream:
        """See `runtime.Runtime`."""
        self.enter()
        with told():
            return CupyStream()

    def load(self, kernel: CudaKernel) -> Any:
        """See `runtime.Runtime`. By Module.load: RawModule and RawKernel append -ftz=true after the options."""
        from cupy.cuda.function import Module

        code = cubin(kernel, self.arch, nvrtc())
        self.enter()
        with told():
            module = Module()
            module.load(code)
            self._modules.append(module)
            return module.get_function(kernel.name)
