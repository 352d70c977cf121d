"""``python -m bench [--quick]``: one table from one run. Ratios carry over to other machines, milliseconds do not."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from adamd_service.settings import ServerSettings
from bench import plan, processes, run, table
from bench.run import Measured

HERE = Path(__file__).parent
OUT = HERE / "out"
SELF = 300.0  # MB that a server may take for itself
EACH = 32  # bytes that it may take for a parameter


def main() -> None:
    """Run it and write it down."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="half a minute, without the 10 M: a smoke test, not a measurement"
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="PARAMETERS", help="these sizes alone")
    asked = parser.parse_args()
    sizes = [
        size for size in (plan.QUICK if asked.quick else plan.FULL) if not asked.only or size.parameters in asked.only
    ]
    console, began = Console(), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {line}", highlight=False)

    measured = _measured(sizes, say)
    for one in table.shown(measured):
        console.print(one)
    rest = _rest(measured)
    console.print("\n".join(rest), highlight=False)
    OUT.mkdir(exist_ok=True)
    (OUT / "times.json").write_text(json.dumps([asdict(one) for one in measured]))
    (OUT / "table.md").write_text(_results(measured, rest))
    if not asked.quick and not asked.only:
        shutil.copy(OUT / "table.md", HERE / "RESULTS.md")
    say(f"written: {OUT / 'table.md'}" + ("" if asked.quick or asked.only else f" and {HERE / 'RESULTS.md'}"))


def _measured(sizes: list[plan.Size], say: run.Say) -> list[Measured]:
    data = OUT / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            park = run.start(stack, data, say)
            return [run.measure(park, size, _prefixed(say, size)) for size in sizes]
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _prefixed(say: run.Say, size: plan.Size) -> run.Say:
    return lambda line: say(f"{size.parameters:,}: {line}")


def _rest(measured: list[Measured]) -> list[str]:
    """Return what the table does not say."""
    defaults = {name: field.default for name, field in ServerSettings.model_fields.items()}
    counts = ", ".join(f"{one.snapshots} at {one.parameters:,}" for one in measured)
    lines = [
        f"Snapshots that fell into the committed blocks: {sum(one.snapshots for one in measured)} ({counts}); "
        f"ratio {defaults['snapshot_ratio']:g}, pace {defaults['snapshot_pace'] / processes.MIB:g} MiB/s: the defaults."
    ]
    last = measured[-1]
    bound = SELF + EACH * last.parameters / 1e6
    for name, (resident, peak) in last.memory.items():
        owed = f", owed ≤ {bound:.0f}" if name.startswith("adamd") else ""
        lines.append(f"Memory at {last.parameters:,}, {name}: {resident:.0f} MB resident, {peak:.0f} at most{owed}.")
    return lines


def _results(measured: list[Measured], rest: list[str]) -> str:
    counts = {row.name: row.count for row in table.rows(measured[-1])}
    return "\n".join(
        [
            "# One run of `make bench`",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {processes.machine()}; client, servers and stores all on it, over "
            "loopback. Only the ratios carry over. The disk under the stores is noisy from minute to minute, so "
            "everything is measured in turns: floor, kernel, memory and SDK step by step; then, on one store "
            "process, blocks of bulk writer, naive and committed steps in rotating order. "
            f"With few steps (at {measured[-1].parameters:,}: {counts['memory']} memory, {counts['committed, always']} "
            f"committed, {counts['naive, always']} naive a store) p99 is close to the worst. Before the timing, three "
            "steps of every session equalled the NumPy reference bit for bit, and the naive service's within 1e-6.",
            "",
            table.markdown(measured),
            "",
            *(f"- {line}" for line in rest),
            "",
            "floor: raw sockets, the vector up and as much down, reused buffers, another process as peer. kernel: the "
            "fused kernel alone on one thread. bulk writer: the product's `store.stage(…)`, `write`, `finish` of the "
            "same bytes, without a server. naive: bench/naive.py. committed and naive share one store process for each "
            "`appendfsync`, with the settings of adamd's own embedded store.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
