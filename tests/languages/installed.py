"""Finds what another language needs. Where it is absent the tests are skipped, or fail in CI."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MODULES = EXAMPLES / "node" / "node_modules"


def need(*things):
    """Skip where a command or a file is absent; fail with ADAMD_REQUIRE_ALL=1, as .ci/run sets it."""
    absent = [
        str(thing) for thing in things if not (thing.exists() if isinstance(thing, Path) else shutil.which(thing))
    ]
    if absent:
        said = f"not on this machine: {', '.join(absent)} (.ci/run installs them)"
        (pytest.fail if os.environ.get("ADAMD_REQUIRE_ALL") == "1" else pytest.skip)(said)


def output(*command, **kwargs):
    """Run a command to a good end; returns what it printed."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **kwargs)
    assert run.returncode == 0, (run.stdout[-3000:], run.stderr[-3000:])
    return run.stdout


@contextmanager
def site(folder):
    """Serve a folder's pages; yields the origin."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        yield f"http://localhost:{pages.server_address[1]}"
        pages.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said):
        pass
