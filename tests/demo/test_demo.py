"""The demo against a running server.

Without one, and in a terminal, it is in test_demo_ends.py and in `make demo` of .ci/run.
"""

import os
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import adamd
from servers import ended

ADAMD = Path(sys.executable).parent / "adamd"


def demo(directory, *words, **environment):
    directory.mkdir(exist_ok=True)
    return ended(
        [ADAMD, "demo", *words], cwd=directory, within=200, env={**os.environ, "COLUMNS": "100", **environment}
    )


def accuracy_of(said):
    return float(re.search(r"test accuracy: ([\d.]+)", said)[1])


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.slow
def test_a_server_that_is_there_is_used_and_left_alive(server, tmp_path, transport):
    work = tmp_path / "work"
    if transport == "grpc":  # and on a terminal that has only ASCII
        done = demo(work, "--url", server.grpc_url, PYTHONIOENCODING="ascii")
        assert done.stdout.isascii() and "\\u" not in done.stdout and "\\x" not in done.stdout, done.stdout
    else:
        done = demo(work, "--url", server.url)
        assert "│" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert accuracy_of(done.stdout) >= 0.95
    assert "will not be killed" in done.stdout and "killed and resumed" not in done.stdout
    assert (work / "demo-loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in work.iterdir()] == ["demo-loss.png"]  # nothing else is left
    assert server.process.poll() is None
    follow(done.stdout, server)


def follow(said, server):
    """Do what the demo says to do next, word for word."""
    _, _, next_ = said.partition("What next?\n")
    lines = [line.strip() for line in next_.replace("\\\n", "").splitlines() if re.match(r"  \S", line)]
    assert not any(line.endswith(" serve") for line in lines)  # there is a server
    python = [line for line in lines if " = " in line]
    with ExitStack() as clients:
        library = SimpleNamespace(connect=lambda url: clients.enter_context(adamd.connect(url)))
        space = {"adamd": library, "w": np.ones(2, np.float32), "gradient": np.ones(2, np.float32)}
        exec("\n".join(python), space)  # noqa: S102 - the demo's own words
        assert space["session"].step_number == 1 and space["w"].tolist() != [1.0, 1.0]
        space["session"].delete()
    shells = [shlex.split(line) for line in lines if line.startswith("curl") or " sessions " in line]
    told = [ended(words) for words in shells]
    assert all(one.returncode == 0 for one in told) and len(told) in (1, 3), told
    if len(told) == 3:  # over HTTP
        assert '"step":1' in told[1].stdout.replace(" ", ""), told[1]
        with adamd.connect(server.url) as client:
            client.session("first").delete()
