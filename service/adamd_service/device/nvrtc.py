"""Compiles CUDA C++ to PTX or machine code through NVRTC.

NVRTC is a library of its own: it needs no driver, no GPU and no toolkit.

Bound by ctypes instead of through CuPy, because CuPy's own compile appends -ftz=true after the caller's options, and
NVRTC lets the last one win; and because so the very call that a GPU gets is tested where there is none.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGES = ("nvidia.cu13", "nvidia.cuda_nvrtc")  # where the wheels for CUDA 13 and 12 put the library
NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "nvrtc")
ADVICE = "pip install 'adamd[gpu]' brings it"


class CompilerMissing(RuntimeError):
    """There is no NVRTC on this machine."""


class CompileError(RuntimeError):
    """NVRTC refused a source; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Nvrtc:
    """The loaded library. version: its own, as (13, 5)."""

    library: ctypes.CDLL
    version: tuple[int, int]

    def ptx(self, source: str, arch: str, options: Sequence[str]) -> str:
        """PTX for a virtual architecture, as compute_80.

        Raises:
            CompileError: with the compiler's log.

        """
        return self._compiled(source, arch, options, "PTX").rstrip(b"\0").decode()

    def cubin(self, source: str, arch: str, options: Sequence[str]) -> bytes:
        """Machine code for a real architecture, as sm_80.

        Raises:
            CompileError: with the compiler's log.

        """
        return self._compiled(source, arch, options, "CUBIN")

    def _compiled(self, source: str, arch: str, options: Sequence[str], form: str) -> bytes:
        given = [option.encode() for option in (*options, f"-arch={arch}")]
        program = ctypes.c_void_p()
        self._checked("CreateProgram", ctypes.byref(program), source.encode(), b"adamd.cu", ctypes.c_int(0), None, None)
        try:
            status = self.library.nvrtcCompileProgram(
                program, ctypes.c_int(len(given)), (ctypes.c_char_p * len(given))(*given)
            )
            if status != 0:
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
                raise CompileError(f"NVRTC {self.version} for {arch}: {log or self._words(status)}")
            return self._read(program, form)
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._checked(f"Get{what}Size", program, ctypes.byref(size))
        room = ctypes.create_string_buffer(size.value)
        self._checked(f"Get{what}", program, room)
        return room.raw

    def _checked(self, call: str, *arguments: object) -> None:
        status = getattr(self.library, f"nvrtc{call}")(*arguments)
        if status != 0:
            raise CompileError(f"nvrtc{call}: {self._words(status)}")

    def _words(self, status: int) -> str:
        words = self.library.nvrtcGetErrorString
        words.restype = ctypes.c_char_p
        said: bytes = words(ctypes.c_int(status))
        return said.decode()


@cache
def nvrtc() -> Nvrtc:
    """The library of a wheel, else the system's.

    Raises:
        CompilerMissing: there is none.

    """
    tried = []
    for place in _places():
        try:
            library = ctypes.CDLL(place)
        except OSError as error:
            tried.append(str(error))
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return Nvrtc(library, (major.value, minor.value))
    raise CompilerMissing(
        f"NVRTC, CUDA's compiler library, is not on this machine; {ADVICE}. Tried: {'; '.join(tried)}"
    )


def _places() -> Iterator[str]:
    for package in PACKAGES:
        parent = package.partition(".")[0]
        if parent not in sys.modules and importlib.util.find_spec(parent) is None:
            continue
        found = importlib.util.find_spec(package)
        for directory in (found.submodule_search_locations or []) if found is not None else []:
            yield from (str(path) for path in sorted(Path(directory, "lib").glob("libnvrtc.so.*")))
    yield from NAMES[:2]
    system = ctypes.util.find_library(NAMES[2])
    if system is not None:
        yield system
