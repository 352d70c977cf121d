"""What is compared with what, and what each comparison has to come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TypeAlias

import numpy as np

from bench.park import POLICIES
from bench.run import Measured

Value: TypeAlias = "Callable[[Measured], float]"
TEN_MILLION, MILLION, THOUSAND = 10_000_000, 1_000_000, 1_000


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison. ``owed`` says for some sizes how much it may be at most (or has to be at least)."""

    name: str
    rows: tuple[str, ...]
    value: Value
    owed: dict[int, float] = field(default_factory=dict)
    at_least: bool = False

    def of(self, measured: Measured) -> float | None:
        """Return it at this size; None where a row was not measured."""
        return self.value(measured) if all(row in measured.times for row in self.rows) else None

    def bound(self, parameters: int) -> str:
        """Say what is owed at this size."""
        if parameters not in self.owed:
            return ""
        return f"{'≥' if self.at_least else '≤'} {self.owed[parameters]:g}"

    def holds(self, measured: Measured) -> bool | None:
        """Say whether what is owed at this size is there; None where it was not measured, or nothing is owed."""
        value, bound = self.of(measured), self.owed.get(measured.parameters)
        if value is None or bound is None:
            return None
        return value >= bound if self.at_least else value <= bound


def lines() -> list[Line]:
    """Return every comparison, in the order of the table."""
    floor = "floor", "kernel"
    return [
        _beside("memory", *floor, owed={TEN_MILLION: 1.15}),
        _beside("memory, SDK", *floor),
        _beside("memory, gRPC stream", *floor, owed={TEN_MILLION: 1.6}),
        _beside("memory", "torch RPC", owed={TEN_MILLION: 0.6}),
        _beside("memory", "torch RPC, fused Adam"),
        _beside("memory, gRPC stream", "torch RPC"),
        _beside("memory", "MXNet dist_async", owed={TEN_MILLION: 0.35}),
        _beside("memory", "Ray actor"),
        _beside("memory", "local Adam, default", owed={TEN_MILLION: 1.0}),
        _beside("memory", "local Adam, foreach"),
        _beside("memory", "local Adam, fused"),
        *(line for policy in POLICIES for line in _durable(policy)),
        _medians("committed, always", "local Adam, default", owed={TEN_MILLION: 1.0}),
        _medians("committed, always", "memory", owed={TEN_MILLION: 1.4, MILLION: 1.6}),
        _medians("committed, everysec", "memory", owed={TEN_MILLION: 1.25}),
        _medians("committed, always", "naive, always", owed={TEN_MILLION: 0.06}),
        _medians("committed, always", "fresh file, fdatasync"),
        _medians("committed, always", "recycled file, fdatasync"),
        _medians("fresh file, fdatasync", "recycled file, fdatasync"),
        _medians("fresh file", "recycled file"),
        _p99s("committed, always", "local Adam, default"),
        _p99s("committed, always", "memory"),
        _p99s("committed, everysec", "memory"),
        _p50s("memory", "torch RPC", owed={THOUSAND: 1.0}),
        _p50s("memory, gRPC stream, lockstep", "torch RPC"),
        _apart("committed, everysec", "memory", owed={THOUSAND: 0.5}),
        _speed("memory, gRPC stream, lockstep", "memory, gRPC unary", owed={THOUSAND: 1.4}),
        _speed("memory, gRPC stream, lockstep, blocking", "memory, gRPC unary"),
        _speed("memory, gRPC stream, pipelined", "memory, gRPC unary"),
    ]


def _durable(policy: str) -> list[Line]:
    name = f"committed, {policy}"
    return [
        _blocks(name, f"naive, {policy}", owed={TEN_MILLION: 0.1}),
        _blocks(name, f"bulk writer, {policy}", "kernel", owed={TEN_MILLION: 1.3}),
    ]


def _beside(of: str, *others: str, owed: dict[int, float] | None = None) -> Line:
    """Compare steps that were measured near each other: the median of their ratios."""

    def value(measured: Measured) -> float:
        pairs = zip(_flat(measured, of), *(_flat(measured, other) for other in others), strict=True)
        return float(median(one / sum(rest) for one, *rest in pairs))

    return Line(f"{of} ÷ {_sum(others)}", (of, *others), value, owed or {})


def _blocks(of: str, *others: str, owed: dict[int, float]) -> Line:
    """Compare blocks, so that the snapshots count: the median of the ratios of their means."""

    def value(measured: Measured) -> float:
        pairs = zip(_means(measured, of), *(_means(measured, other) for other in others), strict=True)
        return float(median(one / sum(rest) for one, *rest in pairs))

    return Line(f"{of} ÷ {_sum(others)}", (of, *others), value, owed)


def _medians(of: str, other: str, owed: dict[int, float] | None = None) -> Line:
    """Compare rows that take turns round by round: the median of the ratios of their rounds' medians."""

    def value(measured: Measured) -> float:
        return paired(*([median(one) for one in measured.times[name]] for name in (of, other)))

    return Line(f"medians: {of} ÷ {other}", (of, other), value, owed or {})


def _p99s(of: str, other: str) -> Line:
    def value(measured: Measured) -> float:
        ours, theirs = (float(np.percentile(_flat(measured, name), 99)) for name in (of, other))
        return ours / theirs

    return Line(f"p99 of {of} ÷ p99 of {other}", (of, other), value)


def _p50s(of: str, other: str, owed: dict[int, float] | None = None) -> Line:
    def value(measured: Measured) -> float:
        return median(_flat(measured, of)) / median(_flat(measured, other))

    return Line(f"p50 of {of} ÷ p50 of {other}", (of, other), value, owed or {})


def _apart(of: str, other: str, owed: dict[int, float]) -> Line:
    def value(measured: Measured) -> float:
        return 1000 * (median(_flat(measured, of)) - median(_flat(measured, other)))

    return Line(f"p50 of {of} − p50 of {other}, in ms", (of, other), value, owed)


def _speed(of: str, other: str, owed: dict[int, float] | None = None) -> Line:
    """Compare steps per second: the median over the rounds."""

    def value(measured: Measured) -> float:
        pairs = zip(_means(measured, of), _means(measured, other), strict=True)
        return median(slow / fast for fast, slow in pairs)

    return Line(f"steps per second: {of} ÷ {other}", (of, other), value, owed or {}, at_least=True)


def paired(of: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of what was measured in the same round."""
    return median(one / other for one, other in zip(of, others, strict=True))


def _sum(names: tuple[str, ...]) -> str:
    return f"({' + '.join(names)})" if len(names) > 1 else names[0]


def _flat(measured: Measured, name: str) -> list[float]:
    return [t for one in measured.times[name] for t in one]


def _means(measured: Measured, name: str) -> list[float]:
    return [fmean(one) for one in measured.times[name]]


@dataclass(frozen=True, slots=True)
class Times:
    """One contender at one size, in ms. With fewer than 100 times, p99 is close to the worst one."""

    count: int
    mean: float
    p50: float
    p99: float


def times(measured: Measured, name: str) -> Times | None:
    """Return what one row took at this size; None where it was not measured."""
    if name not in measured.times:
        return None
    taken = 1000 * np.array(_flat(measured, name))
    p50, p99 = np.percentile(taken, (50, 99))
    return Times(len(taken), float(taken.mean()), float(p50), float(p99))
