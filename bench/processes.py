"""The processes of a run: stores, adamd servers, naive services. Each is ended when its block is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adamd_service.store import EmbeddedStore

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Service:
    """A process that says where it listens."""

    name: str
    pid: int
    host: str
    port: int
    grpc: str = ""  # host:port, of an adamd


@contextmanager
def store(directory: Path, fsync: str) -> Iterator[EmbeddedStore]:
    """Run the product's own embedded store, so that its settings are the product's; anyone may connect to its URL."""
    one = EmbeddedStore(directory, fsync=fsync)
    one.start()
    try:
        yield one
    finally:
        one.stop()


@contextmanager
def adamd(name: str, directory: Path, fsync: str) -> Iterator[Service]:
    """Run ``adamd serve`` on a data directory of its own, as a user does: with a private store, and files for bulk."""
    options = ["serve", "--port", "0", "--grpc-port", "0", "--fsync", fsync, "--data-dir", str(directory)]
    ready = r"adamd is ready at http://([^:]+):(\d+) and grpc://(\S+)"
    with _service(name, ["-m", "adamd_service", *options], ready) as found:
        yield found


@contextmanager
def naive(name: str, redis_url: str) -> Iterator[Service]:
    """Run the naive service on a store."""
    with _service(name, ["-m", "bench.naive", redis_url], r"naive is ready at http://([^:]+):(\d+)") as found:
        yield found


@contextmanager
def _service(name: str, arguments: list[str], ready: str) -> Iterator[Service]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=None, env=environment, text=True
    )
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(ready, line):
                yield Service(name, process.pid, found[1], int(found[2]), *found.groups()[2:])
                return
        raise SystemExit(f"{name} did not start:\n{''.join(said[-20:])}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew at what is resident now (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory(pid: int) -> tuple[float, float]:
    """Return what is resident now, and the peak, in MB of 10^6 bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
    return int(found["VmRSS"]) * 1024 / 1e6, int(found["VmHWM"]) * 1024 / 1e6


def children(pid: int) -> list[int]:
    """Return the processes that a process has started: a server's private store (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def machine() -> str:
    """Describe the machine in neutral words."""
    with open("/proc/meminfo") as file:
        found = re.search(r"MemTotal:\s+(\d+) kB", file.read())
    gib = int(found[1]) / (1 << 20) if found else 0.0
    return f"{os.cpu_count()} cores ({_architecture()}), {gib:.0f} GiB of memory, Python {sys.version.split()[0]}"


def _architecture() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    vector = next((name for name in ("avx512f", "avx2", "asimd") if name in flags), "scalar")
    return f"{os.uname().machine}, {vector}"
