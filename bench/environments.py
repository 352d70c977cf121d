"""An environment for each peer, under ``.bench/``: made once, made anew when its requirements change.

A peer whose requirements the bench's own environment meets runs there: as a process of its own, all the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1] / ".bench"
MINUTES = 15


@dataclass(frozen=True, slots=True)
class Peer:
    """A program in an environment: the rows that it has, and what it needs."""

    name: str
    module: str
    rows: tuple[str, ...]
    requirements: tuple[str, ...]
    environment: str


TORCH = ("torch==2.13.0", "numpy>=2.0")
FLOWER = ("flwr==1.42.0", "numpy>=2.0")
PEERS = (
    Peer(
        "local",
        "bench.peers.torch_local",
        ("local Adam, default", "local Adam, foreach", "local Adam, fused"),
        TORCH,
        "torch",
    ),
    Peer("rpc", "bench.peers.torch_rpc", ("torch RPC", "torch RPC, fused Adam"), TORCH, "torch"),
    # The last mxnet, and the last NumPy that it can live with; there are wheels of both up to Python 3.11.
    Peer("mxnet", "bench.peers.mxnet_async", ("MXNet dist_async",), ("mxnet==1.9.1", "numpy==1.23.5"), "mxnet"),
    Peer("flower", "bench.peers.flower", ("Flower FedAdam", "Flower FedAdam, float32"), FLOWER, "flower"),
    Peer("ray", "bench.peers.ray_actor", ("Ray actor",), ("ray>=2.50", *TORCH), "ray"),
)


class Absent(Exception):
    """A peer cannot be had here; says why."""


def python(peer: Peer) -> str:
    """Return the interpreter of the peer's environment, made if need be.

    Raises:
        Absent: it cannot be made.

    """
    if all(_here(requirement) for requirement in peer.requirements):
        return sys.executable
    home = ROOT / peer.environment
    stamp, wanted = home / "requirements.txt", "\n".join(peer.requirements)
    interpreter = str(home / "bin" / "python")
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    shutil.rmtree(home, ignore_errors=True)
    _run(peer, [sys.executable, "-m", "venv", str(home)])
    quiet = ["--quiet", "--disable-pip-version-check"]
    _run(peer, [interpreter, "-m", "pip", "install", *quiet, *peer.requirements])
    stamp.write_text(wanted)
    return interpreter


def _here(requirement: str) -> bool:
    """Say whether the bench's own environment has it: .ci/run's has torch."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(version(wanted.name))
    except PackageNotFoundError:
        return False


def _run(peer: Peer, command: list[str]) -> None:
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    except subprocess.TimeoutExpired:
        raise Absent(f"{', '.join(peer.requirements)} took more than {MINUTES} minutes to install") from None
    if told.returncode:
        last = (told.stderr.strip() or told.stdout.strip() or "nothing said").splitlines()[-1]
        raise Absent(f"{', '.join(peer.requirements)} cannot be installed here: {last[:200]}")
