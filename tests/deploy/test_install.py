"""What a newcomer sees of the first `make`."""

import os
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest

from servers import ended

ROOT = Path(__file__).parents[2]
INSTALL, VENV, PYTHONS = (ROOT / ".ci" / name for name in ("install", "venv", "pythons"))
HERE = platform.python_version()
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


# -- the environment that `make` installs into


def stand_in(path, version, *lacking):
    """A Python of another version, without some of its modules; all else is this one's."""
    refusals = "".join(f'case "$2" in "import {module}") exit 1 ;; esac\n' for module in lacking)
    old = (
        f'case "$2" in *version_info*) exit {int(version < "3.11")} ;; *python_version*) echo {version}; exit ;; esac\n'
    )
    path.write_text(f'#!/bin/sh\n{refusals}{old}exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def words(tmp_path, *arguments):
    """What a person is told; `virtualenv` is not on the PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    run = ended([VENV, *arguments], env={**os.environ, "PATH": str(tools)}, cwd=tmp_path)
    assert run.returncode == 1 and not (tmp_path / "made").exists(), run.stdout + run.stderr
    return run.stderr


def test_a_python_that_is_too_old_is_told(tmp_path):
    said = words(tmp_path, stand_in(tmp_path / "python", "3.10.13"), tmp_path / "made")
    assert "Python 3.11 or later is needed" in said and "is 3.10.13" in said and "PYTHON=" in said


def test_a_python_that_is_not_there_is_told(tmp_path):
    said = words(tmp_path, tmp_path / "python", tmp_path / "made")
    assert "does not run" in said and "PYTHON=" in said and len(said.splitlines()) == 1


def test_a_python_that_makes_no_environments_is_told_with_what_helps(tmp_path):
    """Debian's, without python3-venv; it used to leave half an environment behind, which the next make took for a whole one."""
    said = words(tmp_path, stand_in(tmp_path / "python", "3.11.2", "ensurepip"), tmp_path / "made")
    assert "apt-get install python3-venv" in said and "virtualenv" in said and "3.11.2" in said


def test_an_environment_of_another_python_is_not_taken_for_the_one_that_was_named(tmp_path):
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    stand_in(environment / "python", "3.12.9")
    stand_in(environment / "pip", "3.12.9")
    said = words(tmp_path, sys.executable, environment.parent, "asked")
    assert f"has Python 3.12.9, not {HERE}" in said and "VENV=" in said
    assert ended([VENV, sys.executable, environment.parent]).returncode == 0  # nobody asked


def test_each_python_at_hand_is_listed_once_the_oldest_first():
    listed = [line.split() for line in ended([PYTHONS]).stdout.splitlines()]
    versions = [tuple(map(int, version.split("."))) for version, _ in listed]
    assert versions == sorted(set(versions)) and min(versions) >= (3, 11)
    for version, python in listed:
        assert ended([python, "--version"]).stdout.split() == ["Python", version]
    bare = Path(sys.base_exec_prefix) / "bin"
    found = ended([PYTHONS], env={**os.environ, "PATH": f"{bare}:{os.environ['PATH']}"}).stdout
    assert re.search(rf"^{re.escape(HERE)} ", found, re.MULTILINE)
