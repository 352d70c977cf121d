"""Machine code of kernels, kept on disk by the hash of all that decides about it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from adamd_service.device.nvrtc import Nvrtc
from adamd_service.optim.kernels.cuda_source import OPTIONS, CudaKernel
from adamd_service.optim.numba_cache import cache_directory

DIGEST = 32  # bytes of SHA-256 before the code: a damaged file is compiled anew


def cubin(kernel: CudaKernel, arch: str, compiler: Nvrtc) -> bytes:
    """Return a kernel's machine code for an architecture, as sm_80: from the cache, or compiled.

    Raises:
        CompileError: NVRTC refused it, or does not know the architecture.

    """
    key = hashlib.sha256(repr((kernel.source, OPTIONS, arch, compiler.version)).encode()).hexdigest()[:24]
    path = _place(f"{kernel.name}_{arch}_{key}.cubin")
    if path is not None:
        with contextlib.suppress(OSError):
            kept = path.read_bytes()
            if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
                return kept[DIGEST:]
    code = compiler.cubin(kernel.source, arch, OPTIONS)
    if path is not None:
        _write(path, hashlib.sha256(code).digest() + code)
    return code


def _place(name: str) -> Path | None:
    """Return where a file of the cache lies; None where no directory of our own can be written."""
    directory = cache_directory()
    if directory is None:
        return None
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()  # the GPU runs what lies there: a directory that others can fill is as good as none
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return directory / name
    return None


def _write(path: Path, content: bytes) -> None:
    """Write it whole or not at all; a cache that cannot be written is only slower."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
