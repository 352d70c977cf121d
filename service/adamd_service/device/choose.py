"""From what was asked for (``auto``, ``cpu``, ``cuda``, ``cuda:N``) to the device that updates."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from adamd_service.device.cupy_runtime import NoDevice, found
from adamd_service.device.gpu import CAPACITY, LEAST, SLOTS, SPARE, Gpu
from adamd_service.device.nvrtc import CompileError, CompilerMissing
from adamd_service.device.runtime import DeviceLost, OutOfMemory, Runtime
from adamd_service.device.spread import Spread
from adamd_service.optim import Cpu, Device, FusedKernel, SlicedKernel, parse_settings

DTYPES: Final = np.dtype(np.float32), np.dtype(np.float64)
LANES: Final = 8  # threads on one update at most: by then it waits for the memory
ASKED: Final = r"(auto|cpu|cuda(:[0-9]{1,3})?)"
RING: Final = 2 * SLOTS * CAPACITY  # bytes on the device


class DeviceRefused(Exception):
    """What was asked for cannot be had here; the message says what was found."""


def checked(asked: str) -> str:
    """Return what was asked for.

    Raises:
        DeviceRefused: it is no device's name.

    """
    if re.fullmatch(ASKED, asked) is None:
        raise DeviceRefused(f"--device {asked[:40]!r}; wanted auto, cpu, cuda, or cuda:N as in cuda:0")
    return asked


def device_of(
    asked: str,
    limit: int | None,
    lost: Callable[[DeviceLost], None],
    say: Callable[[str], None],
    runtimes: Callable[[], Sequence[Runtime]] = found,
) -> Device:
    """Return the device, with the kernels of Adam compiled and loaded.

    asked: auto (all GPUs, or the CPU where there is none that can be used), cpu, cuda (all GPUs), or cuda:N.
    limit: bytes of each GPU that states may take; None: what is free. lost: called where a GPU is lost. say: gets what
    ``auto`` found wrong with a GPU.

    Raises:
        DeviceRefused: it does not exist, is too small, or lacks what it needs.

    """
    if asked == "cpu":
        return _cpu()
    try:
        chosen = _chosen(asked, runtimes())
    except (NoDevice, DeviceLost) as error:
        if asked == "auto":
            return _cpu()
        raise DeviceRefused(f"--device {asked}: {error}") from None
    try:
        return _started(asked, chosen, limit, lost)
    except DeviceRefused as error:
        if asked != "auto":
            raise
        say(f"{error}; the updates run on the CPU")
        return _cpu()


def _cpu() -> Cpu:
    cores = os.cpu_count() or 1
    if cores == 1:
        return Cpu()
    threads = ThreadPoolExecutor(cores - 1, thread_name_prefix="adamd-kernel")  # begun when a large update needs them
    return Cpu(SlicedKernel(FusedKernel(), threads, min(cores, LANES)))


def _chosen(asked: str, there: Sequence[Runtime]) -> Sequence[Runtime]:
    if not asked.startswith("cuda:"):
        return there
    number = int(asked.removeprefix("cuda:"))
    if number >= len(there):
        raise NoDevice(f"there is no such GPU; found {', '.join(one.name for one in there)}")
    return [there[number]]


def _started(
    asked: str, runtimes: Sequence[Runtime], limit: int | None, lost: Callable[[DeviceLost], None]
) -> Gpu | Spread:
    gpus: list[Gpu] = []
    try:
        for runtime in runtimes:
            free = runtime.free()
            wanted = RING + SPARE + (LEAST if limit is None else limit)
            if free < wanted:
                raise DeviceRefused(
                    f"--device {asked}: {runtime.name} has {free} of {runtime.total} bytes free; wanted {wanted}"
                )
            gpus.append(Gpu(runtime, limit, lost))
            for dtype in DTYPES:
                gpus[-1].prepare(parse_settings({}), dtype)
    except (CompilerMissing, CompileError, OutOfMemory, DeviceLost, DeviceRefused) as error:
        for gpu in gpus:
            gpu.close()
        if isinstance(error, DeviceRefused):
            raise
        raise DeviceRefused(f"--device {asked}: {error}") from error
    return gpus[0] if len(gpus) == 1 else Spread(gpus)
