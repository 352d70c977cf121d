"""``python -m bench [--quick]``: tables from one run. Ratios carry over to other machines, milliseconds do not."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench import cold, load, park, plan, plot, processes, results, rounds, run, table
from bench.environments import PEERS
from bench.table import Found

HERE = Path(__file__).parent
OUT = HERE / "out"
Say = Callable[[str], None]


def main() -> None:
    """Run it and write it down."""
    asked = _asked()
    offered = () if asked.load or asked.rounds else plan.QUICK if asked.quick else plan.FULL
    sizes = tuple(size for size in offered if not asked.only or size.parameters in asked.only)
    many = None if asked.only or asked.rounds else plan.QUICK_MANY if asked.quick else plan.FULL_MANY
    of_rounds = None if asked.only or asked.load else plan.QUICK_ROUNDS if asked.quick else plan.FULL_ROUNDS
    console, began = Console(soft_wrap=True), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {line}", highlight=False, markup=True)

    found = Found([], [], {})
    try:
        if sizes or many:
            _run(found, sizes, many, asked.peers, say)
        if of_rounds:
            _run_rounds(found, of_rounds, asked.peers, say)
    finally:  # a part that fails takes nothing away from those before it
        _write(found)
    for one in table.tables(found):
        console.print(one.shown())
    console.print("\n".join(results.rest(found)), highlight=False, markup=False)
    whole = not (asked.quick or asked.only or asked.load or asked.rounds)
    if whole:
        shutil.copy(OUT / "table.md", HERE / "RESULTS.md")
        shutil.copy(OUT / "results.png", HERE / "results.png")
    say(f"written: {OUT}/table.md" + (f", {HERE}/RESULTS.md and results.png" if whole else ""))


def _write(found: Found) -> None:
    (OUT / "times.json").write_text(json.dumps(asdict(found)))
    (OUT / "table.md").write_text(results.page(found))
    if found.sizes:
        plot.picture(OUT / "results.png", found.sizes, processes.machine())


def _asked() -> argparse.Namespace:
    names = [one.name for one in PEERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a minute, without the 10 M: a smoke test, not a measurement"
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="PARAMETERS", help="these sizes alone, without the load")
    parser.add_argument("--load", action="store_true", help="many sessions alone: load, first steps, restarts")
    parser.add_argument(
        "--rounds", action="store_true", help="rounds alone: beside Flower, and a thousand contributors"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=names,
        metavar="PEER",
        help=f"of {', '.join(names)}; all of them, if absent, and with --quick those of torch",
    )
    parser.add_argument("--no-peers", action="store_true", help="adamd, the naive service and the floor alone")
    asked = parser.parse_args()
    if asked.no_peers:
        asked.peers = []
    elif asked.peers is None:
        asked.peers = ["local", "rpc"] if asked.quick and not asked.rounds else names
    return asked


def _run(found: Found, sizes: tuple[plan.Size, ...], many: plan.Many | None, peers: list[str], say: Say) -> None:
    data = OUT / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            everyone = park.start(stack, OUT, peers, say)
            found.absent.update(everyone.absent)
            for size in sizes:
                found.sizes.append(run.measure(everyone, size, _prefixed(say, size)))
            if many:
                found.loads.extend(load.measure(everyone, many.load, say))
                found.beginnings.extend(cold.beginnings(everyone, many.beginning, say))
        for one in many.restarts if many else ():  # alone: a start takes every core
            found.restarts.append(cold.restart(data, one, say))
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _run_rounds(found: Found, wanted: plan.Rounds, peers: list[str], say: Say) -> None:
    data = OUT / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    try:
        found.rounds.append(rounds.measure(data, OUT, wanted, peers, say))
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _prefixed(say: Say, size: plan.Size) -> Say:
    return lambda line: say(f"{size.parameters:,}: {line}")


if __name__ == "__main__":
    main()
