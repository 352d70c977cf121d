"""Compiles a loop, given as source text, by Numba, and keeps the machine code on disk where that is possible.

Numba caches by file and its time, and cannot see that a function which it inlines has changed. So the text goes to a
file of its own whose name is the hash of it, of this module's name and of the compiler's options, which Numba does not
look at either: a changed recurrence or option is another file, never a stale kernel.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Compiled: TypeAlias = Callable[..., Any]
# No fastmath (it would contract and reassociate), no parallel (its work queue aborts under concurrent calls);
# error_model="numpy", because Python's check for a zero divisor keeps the loop from vectorising.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compile_loop(source: str, name: str, signature: tuple[Any, ...]) -> Compiled:
    """The function `name` of `source`, compiled for exactly this signature of Numba types; it runs without the GIL.

    Raises what Numba raises for a text that it cannot compile.
    """
    path = _written(source, name)
    if path is not None:
        # A damaged or foreign cache entry may raise whatever unpickling raises; the cache is a convenience, so compile
        # without it.
        with contextlib.suppress(Exception):
            return _compile(source, name, signature, str(path), cache=True)
    return _compile(source, name, signature, f"<adamd {name}>", cache=False)


def _compile(source: str, name: str, signature: tuple[Any, ...], filename: str, *, cache: bool) -> Compiled:
    import numba
    import numpy as np

    types = {"uint32": np.uint32, "uint64": np.uint64, "float32": np.float32, "float64": np.float64}
    namespace: dict[str, Any] = {"sqrt": np.sqrt, **types, "__name__": __name__}
    exec(compile(source, filename, "exec"), namespace)  # noqa: S102 - our own text, generated from the recurrence
    decorate = numba.njit([signature], cache=cache, **OPTIONS)
    loop: Compiled = decorate(namespace[name])
    return loop


def _written(source: str, name: str) -> Path | None:
    """The file that holds `source`, or None where no directory of our own can be written."""
    directory = cache_directory()
    if directory is None:
        return None
    # Numba's entry names the module that the loop is in: one of a module that has moved could never be read again.
    text = f"{__name__}\n{OPTIONS}\n{source}".encode()
    path = directory / f"{name}_{hashlib.sha256(text).hexdigest()[:16]}.py"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Numba unpickles what lies there: a directory that someone else could fill is as good as none.
        status = path.parent.stat()
        if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            return None
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
            ) as file:
                file.write(source)
            os.replace(file.name, path)
    except OSError:
        return None
    return path


def cache_directory() -> Path | None:
    """NUMBA_CACHE_DIR/adamd where that is set, else the user's cache directory; None for a user without a home (a
    container with an arbitrary user id), never a path in /tmp that someone else could have made first.
    """
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / "adamd"
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        if chosen := os.environ.get(variable):
            return Path(chosen) / "adamd" / "kernels"
    try:
        return Path.home() / ".cache" / "adamd" / "kernels"
    except RuntimeError:
        return None
