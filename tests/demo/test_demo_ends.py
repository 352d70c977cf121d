"""The demo in a terminal, and how it ends before its end: with no process and no directory left behind."""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from servers import ended

ADAMD = Path(sys.executable).parent / "adamd"
NEW_TERMINAL = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}


def in_terminal(directory, temporary):
    """Start the demo in a terminal of its own; returns the process and the terminal's other end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [ADAMD, "demo"],
        cwd=directory,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **NEW_TERMINAL, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_until(ours, wanted=None):
    """What the terminal shows, until it shows ``wanted``, or until everyone has closed it."""
    shown = b""
    while wanted is None or wanted not in shown:
        try:
            came = os.read(ours, 65_536)
        except OSError:  # everyone has closed it
            break
        if not came:
            break
        shown += came
    return shown


def processes_in(directory):
    """Every process that was told about a directory: the server, its store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def temporary():
    """A short path: a unix socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


@pytest.mark.slow
def test_the_server_dies_and_nothing_is_lost_and_a_terminal_shows_it(tmp_path, temporary):
    process, ours = in_terminal(tmp_path, temporary)
    shown = read_until(ours).decode()
    os.close(ours)
    assert process.wait(60) == 0, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"kill -9: the server is dead, and step \d+ waits for its answer", plain)
    assert "training goes on, where it was" in plain
    assert "killed and resumed: bits equal" in [line.strip() for line in plain.splitlines()]
    assert float(re.search(r"test accuracy: ([\d.]+)", plain)[1]) >= 0.95
    assert (tmp_path / "demo-loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["demo-loss.png"]  # nothing else is left
    assert "the same again, undisturbed" in plain
    assert all(len(line.split("\r")[-1]) <= 80 for line in plain.splitlines())
    assert not list(temporary.iterdir()) and not processes_in(temporary)
    ways = [line.split() for line in plain.partition("What next?")[2].splitlines()]
    (serve,) = [words for words in ways if words[-1:] == ["serve"]]
    assert (tmp_path / serve[0]).resolve() == ADAMD.resolve() or serve[0] == "adamd"
    assert any(words[:1] == ["curl"] for words in ways) and any("README.md" in words for words in ways)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        # The rest of the product is slow.
        pytest.param(signal.SIGINT, b"starting a server", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, b"training", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, b"starts again", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, b"starts again", marks=pytest.mark.slow),
        (signal.SIGHUP, b"training"),
    ],
)
def test_ended_early_it_leaves_nothing(number, moment, tmp_path, temporary):
    process, ours = in_terminal(tmp_path, temporary)
    shown = read_until(ours, moment)
    assert moment in shown, shown
    if moment == b"starting a server":
        time.sleep(0.3)  # its process is there, and is not ready
    process.send_signal(number)
    shown += read_until(ours)
    os.close(ours)
    assert process.wait(60) == 130, shown
    assert b"the demo's server and its data are gone" in shown and b"Traceback" not in shown, shown
    assert not list(temporary.iterdir()) and not processes_in(temporary)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # the SDK gives a server ten seconds to come up
def test_a_server_that_is_not_there_is_told_in_a_line(tmp_path):
    run = ended([ADAMD, "demo", "--url", "http://127.0.0.1:9"], cwd=tmp_path)
    assert run.returncode == 1
    said = run.stdout + run.stderr
    assert "connection refused" in said and "adamd serve" in said and "Traceback" not in said
