"""The mean by hand, in bits by both kernels, whatever the threads, the order of arrival, and how values are read."""

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from adamd_service.aggregation import AggregationSettings, Contribution, aggregate_round, compiled, reference

F32, F64 = np.dtype("float32"), np.dtype("float64")


def hard(size, dtype, seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size)).astype(dtype)


def round_of(count, size, dtype):
    rng = np.random.default_rng(count)
    return [
        Contribution(f"ward-{i}", hard(size, dtype, i), float(rng.integers(1, 5000)), int(rng.integers(0, 4)))
        for i in range(count)
    ]


def mean(contributions, size, dtype, settings=None, **how):
    out = np.full(size, np.nan, dtype)
    outcome = aggregate_round(contributions, settings or AggregationSettings(quorum=len(contributions)), out, **how)
    return out, outcome


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [1, 3, 4097, 65_536, 65_537, 200_003])
def test_both_kernels_threads_and_orders_give_the_same_bits(dtype, size):
    contributions = round_of(7, size, dtype)
    middle = float(np.median([np.linalg.norm(one.values.astype(F64)) for one in contributions]))
    settings = AggregationSettings(quorum=7, clip_norm=middle)
    wanted, outcome = mean(contributions, size, dtype, settings, kernels=reference)
    assert {member.clipped for member in outcome.members} == {True, False}
    with ThreadPoolExecutor(3) as threads:
        for seed in range(5):
            shuffled = random.Random(seed).sample(contributions, len(contributions))
            found, again = mean(shuffled, size, dtype, settings, threads=threads, lanes=1 + seed, kernels=compiled)
            assert found.tobytes() == wanted.tobytes()
            assert again == outcome


def test_the_mean_is_the_exact_one_rounded_once():
    """Integers keep the float64 sums exact, so the float32 mean has one right answer, by fractions."""
    rng = np.random.default_rng(1)
    rows = rng.integers(-(2**20), 2**20, (5, 999))
    weights = [5.0, 40.0, 11.0, 1.0, 300.0]
    sent = [Contribution(f"c{i}", row.astype(F32), w) for i, (row, w) in enumerate(zip(rows, weights, strict=True))]
    found, _ = mean(sent, 999, F32)
    for j in range(999):
        exact = sum(Fraction(int(w)) * int(x) for w, x in zip(weights, rows[:, j], strict=True)) / int(sum(weights))
        assert found[j] == np.float32(float(exact))
