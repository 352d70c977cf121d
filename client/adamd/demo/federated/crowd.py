"""The demo's clients as processes, and what they told last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from adamd.demo.digits import Images
from adamd.demo.federated.roles import MEMBERS
from adamd.demo.federated.worker import Event
from adamd.demo.server import NotStarted

STOP_SECONDS = 5.0


class Crowd:
    """Twenty client processes, which join one federation after the other."""

    def __init__(self, shards: Sequence[Images]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="adamd-demo-")
        self._shards = shards
        self._processes: list[subprocess.Popen[str]] = []
        self._changed = threading.Condition()
        self._running: set[int] = set()
        self._failure: str | None = None
        self.events: dict[int, list[Event]] = {}  # of the federation under way, by client

    def __enter__(self) -> Self:
        try:
            self._launch()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _launch(self) -> None:
        folder = Path(self._directory.name)
        # One thread for NumPy: twenty processes share the machine, and a sum has the same order everywhere.
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for member, images in zip(MEMBERS, self._shards, strict=True):
            np.save(folder / f"{member.name}.pixels.npy", images.pixels)
            np.save(folder / f"{member.name}.digits.npy", images.digits)
            command = [sys.executable, "-m", "adamd.demo.federated.worker", str(member.place), str(folder)]
            process = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | single | {"PYTHONIOENCODING": "utf-8"},
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is the demo's to handle
            )
            self._processes.append(process)
            threading.Thread(target=self._read, args=(member.place, process), daemon=True).start()

    def _read(self, place: int, process: subprocess.Popen[str]) -> None:
        said: list[str] = []
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if not line.startswith("{"):
                    said.append(line.rstrip())  # a warning, or an error's last words
                    continue
                event = Event(**json.loads(line))
                with self._changed:
                    self.events.setdefault(place, []).append(event)
                    if event.what == "failed":
                        self._failure = f"{MEMBERS[place].name}: {event.words}"
                    if event.what in ("over", "failed"):
                        self._running.discard(place)
                    self._changed.notify_all()
        with self._changed:
            if place in self._running:
                self._failure = f"{MEMBERS[place].name} ended: {' '.join(said[-3:])}"
                self._running.discard(place)
            self._changed.notify_all()

    def join(self, url: str, session: str) -> None:
        """Have all clients take part in a federation."""
        with self._changed:
            self.events = {}
            self._running = {member.place for member in MEMBERS}
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"url": url, "session": session}) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise NotStarted("a client's process has ended") from None

    def busy(self) -> bool:
        """Say whether clients still take part.

        Raises:
            NotStarted: one could not go on.

        """
        with self._changed:
            if self._failure is not None:
                raise NotStarted(self._failure)
            return bool(self._running)

    def trained_again(self) -> int:
        """Return how many clients trained twice for one round."""
        with self._changed:
            trained = [[event.round for event in told if event.what == "trains"] for told in self.events.values()]
        return sum(len(set(rounds)) < len(rounds) for rounds in trained)

    def close(self) -> None:
        """End the processes, and remove their images."""
        for process in self._processes:
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._directory.cleanup()
