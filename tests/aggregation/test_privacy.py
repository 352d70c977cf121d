"""The noise's distribution, what it depends on, the adaptive clip by hand, and what one client can change."""

import math

import made
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from made import F32, F64, aggregated, contributions, rows
from scipy import stats

from adamd.wire.dtypes import SLICE
from adamd_service.aggregation import Contribution, noise_seed
from adamd_service.aggregation.kernels import reference
from adamd_service.aggregation.privacy import next_clip_norm, vector_multiplier
from adamd_service.aggregation.settings import LARGEST, AdaptiveClip, Privacy

SEED = noise_seed(7, "an incarnation", 1)
FIXED = {"noise_multiplier": 0.5, "clip_norm": 3.0, "delta": 1e-5}


def noise(size, seed=SEED, dtype=F64, quorum=4):
    """A round in which everybody sends zeros, in units of the noise's standard deviation in the sum."""
    sent = [Contribution(name, np.zeros(size, dtype)) for name in "abcd"]
    found, outcome = aggregated(sent, made.settings(quorum, privacy=FIXED), noise_seed=seed)
    assert outcome.noise_stddev == 0.5 * 3.0 / quorum and outcome.clip_norm == 3.0
    return found * quorum / 1.5


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_noise_is_standard_normal(dtype):
    found = noise(1_000_000, dtype=dtype)
    assert stats.kstest(found.astype(F64), "norm").pvalue > 0.01
    assert abs(found.mean()) < 4 / 1000 and abs(found.std() - 1) < 4 / math.sqrt(2e6)
    for start in range(0, 1_000_000, SLICE):  # no slice has another distribution
        assert stats.kstest(found[start : start + SLICE].astype(F64), "norm").pvalue > 1e-4


