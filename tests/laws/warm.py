"""A process that has imported what the tests use of others, and forks a pytest for each guard.

Of the six seconds of a guard, more than two went into importing pytest, NumPy, Numba, FastAPI and the like anew. Nothing of
adamd is imported here: each fork imports it from the tree whose guard is taken out.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback

OTHERS = (
    *("pytest", "numpy", "numba", "pydantic_settings", "fastapi", "uvicorn", "httpx", "redis", "redis.asyncio"),
    *("typer", "rich.console", "rich.table", "grpc", "grpc.aio", "torch", "anyio", "attr", "hypothesis", "structlog"),
)
# A plugin that is imported already keeps its own asserts as they are: no test of ours.
PLUGINS = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
BROKEN = 70


class Warm:
    """The process, from the side of the tests."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def pytest(self, words, directory, environment, within=120):
        """Run ``pytest *words`` to its end; returns what ``subprocess.run`` does, both outputs in ``stdout``."""
        with tempfile.NamedTemporaryFile("r", errors="replace") as out:
            request = {"words": words, "directory": str(directory), "environment": environment, "within": within}
            self._process.stdin.write(json.dumps({**request, "out": out.name}) + "\n")
            self._process.stdin.flush()
            return subprocess.CompletedProcess(words, int(self._process.stdout.readline()), out.read(), "")

    def close(self):
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def main():
    """Fork for each line of the input. In a child this goes on to pytest, and ends with its status."""
    for name in OTHERS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()  # pytest collects garbage at the end of each run: not among all this
    for line in sys.stdin:
        request = json.loads(line)
        if (pid := os.fork()) == 0:
            become(request)
        print(status(pid, request["within"]), flush=True)


def status(pid, within):
    """Wait for a child; one that is not done shows its stacks, and ends with all that it started."""
    pidfd = os.pidfd_open(pid)
    try:
        if not _done(pidfd, within):
            for number in (signal.SIGABRT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
                _done(pidfd, 5)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _done(pidfd, within):
    return bool(select.select([pidfd], [], [], within)[0])


def become(request):
    """Be a new ``python -m pytest`` in the directory and the environment that were asked for."""
    os.setsid()
    out = os.open(request["out"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in ((0, nothing), (1, out), (2, out)):
        os.dup2(fd, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path[:0] = [request["directory"], *request["environment"].get("PYTHONPATH", "").split(os.pathsep)]
    importlib.invalidate_caches()
    faulthandler.enable()
    code = BROKEN  # 1 would say that a test is red
    try:
        code = int(importlib.import_module("pytest").main([*request["words"], *PLUGINS]))
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if code == BROKEN:
            traceback.print_exc()
        os._exit(code)


if __name__ == "__main__":
    main()
