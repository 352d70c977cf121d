"""Runs the demo's own server: a child process with a store in a temporary directory, which the demo kills."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Self

START_SECONDS = 180.0  # the first start on a machine compiles the kernels
STOP_SECONDS = 60.0
LINES = 12  # of its output, shown where it does not start
_READY = re.compile(r"adamd is ready at (http://\S+:(\d+))")


class NotStarted(Exception):
    """A process did not come up, or ended; the message has its last lines."""


class DemoServer:
    """``adamd serve`` in a process of its own. `start` again after `kill` uses the same port and the same data."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="adamd-demo-")
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._starting = threading.Lock()
        self._closed = False
        self.url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            NotStarted: it does not come up.

        """
        process = self._launch()
        ready = threading.Event()
        threading.Thread(target=self._read, args=(process, ready), daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while not ready.wait(0.02):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted("the server did not start. Its last words:\n" + "\n".join(self._lines[-LINES:]))

    def _launch(self) -> subprocess.Popen[str]:
        # The demo's server is the same whatever the ADAMD_… of this shell say: it must not touch anyone's data.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ADAMD_")}
        command = [sys.executable, "-m", "adamd_service", "serve", "--port", str(self._port), "--grpc-port", "off"]
        with self._starting:
            if self._closed:
                raise NotStarted("the demo is over")
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [*command, "--data-dir", self._directory],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=clean | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is the demo's to handle: it ends the server in order
            )
            return self._process

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                match = _READY.search(line)
                if match is not None:
                    self.url, self._port = match[1], int(match[2])
                    ready.set()

    def freeze(self) -> None:
        """Stop it where it stands; return when it does."""
        pid = self._running().pid
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it by ``kill -9``, so that it cannot tidy up."""
        process = self._running()
        process.kill()
        process.wait()

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def close(self) -> None:
        """End it and remove what it stored."""
        with self._starting:
            self._closed = True
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)  # should it be frozen
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
