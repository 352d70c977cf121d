"""From times to the table: mean, p50 and p99, and ratios from medians of paired rounds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from rich.table import Table

from bench.run import POLICIES, Measured

ROWS = (
    "floor",
    "kernel",
    "memory",
    "memory, SDK",
    *(f"{what}, {policy}" for policy in POLICIES for what in ("bulk writer", "committed", "naive")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one size, in ms."""

    name: str
    count: int
    mean: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio, what it has to be, and where it should go."""

    name: str
    value: float
    owed: float | None = None
    direction: float | None = None


def rows(measured: Measured) -> list[Row]:
    """Return the rows of one size. With fewer than 100 times, p99 is close to the worst one."""
    made = []
    for name in ROWS:
        times = 1000 * np.array([t for one in measured.times[name] for t in one])
        p50, p99 = np.percentile(times, (50, 99))
        made.append(Row(name, len(times), float(times.mean()), float(p50), float(p99)))
    return made


def ratios(measured: Measured) -> list[Ratio]:
    """Return the ratios of one size.

    memory: steps that were measured one after the other, the median of their ratios. committed: blocks, so that the
    snapshots count; the median of the ratios of their means.
    """
    large = measured.parameters >= 10_000_000
    floor, kernel = (_flat(measured, name) for name in ("floor", "kernel"))
    made = []
    for name in ("memory", "memory, SDK"):
        pairs = zip(_flat(measured, name), floor, kernel, strict=True)
        owed = (1.3, 1.15) if large and name == "memory" else (None, None)
        made.append(Ratio(f"{name} ÷ (floor + kernel)", median(t / (f + k) for t, f, k in pairs), *owed))
    for policy in POLICIES:
        committed, naive, bulk = (_means(measured, f"{w}, {policy}") for w in ("committed", "naive", "bulk writer"))
        beside = _means(measured, "kernel")
        owed = (0.25, 0.1) if large else (None, None)
        pairs_naive = median(c / n for c, n in zip(committed, naive, strict=True))
        pairs_bulk = median(c / (b + k) for c, b, k in zip(committed, bulk, beside, strict=True))
        made.append(Ratio(f"committed ÷ naive, {policy}", pairs_naive, *owed))
        direction = 1.3 if large else None
        made.append(Ratio(f"committed ÷ (bulk writer + kernel), {policy}", pairs_bulk, None, direction))
    return made


def _flat(measured: Measured, name: str) -> list[float]:
    return [t for one in measured.times[name] for t in one]


def _means(measured: Measured, name: str) -> list[float]:
    return [fmean(one) for one in measured.times[name]]


def shown(sizes: list[Measured]) -> list[Table]:
    """Return the tables for a terminal."""
    times = Table("ms (mean / p50 / p99)", title="Adam over loopback, float32")
    for measured in sizes:
        times.add_column(f"{measured.parameters:,}", justify="right")
    for name, cells in _time_lines(sizes):
        times.add_row(name, *cells)
    compared = Table("ratio (median of paired rounds)")
    for measured in sizes:
        compared.add_column(f"{measured.parameters:,}", justify="right")
    compared.add_column("owed at 10 M", justify="right")
    compared.add_column("direction", justify="right")
    for name, cells in _ratio_lines(sizes):
        compared.add_row(name, *cells)
    return [times, compared]


def markdown(sizes: list[Measured]) -> str:
    """Return the same tables for RESULTS.md."""
    heads = [f"{measured.parameters:,}" for measured in sizes]
    times = _pipe(["ms: mean / p50 / p99", *heads], [[name, *cells] for name, cells in _time_lines(sizes)])
    compared = _pipe(
        ["ratio (median of paired rounds)", *heads, "owed at 10 M", "direction"],
        [[name, *cells] for name, cells in _ratio_lines(sizes)],
    )
    return f"{times}\n\n{compared}"


def _pipe(head: list[str], body: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _time_lines(sizes: list[Measured]) -> list[tuple[str, list[str]]]:
    by_size = [rows(measured) for measured in sizes]
    return [
        (name, [f"{_ms(one[i].mean)} / {_ms(one[i].p50)} / {_ms(one[i].p99)}" for one in by_size])
        for i, name in enumerate(ROWS)
    ]


def _ratio_lines(sizes: list[Measured]) -> list[tuple[str, list[str]]]:
    by_size = [ratios(measured) for measured in sizes]
    return [
        (last.name, [*(f"{one[i].value:.2f}" for one in by_size), _bound(last.owed), _bound(last.direction)])
        for i, last in enumerate(by_size[-1])
    ]


def _bound(value: float | None) -> str:
    return "" if value is None else f"≤ {value:g}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
