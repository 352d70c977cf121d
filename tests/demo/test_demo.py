"""The demo with a server that is there; without one, and in a terminal, it is in test_demo_ends.py, and `make demo` of .ci/run."""

import os
import re
import sys
from pathlib import Path

import pytest

from servers import ended

ADAMD = Path(sys.executable).parent / "adamd"


def demo(directory, *words):
    directory.mkdir(exist_ok=True)
    return ended([ADAMD, "demo", *words], cwd=directory, within=200, env={**os.environ, "COLUMNS": "100"})


def accuracy_of(said):
    return float(re.search(r"test accuracy: ([\d.]+)", said)[1])


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_server_that_is_there_is_used_and_left_alive(server, tmp_path, transport):
    work = tmp_path / "work"
    done = demo(work, "--url", server.grpc_url if transport == "grpc" else server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert accuracy_of(done.stdout) >= 0.95
    assert "will not be killed" in done.stdout and "killed and resumed" not in done.stdout
    assert (work / "demo-loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in work.iterdir()] == ["demo-loss.png"]  # nothing else is left
    assert server.process.poll() is None
