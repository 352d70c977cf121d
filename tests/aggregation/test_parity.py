"""Both kernels give the same bits for every aggregate, with any threads, block borders and orders of arrival."""

import random
from concurrent.futures import ThreadPoolExecutor

import made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import F32, F64, aggregated, contributions, hard

from adamd_service.aggregation import Contribution, distances, mean, ranks
from adamd_service.aggregation.kernels import compiled, reference
from adamd_service.optim.gradients.norm import BLOCK

EVERY = {
    "mean": {"aggregate": "mean"},
    "clipped and stale": {"aggregate": "mean", "staleness": "polynomial", "clip_norm": 1e9, "norm_filter": 50},
    "median": {"aggregate": "median", "staleness": {"name": "hinge", "a": 1, "b": 1}},
    "trimmed_mean": {"aggregate": {"name": "trimmed_mean", "trim": 0.3}, "clip_norm": 1e9},
    "krum": {"aggregate": {"name": "krum", "byzantine": 2}, "staleness": "polynomial"},
    "multi_krum": {"aggregate": {"name": "multi_krum", "byzantine": 1, "keep": 3}, "max_weight": 1000},
    "geometric_median": {"aggregate": "geometric_median", "clip_norm": 1e11},
    "private": {"privacy": {"noise_multiplier": 0.7, "adaptive": {"initial": 1e9, "count_noise": 1}, "delta": 1e-5}},
}
SIZES = [1, 3, 255, 4097, 65_536, 65_537, 150_001]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("case", EVERY)
def test_kernels_threads_and_orders(case, dtype):
    with ThreadPoolExecutor(3) as threads:
        for size in SIZES:
            sent = contributions(7, size, dtype)
            chosen = made.settings(7, **EVERY[case])
            wanted, outcome = aggregated(sent, chosen, kernels=reference, noise_seed=bytes(range(32)))
            assert np.isfinite(wanted).all()
            for seed in range(4):
                shuffled = random.Random(seed).sample(sent, len(sent))
                how = {"threads": threads, "lanes": 1 + seed, "kernels": compiled if seed else reference}
                found, again = aggregated(shuffled, chosen, noise_seed=bytes(range(32)), **how)
                assert found.tobytes() == wanted.tobytes(), (size, seed)
                assert again == outcome, (size, seed)


@pytest.mark.parametrize("case", EVERY)
def test_borders_of_blocks_do_not_matter(case, monkeypatch):
    """Only the noise belongs to fixed slices; `mean.SLICE` says which. Norms want whole blocks."""
    sent, chosen = contributions(7, 30_001, F32), made.settings(7, **EVERY[case])
    wanted = aggregated(sent, chosen, noise_seed=bytes(32))
    monkeypatch.setattr(ranks, "ROOM", 7 * 4 * 1000)
    monkeypatch.setattr(distances, "ROOM", 7 * 4 * 4096)
    if case != "private":
        monkeypatch.setattr(mean, "SLICE", BLOCK if case == "mean" else 777)
    found = aggregated(sent, chosen, noise_seed=bytes(32))
    assert found[0].tobytes() == wanted[0].tobytes() and found[1] == wanted[1]


def test_the_order_of_clients_is_part_of_the_bits():
    """So the equality above is no accident: other names, other last bits."""
    sent = contributions(7, 30_001, F64)
    renamed = [Contribution(f"z{9 - i}", one.values, one.num_examples) for i, one in enumerate(sent)]
    assert aggregated(sent)[0].tobytes() != aggregated(renamed)[0].tobytes()


@settings(max_examples=40)
@given(st.integers(1, 9000), st.integers(0, 2**32), st.sampled_from([F32, F64]), st.floats(-10, 10))
def test_each_loop(size, seed, dtype, factor):
    values, other = hard(size, dtype, seed), hard(size, F64, seed + 1)
    values[:: 1 + seed % 7] = -0.0
    values.flags.writeable = False
    totals, outs = (other.copy(), other.copy()), (np.empty(size, dtype), np.empty(size, dtype))
    numbers = []
    for kernels, total, out in zip((reference, compiled), totals, outs, strict=True):
        both = total.copy()
        kernels.add_scaled(values, factor, total)
        kernels.write_scaled(values, factor, out)
        squares = kernels.add_squares(values, 0.5)
        assert kernels.add_scaled_and_squares(values, factor, both, 0.5) == squares
        assert both.tobytes() == total.tobytes()
        numbers.append((squares, kernels.add_distance(values, factor, other, 0.5)))
    assert totals[0].tobytes() == totals[1].tobytes()
    assert outs[0].tobytes() == outs[1].tobytes()
    assert not np.signbit(outs[0][outs[0] == 0]).any()
    assert numbers[0] == numbers[1]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([F32, F64]), st.data())
def test_columns_are_sorted_where_it_is_needed(count, seed, dtype, data):
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    rows = np.random.default_rng(seed).integers(-3, 4, (count, 33)).astype(dtype)
    network, sorted_rows = ranks.network(count, first, last), np.sort(rows, axis=0)
    compiled.sort_columns(rows, network)
    assert (rows[first:last] == sorted_rows[first:last]).all()


@pytest.mark.parametrize("count", range(1, 11))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(count):
    """The zero-one principle: a network that sorts these sorts all (Knuth 5.3.4, theorem Z)."""
    rows = np.array([[i >> bit & 1 for i in range(1 << count)] for bit in range(count)], F32)
    pairs = ranks.merge_exchange(count)
    compiled.sort_columns(rows, np.array(pairs, np.int64).reshape(-1, 2))
    assert (np.diff(rows, axis=0) >= 0).all()
    for missing in range(len(pairs)):  # none of the comparisons is there for nothing
        rows = np.array([[i >> bit & 1 for i in range(1 << count)] for bit in range(count)], F32)
        compiled.sort_columns(rows, np.array(pairs[:missing] + pairs[missing + 1 :], np.int64).reshape(-1, 2))
        assert (np.diff(rows, axis=0) < 0).any()


def test_what_a_slice_raises_is_raised_once_nobody_works():
    class Broken:
        def read(self, start, stop, into):
            raise OSError("the file is gone")

    out = np.zeros(200_000, F32)
    sent = [*contributions(3, 200_000, F32), Contribution("broken", Broken())]
    with ThreadPoolExecutor(2) as threads, pytest.raises(OSError, match="gone"):
        made.aggregate_round(sent, made.settings(4), out, threads=threads, lanes=3)