def test_the_noise_of_other_slices_rounds_and_sessions_has_nothing_in_common():
    every = [noise(3 * SLICE)]
    every += [
        noise(3 * SLICE, noise_seed(*other))
        for other in [(7, "an incarnation", 2), (7, "another", 1), (8, "an incarnation", 1)]
    ]
    parts = np.concatenate(every).reshape(-1, SLICE)
    correlation = np.corrcoef(parts)[np.triu_indices(len(parts), 1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(SLICE)
    assert stats.kstest(correlation * math.sqrt(SLICE), "norm").pvalue > 0.01


def test_the_same_round_has_the_same_noise():
    assert noise(5000).tobytes() == noise(5000).tobytes()
    assert (noise(70_000)[:5000] == noise(5000)).all()


def test_seeds():
    seeds = {noise_seed(seed, name, number) for seed in (0, 1, 11) for name in ("a", "b") for number in (1, 11)}
    assert len(seeds) == 12 and {len(seed) for seed in seeds} == {32}
    sent, chosen = rows([1.0]), made.settings(1, privacy=FIXED)
    with pytest.raises(ValueError, match="without a noise_seed"):
        aggregated(sent, chosen)
    with pytest.raises(ValueError, match="15 bytes"):
        aggregated(sent, chosen, noise_seed=bytes(15))


QUIET = {"noise_multiplier": 1e-6, "clip_norm": 5.0, "delta": 1e-5}


def test_the_sum_is_divided_by_the_quorum_not_by_how_many_came():
    for count in (1, 4, 6):
        found, _ = aggregated(
            [Contribution(f"c{i}", np.array([3.0, 4.0]), 99) for i in range(count)],
            made.settings(4, privacy=QUIET),
            noise_seed=SEED,
        )
        assert found == pytest.approx(np.array([3.0, 4.0]) * count / 4, abs=1e-4)


def test_nobody_is_there_and_the_noise_is():
    stale = [Contribution("a", np.array([8.0]), 1, 3)]
    found, _ = aggregated(stale, made.settings(2, max_staleness=2, privacy=FIXED), noise_seed=SEED)
    assert found != 0


@examples(max_examples=50)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(-3, 6))
def test_one_client_changes_the_sum_by_the_clip_norm_at_most(seed, clip_norm, magnitude):
    """With the same noise, the aggregates with and without one client differ by clip_norm / quorum at most."""
    rng = np.random.default_rng(seed)
    sent = [
        Contribution(name, 10.0**magnitude * rng.standard_normal(50), 1 + i, i % 2) for i, name in enumerate("abcd")
    ]
    chosen = made.settings(3, staleness="polynomial", privacy={**FIXED, "clip_norm": clip_norm})
    whole, _ = aggregated(sent, chosen, noise_seed=SEED, kernels=reference)
    for place in range(4):
        without, _ = aggregated(sent[:place] + sent[place + 1 :], chosen, noise_seed=SEED, kernels=reference)
        assert np.linalg.norm(whole - without) <= clip_norm / 3 * (1 + 1e-9)


def test_a_client_counts_once_by_its_newest():
    sent = [
        Contribution("a", np.array([1.0]), 1, 2),
        Contribution("a", np.array([2.0]), 1, 0),
        Contribution("b", np.array([4.0]), 1, 1),
    ]
    found, outcome = aggregated(sent, made.settings(2, privacy=QUIET), noise_seed=SEED)
    assert found == pytest.approx([3.0], abs=1e-4)
    assert [member.reason for member in outcome.members] == ["superseded", None, None]
    found, outcome = aggregated(sent, made.settings(3))
    assert found == [7 / 3] and all(member.counted for member in outcome.members)


def adaptive(**given):
    return AdaptiveClip(**{"count_noise": 1e-9, **given})


def test_the_next_clip_norm_by_hand():
    """Three of four lie within 2.0: b = 0.75, and C' = 2 exp(-0.2 (0.75 - 0.5))."""
    found = next_clip_norm(adaptive(), 2.0, [0.5, 1.0, 2.0, 2.1], 4, SEED)
    assert found == pytest.approx(2 * math.exp(-0.05), rel=1e-8)
    assert next_clip_norm(adaptive(), 2.0, [9.0] * 4, 4, SEED) == pytest.approx(2 * math.exp(0.1), rel=1e-8)
    # Of a quorum of four two came, both within: (2 / 2) / 4 + 1 / 2.
    assert next_clip_norm(adaptive(), 2.0, [1.0] * 2, 4, SEED) == pytest.approx(2 * math.exp(-0.05), rel=1e-8)


def test_the_count_has_its_noise():
    shares = [
        -5 * math.log(next_clip_norm(adaptive(count_noise=3.0), 1.0, [], 10, noise_seed(1, "", number))) * 10 / 3
        for number in range(4000)
    ]
    assert stats.kstest(shares, "norm").pvalue > 0.01


def test_the_counts_noise_is_none_of_the_vectors():
    """Or the published aggregate would tell it."""
    seed = noise_seed(3, "", 5)
    drawn = -5 * math.log(next_clip_norm(adaptive(count_noise=3.0), 1.0, [], 10, seed)) * 10 / 3
    assert np.abs(noise(3 * SLICE, seed) - drawn).min() > 1e-9


def test_a_clip_norm_stays_within_its_limits():
    wild = adaptive(learning_rate=1e9, count_noise=1e9)
    found = {next_clip_norm(wild, 1.0, [1.0], 1, noise_seed(0, "", number)) for number in range(20)}
    assert found == {1e-15, LARGEST}


def test_it_finds_the_quantile():
    """From far away, in 200 rounds, to the 0.8 quantile of the norms."""
    rng, clip_norm = np.random.default_rng(0), 0.01
    clip = AdaptiveClip(target_quantile=0.8)
    for number in range(200):
        norms = rng.lognormal(1.0, 0.5, 100).tolist()
        clip_norm = next_clip_norm(clip, clip_norm, norms, 100, noise_seed(0, "", number))
    assert clip_norm == pytest.approx(math.exp(1.0 + 0.5 * stats.norm.ppf(0.8)), rel=0.15)


def test_a_round_with_an_adaptive_clip_tells_the_next_norm():
    chosen = made.settings(
        4, privacy={"noise_multiplier": 0.5, "delta": 1e-5, "adaptive": {"initial": 2.0, "count_noise": 0.5}}
    )
    sent = contributions(4, 50, make=lambda size, dtype, i: np.full(size, float(i), dtype))
    _, first = aggregated(sent, chosen, noise_seed=SEED)
    assert first.clip_norm == 2.0 and [member.clipped for member in first.members] == [False, True, True, True]
    following = noise_seed(7, "an incarnation", 2)
    _, second = aggregated(sent, chosen, noise_seed=following, clip_norm=first.clip_norm_next)
    assert second.clip_norm == first.clip_norm_next != second.clip_norm_next
    assert first.noise_stddev == vector_multiplier(chosen.privacy, 4) * 2.0 / 4


@pytest.mark.parametrize(("z", "counted"), [(1.0, 1.0), (0.3, 5.0), (2.0, 1.01)])
def test_the_two_noises_of_a_round_make_its_multiplier(z, counted):
    """Gaussian mechanisms add the squares of sensitivity / stddev: 1 / z_v for the sum, 1 / 2 / count_noise for the count."""
    privacy = Privacy(noise_multiplier=z, adaptive=AdaptiveClip(count_noise=counted), delta=1e-5)
    together = vector_multiplier(privacy, 99) ** -2 + (0.5 / counted) ** 2
    assert together**-0.5 == pytest.approx(z, rel=1e-12)
    assert vector_multiplier(Privacy(noise_multiplier=z, clip_norm=1, delta=1e-5), 99) == z
