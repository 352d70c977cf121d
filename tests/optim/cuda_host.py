"""The CUDA source, compiled as C++ for this machine and run through ctypes: the kernel itself, on a CPU."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np

PRELUDE = Path(__file__).with_name("cuda_host.h")
EXACT = (
    "-O2",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
)
_DIRECTORY = tempfile.TemporaryDirectory(prefix="adamd-cuda-")


_ONE_AT_A_TIME = threading.Lock()


def compiled(kernel_name, source, flags=EXACT, before=""):
    """``launch(rows, diverged, across, down, threads)`` of one kernel. From any thread."""
    with _ONE_AT_A_TIME:
        return _compiled(kernel_name, source, flags, before)


@cache
def _compiled(kernel_name, source, flags, before):
    text = f'{before}\n#include "{PRELUDE}"\n{source}\nextern "C" void run(const void* rows, unsigned int* diverged, unsigned int across, unsigned int down, unsigned int threads) {{ launch({kernel_name}, rows, diverged, across, down, threads); }}\n'
    stem = Path(_DIRECTORY.name) / hashlib.sha256(f"{flags}{text}".encode()).hexdigest()[:20]
    library = stem.with_suffix(".so")
    stem.with_suffix(".cpp").write_text(text)
    compiler = os.environ.get("CXX", "g++")  # C++17 has a <cmath> that takes twice as long as the kernel
    said = subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=c++14", *flags, "-o", library, stem.with_suffix(".cpp")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint]
    run.restype = None
    return run


def table(kernel, rows):
    """The device-side table: each row a dict of arrays, `out`, `index` (or without them) and scalars."""
    made = np.zeros(len(rows), kernel.row)
    for place, row in zip(made, rows, strict=True):
        for name in (*kernel.arrays, "out", "index"):
            array = row.get(name)
            place[name] = 0 if array is None else array.ctypes.data
        place["size"] = len(row["g"])
        for name in kernel.scalars:
            place[name] = row[name]
    return made


def run(kernel, rows, across=2, threads=3, flags=EXACT, before=""):
    """Update the rows in place; says for each whether it diverged."""
    made = table(kernel, rows)
    diverged = np.zeros(len(rows), np.uint32)
    compiled(kernel.name, kernel.source, flags, before)(
        made.ctypes.data, diverged.ctypes.data, across, len(rows), threads
    )
    return diverged.astype(bool).tolist()
