"""``python -m bench.versions OLD``: this checkout beside an older one, step by step in turns.

OLD is a directory with a checkout, or a commit of this repository. Both run on this Python and its libraries, each with
its own server, store and SDK. They take turns in short blocks, the order reversed every time, so that a machine that
grows slower does so for both. Only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
READY = re.compile(r"adamd is ready at (http://\S+) and (grpc://\S+)")
FSYNC = {"memory": "everysec", "everysec": "everysec", "always": "always"}  # the store beneath each durability
STEPS = {1_000: 100, 100_000: 40, 1_000_000: 12, 10_000_000: 4}  # of a block, by parameters
WARM = 2  # blocks that are not counted


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured."""

    size: int
    durability: str
    transport: str

    @property
    def steps(self) -> int:
        """Return the steps of a block: about a tenth of a second, and four at least."""
        return next((steps for size, steps in STEPS.items() if self.size <= size), 4)


@dataclass(slots=True)
class Turns:
    """The seconds of both, block by block."""

    old: list[list[float]] = field(default_factory=list)
    new: list[list[float]] = field(default_factory=list)

    def medians(self) -> tuple[float, float]:
        """Return the p50 of all steps, in milliseconds: the old one's, the new one's."""
        old, new = (statistics.median(one for block in blocks for one in block) for blocks in (self.old, self.new))
        return 1e3 * old, 1e3 * new

    def ratios(self) -> list[float]:
        """Return new ÷ old for each pair of blocks, sorted: how far the machine lets a ratio be believed."""
        pairs = zip(self.new, self.old, strict=True)
        return sorted(statistics.median(new) / statistics.median(old) for new, old in pairs)


def main() -> None:
    """Run it, and print a line for each row as it is done."""
    asked = _asked()
    rows = [Row(n, d, t) for d in asked.durability for n in asked.sizes for t in asked.transport]
    slower = []
    print(f"{'parameters':>10}  {'':9} {'':5} {'old p50':>9} {'new p50':>9}  {'new/old':>7}   by block: quartiles")
    with _checkout(asked.old) as old:
        for fsync in dict.fromkeys(FSYNC[row.durability] for row in rows):
            with ExitStack() as stack:
                servers = [stack.enter_context(_server(root, fsync)) for root in (old, ROOT)]
                for row in (one for one in rows if FSYNC[one.durability] == fsync):
                    turns = _measured(row, (old, ROOT), servers, asked.rounds)
                    ratio = _told(row, turns)
                    if asked.bound and ratio > asked.bound:
                        slower.append(row)
    if slower:
        raise SystemExit(f"slower than {asked.bound} times: {', '.join(map(str, slower))}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=__doc__)
    parser.add_argument("old", help="the directory of an older checkout, or a commit")
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each [20]")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(STEPS), metavar="PARAMETERS")
    parser.add_argument("--durability", nargs="+", choices=list(FSYNC), default=list(FSYNC))
    parser.add_argument("--transport", nargs="+", choices=["http", "grpc"], default=["http"])
    parser.add_argument("--bound", type=float, help="end with 1 where a ratio of p50 is above it, as 1.03")
    return parser.parse_args()


@contextmanager
def _checkout(given: str) -> Iterator[Path]:
    """Return the older checkout; a commit is unpacked for as long as it is needed."""
    if Path(given, "service", "adamd_service").is_dir():
        yield Path(given).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="adamd-old-") as directory:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", given, "client", "service"], stdout=subprocess.PIPE, check=False
        )
        if archive.returncode:
            raise SystemExit(f"{given} is neither the directory of a checkout nor a commit of {ROOT}")
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def _environment(root: Path) -> dict[str, str]:
    """Return one in which ``import adamd`` finds that checkout, whatever is installed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ADAMD_")}
    return {**clean, "PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{root / 'client'}:{root / 'service'}"}


@contextmanager
def _server(root: Path, fsync: str) -> Iterator[dict[str, str]]:
    """Run that checkout's server on a private store; yields its URL for each transport."""
    directory = tempfile.mkdtemp(prefix="adamd-versions-")
    words = ["serve", "--port", "0", "--grpc-port", "0", "--fsync", fsync, "--data-dir", directory]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "adamd_service", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(root),
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if found := READY.search(line):
                    yield {"http": found[1], "grpc": found[2]}
                    return
            raise SystemExit(f"the server of {root} did not start:\n{''.join(said[-20:])}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _client(root: Path, url: str, row: Row) -> Iterator[subprocess.Popen[str]]:
    durability = "memory" if row.durability == "memory" else "committed"
    words = [str(HERE / "stepping.py"), url, str(row.size), durability]
    with subprocess.Popen(
        [sys.executable, "-P", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(root),
        text=True,
    ) as process:
        assert process.stdin is not None
        ours = _answer(process)
        if not str(ours).startswith(str(root)):
            raise SystemExit(f"the client runs on {ours}, not on {root}")
        yield process
        process.stdin.close()


def _answer(process: subprocess.Popen[str]) -> object:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a client has ended; its words are above")
    return json.loads(line)


def _block(process: subprocess.Popen[str], steps: int) -> list[float]:
    assert process.stdin is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    seconds = _answer(process)
    assert isinstance(seconds, list)
    return seconds


def _measured(row: Row, roots: tuple[Path, Path], servers: list[dict[str, str]], rounds: int) -> Turns:
    turns = Turns()
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(_client(root, server[row.transport], row))
            for root, server in zip(roots, servers, strict=True)
        )
        for number in range(-WARM, rounds):
            both = [(old, turns.old), (new, turns.new)]
            for process, blocks in both if number % 2 else reversed(both):
                seconds = _block(process, row.steps)
                if number >= 0:
                    blocks.append(seconds)
    return turns


def _told(row: Row, turns: Turns) -> float:
    (old, new), ratios = turns.medians(), turns.ratios()
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    line = f"{row.size:>10,}  {row.durability:9} {row.transport:5} {old:>6.2f} ms {new:>6.2f} ms  {new / old:>7.3f}"
    print(f"{line}   {low:.3f} to {high:.3f}", flush=True)
    return new / old


if __name__ == "__main__":
    main()
