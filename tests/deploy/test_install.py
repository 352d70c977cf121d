"""What a newcomer sees of the first `make`."""

import os
from pathlib import Path

import pytest

from servers import ended

INSTALL = Path(__file__).parents[2] / ".ci" / "install"
PIP = """#!/bin/sh
echo "$@" >&2
for i in $(seq 45); do echo "Collecting package$i>=1.0 (from adamd)"; echo "  Downloading package$i-1.0-py3-none-any.whl (12 kB)"; done
echo "  Downloading numba-0.61-cp311-manylinux_2_27_x86_64.whl (3.8 MB)"
echo "  Downloading scipy-1.16-cp311-manylinux_2_27_x86_64.whl (37.7 MB)"
echo "  Using cached llvmlite-0.44-cp311-manylinux_2_27_x86_64.whl (42.4 MB)"
echo "Installing collected packages: a, b, c"
exit ${STATUS:-0}
"""


@pytest.fixture
def bin_(tmp_path):
    (tmp_path / "pip").write_text(PIP)
    (tmp_path / "pip").chmod(0o755)
    return tmp_path


def test_an_installation_tells_of_what_takes_long_alone(bin_):
    told = ended([INSTALL, bin_, "-e", ".[service,demo]"])
    assert told.returncode == 0
    assert told.stderr.split()[0] == "install" and told.stderr.split()[-2:] == ["-e", ".[service,demo]"]
    assert told.stdout.splitlines() == [
        "  20 packages found …",
        "  40 packages found …",
        "  downloading scipy (37.7 MB)",
        "  unpacking 3 packages …",
    ]


def test_an_installation_that_fails_stops_make(bin_):
    assert ended([INSTALL, bin_, "x"], env={**os.environ, "STATUS": "3"}).returncode == 3
