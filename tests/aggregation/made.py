"""Contributions that the tests of aggregation share, and one way to aggregate them."""

import numpy as np

from adamd_service.aggregation import Contribution, aggregate_round, parse_aggregation

F32, F64 = np.dtype("float32"), np.dtype("float64")


def hard(size, dtype, seed):
    """Values of all magnitudes, so that another order of a sum has other last bits."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size)).astype(dtype)


def contributions(count, size, dtype=F32, make=hard):
    rng = np.random.default_rng(count)
    return [
        Contribution(f"ward-{i}", make(size, dtype, i), float(rng.integers(1, 5000)), int(rng.integers(0, 4)))
        for i in range(count)
    ]


def rows(*given, dtype=F64):
    """One contribution for each row, by clients a, b, c, …"""
    return [Contribution(chr(ord("a") + i), np.array(row, dtype)) for i, row in enumerate(given)]


def settings(quorum, buffered=True, **raw):
    return parse_aggregation(raw, quorum=quorum, buffered=buffered)


def aggregated(given, made=None, **how):
    """The aggregate, and what became of each; settings by name, or the mean of the given ones."""
    first = given[0].values
    out = np.full(len(first), np.nan, first.dtype)
    outcome = aggregate_round(given, made or settings(len(given)), out, **how)
    return out, outcome
