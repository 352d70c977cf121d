"""The tables: times by contender, comparisons by size, and what was owed; for a terminal and for RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from bench import ratios, rounds_table
from bench.cold import READY_WITHIN, Begun, Restarted
from bench.load import Loaded
from bench.rounds import Ran
from bench.run import Measured
from bench.tabular import Table, ms


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured; ``absent`` says for each row that has no figures why."""

    sizes: list[Measured]
    loads: list[Loaded]
    absent: dict[str, str]
    restarts: list[Restarted] = field(default_factory=list)
    beginnings: list[Begun] = field(default_factory=list)
    rounds: list[Ran] = field(default_factory=list)


def tables(found: Found) -> list[Table]:
    """Return all tables of a run."""
    made = []
    if found.sizes:
        made += [_times(found.sizes, found.absent), _compared(found.sizes), _owed(found.sizes)]
    if found.loads:
        made.append(_loads(found.loads))
    if found.restarts:
        made.append(_restarts(found.restarts))
    if found.beginnings:
        made.append(_beginnings(found.beginnings))
    for one in found.rounds:
        made += rounds_table.tables(one)
    return made


def _times(sizes: Sequence[Measured], absent: Mapping[str, str]) -> Table:
    names = list(dict.fromkeys(name for measured in sizes for name in measured.times))
    body = [[name, *(_cell(ratios.times(measured, name)) for measured in sizes)] for name in names]
    body += [[f"{name}: {why}", *["absent" for _ in sizes]] for name, why in absent.items()]
    return Table(["ms: mean / p50 / p99", *_heads(sizes)], body)


def _compared(sizes: Sequence[Measured]) -> Table:
    body = []
    for line in ratios.lines():
        values = [line.of(measured) for measured in sizes]
        if any(value is not None for value in values):
            body.append([line.name, *("–" if value is None else f"{value:.2f}" for value in values)])
    return Table(["ratio (median of paired rounds)", *_heads(sizes)], body)


def _owed(sizes: Sequence[Measured]) -> Table:
    body = []
    for measured in sizes:
        for line in ratios.lines():
            bound = line.bound(measured.parameters)
            if not bound:
                continue
            value = line.of(measured)
            told = "not measured" if value is None else f"{value:.2f}"
            holds = {None: "", True: "yes", False: "**no**"}[line.holds(measured)]
            body.append([line.name, f"{measured.parameters:,}", bound, told, holds])
    return Table(["owed", "parameters", "bound", "measured", "holds"], body)


def _loads(loads: Sequence[Loaded]) -> Table:
    body = []
    for one in loads:
        p50, p99 = one.percentile(50), one.percentile(99)
        body.append(
            [
                one.name,
                f"{one.speed:,.0f}",
                f"{ms(1000 * p50)} / {ms(1000 * p99)}",
                f"{p99 / p50:.1f}",
                "told" if one.bound is None else "yes" if p99 <= one.bound * p50 else "**no**",
                f"{one.resident:,.0f} / {one.peak:,.0f}",
            ]
        )
    head = [
        "200 sessions, 32 clients",
        "steps per second",
        "ms: p50 / p99",
        "p99 ÷ p50",
        "≤ 5",
        "MB: now / peak",
    ]
    return Table(head, body)


def _restarts(restarts: Sequence[Restarted]) -> Table:
    body = []
    for one in restarts:
        start, loading = max(one.starts), 1000 * np.array(one.loads)
        p50, p99 = np.percentile(loading, (50, 99))
        body.append(
            [
                f"{one.sessions:,} sessions of {one.parameters:,}",
                f"{one.nbytes / 1e6:,.0f}",
                f"{start:.2f}",
                "yes" if start <= READY_WITHIN else "**no**",
                f"{one.empty:.2f}",
                f"{one.sessions / start:,.0f} / {one.nbytes / 1e6 / start:,.0f}",
                f"{1000 * len(one.loads) / loading.sum():,.0f}",
                f"{ms(p50)} / {ms(p99)}",
                f"{one.cold:,.0f} / {one.warm:,.0f}",
                f"{one.cold / one.warm:.2f}",
            ]
        )
    head = [
        "after kill -9",
        "MB on the disk",
        "start to ready, s (the slower of 2)",
        f"≤ {READY_WITHIN:g}",
        "an empty one, s",
        "sessions / MB per second of it",
        "cold loads per second",
        "ms: p50 / p99",
        "steps per second: cold / warm",
        "cold ÷ warm",
    ]
    return Table(head, body)


def _beginnings(beginnings: Sequence[Begun]) -> Table:
    body = [
        [
            f"{one.name}, {one.parameters:,} parameters",
            f"{median(one.first):,.0f}",
            f"{median(one.second):,.0f}",
            f"{ratios.paired(one.first, one.second):.2f}",
        ]
        for one in beginnings
    ]
    return Table(["16 clients, steps per second", "first", "second", "first ÷ second"], body)


def _heads(sizes: Sequence[Measured]) -> list[str]:
    return [f"{measured.parameters:,}" for measured in sizes]


def _cell(times: ratios.Times | None) -> str:
    return "–" if times is None else f"{ms(times.mean)} / {ms(times.p50)} / {ms(times.p99)}"
