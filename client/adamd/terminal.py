"""Writes text to streams that may be ASCII, closed or full."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

PLAIN = "adamd.plain"  # what a stream does with a character that its encoding lacks
SIGNS = {"…": "...", "≥": ">=", "≤": "<=", **dict(zip("—–×·≈✓✗’│┊└─━╸╺•", "--x*~+x'||+----*", strict=True))}
BRAILLE = range(0x2800, 0x2900)  # what curves are drawn with


def take_any_words() -> None:
    """Have stdout and stderr take every character, whatever the locale's encoding: ASCII gets what is nearest."""
    codecs.register_error(PLAIN, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # it cannot be flushed: closed, or full
                stream.reconfigure(errors=PLAIN)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_nearest(sign) for sign in error.object[error.start : error.end]), error.end


def _nearest(sign: str) -> str:
    if ord(sign) in BRAILLE:
        return " " if ord(sign) == BRAILLE.start else "*"
    return SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode()


def say(line: str) -> bool:
    """Print a line at once; False where stdout takes nothing any more. It is then let go of, and never tried again."""
    try:
        print(line, flush=True)
    except (OSError, ValueError):  # a closed pipe, a full disk, a closed file
        with suppress(OSError, ValueError, AttributeError):
            # What is left in its buffer would fail once more when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return False
    return True
