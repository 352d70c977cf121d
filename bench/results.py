"""What a run found, and the page that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from adamd_service.settings import RATIO_IN_FILES
from bench import processes, ratios, table
from bench.run import Measured
from bench.table import Found

SELF = 300.0  # MB that a server may take for itself
EACH = 32  # bytes that it may take for a parameter


def rest(found: Found) -> list[str]:
    """Return what the tables do not say."""
    if not found.sizes:
        return []
    counts = ", ".join(f"{one.snapshots} at {one.parameters:,}" for one in found.sizes)
    lines = [
        f"Snapshots that fell into the committed blocks: {sum(one.snapshots for one in found.sizes)} ({counts}); "
        f"ratio {RATIO_IN_FILES:g}: the default."
    ]
    last = found.sizes[-1]
    bound = SELF + EACH * last.parameters / 1e6
    for name, (resident, peak) in last.memory.items():
        owed = f", owed ≤ {bound:.0f}" if name.startswith("adamd") else ""
        lines.append(f"Memory at {last.parameters:,}, {name}: {resident:.0f} MB resident, {peak:.0f} at most{owed}.")
    return lines


def page(found: Found) -> str:
    """Return RESULTS.md."""
    tables = table.tables(found)
    return "\n".join(
        [
            "# One run of `make bench`",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {processes.machine()}; clients, servers, peers and stores all on it, over "
            "loopback. Only the ratios carry over. The disk under the stores is noisy from minute to minute, so "
            "everything is measured in turns: floor, kernel, memory and the peers step by step (small ones in bursts); "
            "then, on one store process, blocks of bulk writer, naive and committed steps in rotating order."
            f"{_counts(found.sizes)}",
            "",
            "![time by size](results.png)",
            "",
            *(part for one in tables for part in (one.markdown(), "")),
            *(f"- {line}" for line in rest(found)),
            "",
            EXPLAINED,
            "",
        ]
    )


def _counts(sizes: Sequence[Measured]) -> str:
    if not sizes:
        return ""
    last = sizes[-1]
    told = {name: one.count for name in last.times if (one := ratios.times(last, name))}
    return (
        f" With few steps (at {last.parameters:,}: {told['memory']} memory, {told['committed, always']} committed, "
        f"{told['naive, always']} naive a store) p99 is close to the worst. Before the timing, three steps of every "
        "session equalled the NumPy reference bit for bit, those of the naive service and of every peer within 1e-6."
    )


EXPLAINED = """\
**floor**: raw sockets, the vector up and as much down, reused buffers, another process as peer. **kernel**: the
fused kernel alone on one thread. **memory**: a session in `memory` over HTTP by a bare client; **SDK**: by adamd's
own. **gRPC stream**: by adamd's own over `grpc://`; unary, lockstep, pipelined (20 steps ahead): by grpcio, each by
the API in which it is fastest: lockstep by asyncio's, the others by the blocking one, lockstep too for comparison.
**bulk writer**: the product's `store.stage(…)`, `write`, `finish` of the same bytes, without a server. **naive**:
bench/naive.py, on a store process of its own with the settings of adamd's embedded store. **fresh file**, **recycled
file**: the vector written by `open` and `write` into a new file, or over one that is there, on the disk of the
servers' data; with and without `os.fdatasync`. They take their turns in the blocks of `always`.

**torch RPC**: two processes on TensorPipe, `rpc_sync` of the gradient, `torch.optim.Adam` at the server, its
default for a CPU and fused. **MXNet**: push and pull of one key, Adam at the server. **Ray**: an actor with
torch's Adam. **local Adam**: `torch.optim.Adam` in the program, nothing sent anywhere. Each peer runs in an
environment of its own (`bench/environments.py`) and times itself; torch and Ray use as many threads as they like.

The load: every client steps its own share of the sessions, one after the other, and has one step under way;
adamd's by one thread that only sends and counts bytes, torch's by as many threads of one process. Afterwards every
session of adamd equalled the reference bit for bit: no step lost, none applied twice.

After `kill -9`: a server with as many sessions, one step old, is killed twice. First the parameters of one session
after the other are read (cold loads), then 16 clients make a step of every session (cold) and one more (warm). "Start
to ready" is from the start of the command to its ready line, the imports of Python included: an empty directory's is
beside it. The first step is that of a session which was just created. Afterwards every session equalled the reference
bit for bit.

Rounds: **closed** is `POST …/close` of a round whose contributions are durable, up to the answer that its step is
committed (`always`, by `deltas` as clients of adamd send them, or by trained `parameters` as Flower's do). **Flower
FedAdam** is `aggregate_train` of flwr 1.42 over replies in memory, with nothing durable; **float32** is the same with a
step size that does not turn its arrays into float64. After one round all were within 1e-5 of each other. Over sockets
Flower runs `start_server` and `start_client`, its quickest way, deprecated: the one that took its place looks for
messages in intervals, which are given beside it and are in no figure. adamd's contributions are durable, Flower's not.
The memory for a round is the peak of a fresh server beyond what it had before the first contribution."""
