"""The robust aggregates: hand-checked vectors, properties, and one attacker among them."""

import math

import made
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import F32, F64, aggregated, contributions, rows

from adamd_service.aggregation import Contribution, distances, ranks, robust
from adamd_service.aggregation.kernels import compiled, reference
from adamd_service.aggregation.lanes import Lanes
from adamd_service.aggregation.sections import Scaled
from adamd_service.aggregation.values import ArrayValues

KRUM = {"name": "krum", "byzantine": 1}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10, 33])
def test_the_median_is_numpys(dtype, count):
    sent = contributions(count, 20_001, dtype)
    found, _ = aggregated(sent, made.settings(count, aggregate="median"))
    assert (found == np.median([one.values for one in sent], axis=0)).all()


def test_the_trimmed_mean_by_hand():
    sent = rows([1.0, -9], [2, 0], [3, 0], [10, 1], [1000, 99])
    chosen = made.settings(5, aggregate={"name": "trimmed_mean", "trim": 0.2})
    assert aggregated(sent, chosen)[0].tolist() == [5.0, 1 / 3]
    assert aggregated(sent, made.settings(5, aggregate={"name": "trimmed_mean", "trim": 0.4}))[0].tolist() == [3.0, 0.0]
    assert aggregated(sent, made.settings(5, aggregate={"name": "trimmed_mean", "trim": 0}))[0].tolist() == [
        203.2,
        18.2,
    ]


@pytest.mark.parametrize(
    ("count", "trim", "wanted"),
    [(5, 0.2, (1, 4)), (4, 0.5, (1, 3)), (5, 0.5, (2, 3)), (1, 0.5, (0, 1)), (9, 0.1, (0, 9))],
)
def test_what_a_cut_leaves(count, trim, wanted):
    assert ranks.kept(count, trim) == wanted


def test_krum_by_hand():
    """Squared distances on a line: 0, 1, 2 and 4 with f = 1: each has 4 - 1 - 2 = 1 neighbour that counts.

    Scores 1, 1, 1, 4: the first name's is chosen. With an attacker far away, five contributions and two neighbours:
    0: 1 + 4, 1: 1 + 1, 2: 1 + 4, 4: 4 + 9, 100: 96^2 + 98^2.
    """
    points = np.array([0.0, 1, 2, 4])
    squared = (points[:, None] - points) ** 2
    assert robust.krum_scores(squared, 1) == [1, 1, 1, 4]
    found, outcome = aggregated(rows([0.0], [1], [2], [4], [100]), made.settings(5, aggregate=KRUM))
    assert found == [1.0]
    assert [member.client for member in outcome.members if member.counted] == ["b"]
    assert {member.reason for member in outcome.members} == {None, "not_chosen"}
    assert [member.weight for member in outcome.members] == [0, 1, 0, 0, 0]


def test_multi_krum_is_the_weighted_mean_of_the_best():
    sent = [
        Contribution(name, np.array([value]), weight)
        for name, value, weight in [("a", 0.0, 1), ("b", 1.0, 3), ("c", 2.0, 1), ("d", 4.0, 9), ("e", 100.0, 99)]
    ]
    chosen = {"name": "multi_krum", "byzantine": 1, "keep": 3}
    found, outcome = aggregated(sent, made.settings(5, aggregate=chosen))
    assert found == [(0 * 1 + 1 * 3 + 2 * 1) / 5]
    assert [member.counted for member in outcome.members] == [True, True, True, False, False]


def test_krum_of_fewer_than_it_wants_takes_what_there_is():
    """A round that is closed by hand, or whose members the norm filter refused, has an aggregate nevertheless."""
    assert aggregated(rows([3.0]), made.settings(5, aggregate=KRUM))[0] == [3.0]
    assert aggregated(rows([3.0], [4]), made.settings(5, aggregate=KRUM))[0] == [3.0]
    assert aggregated(rows([3.0], [4]), made.settings(9, aggregate={"name": "multi_krum", "byzantine": 1, "keep": 5}))[
        0
    ] == [3.5]


def parts_of(values, weights=None):
    weights = weights or [1.0] * len(values)
    return [Scaled(ArrayValues(np.array(row, F64)), weight) for row, weight in zip(values, weights, strict=True)]


@pytest.mark.parametrize("size", [1, 5000, 70_000])
def test_distances(size):
    values = np.random.default_rng(0).standard_normal((4, size))
    like = np.empty(size)
    found = distances.between(parts_of(values), like, reference, Lanes())
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(float(((values[i] - values[j]) ** 2).sum()), rel=1e-12)
    factors = [0.1, 0.2, 0.3, 0.4]
    to_mean = distances.to_mean(parts_of(values), factors, like, reference, Lanes())
    middle = np.array(factors) @ values
    assert to_mean == pytest.approx([float(((row - middle) ** 2).sum()) for row in values], rel=1e-12)


def test_weiszfeld_by_hand():
    """One step from the mean of 0, 0 and 3, which is 1: distances 1, 1, 2, so shares in the ratio 1 : 1 : 1/2."""
    chosen = {"name": "geometric_median", "iterations": 1}
    found, _ = aggregated(rows([0.0], [0.0], [3.0]), made.settings(3, aggregate=chosen))
    assert found == pytest.approx([3 * 0.5 / 2.5], rel=1e-15)


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    """From there the corners are seen at 120 degrees, and the sum of the distances is known."""
    corners = [[0.0, 0], [4, 0], [1, 3]]
    chosen = {"name": "geometric_median", "iterations": 100}
    found, _ = aggregated(rows(*corners), made.settings(3, aggregate=chosen))
    arms = np.array(corners) - found
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    assert (arms @ arms.T)[np.triu_indices(3, 1)] == pytest.approx([-0.5] * 3, abs=1e-6)


def test_the_geometric_median_has_weights():
    """More than half of the weight in one place has the median there."""
    sent = [Contribution("a", np.array([7.0, 1]), 5), *rows([0.0, 0], [9, 9], [3, 2])[1:]]
    sent.append(Contribution("z", np.array([-5.0, 3]), 1))
    found, _ = aggregated(sent, made.settings(4, aggregate={"name": "geometric_median", "iterations": 100}))
    assert found == pytest.approx([7.0, 1.0], abs=1e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_of_one_vector_the_geometric_median_lies_among_the_points(points):
    found, _ = aggregated(
        rows(*[[point] for point in points]),
        made.settings(len(points), aggregate="geometric_median"),
        kernels=reference,
    )
    slack = 1e-9 * max(1.0, *map(abs, points))
    assert min(points) - slack <= found[0] <= max(points) + slack


HONEST, SIZE = 9, 3000


def attacked(times=-50.0):
    """Nine honest clients around one direction, and one that sends -50 times what it should."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(SIZE)
    noisy = [truth + 0.3 * rng.standard_normal(SIZE) for _ in range(HONEST + 1)]
    noisy[4] = times * noisy[4]
    return truth, [Contribution(f"c{i}", values) for i, values in enumerate(noisy)]


def error(found, truth):
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


DEFENCES = {
    "norm filter": ({"norm_filter": 3}, 0.2),
    "clip": ({"clip_norm": 60.0}, 0.35),
    "median": ({"aggregate": "median"}, 0.25),
    "trimmed mean": ({"aggregate": {"name": "trimmed_mean", "trim": 0.1}}, 0.25),
    "krum": ({"aggregate": KRUM}, 0.4),
    "multi-krum": ({"aggregate": {"name": "multi_krum", "byzantine": 1, "keep": 5}}, 0.2),
    "geometric median": ({"aggregate": "geometric_median"}, 0.35),
}


def test_the_attack_works_against_the_plain_mean():
    truth, sent = attacked()
    assert error(aggregated(sent)[0], truth) > 4


@pytest.mark.parametrize("defence", DEFENCES)
def test_one_attacker_is_held(defence):
    truth, sent = attacked()
    raw, allowed = DEFENCES[defence]
    found, outcome = aggregated(sent, made.settings(10, **raw))
    assert error(found, truth) < allowed
    attacker = outcome.members[4]
    assert attacker.norm == pytest.approx(50 * 57, rel=0.1)
    if defence == "norm filter":
        assert [member.reason for member in outcome.members].count("norm_filter") == 1
        assert not attacker.counted and attacker.reason == "norm_filter"
    if defence == "clip":
        assert attacker.clipped and sum(member.clipped for member in outcome.members) < HONEST


def test_a_clipped_one_has_the_clips_norm():
    found, outcome = aggregated(rows([3.0, 4.0]), made.settings(1, clip_norm=1))
    assert found.tolist() == pytest.approx([0.6, 0.8], rel=1e-15)
    assert outcome.members[0].clipped and outcome.members[0].norm == 5.0 and outcome.clip_norm == 1.0
    found, outcome = aggregated(rows([3.0, 4.0]), made.settings(1, clip_norm=5))
    assert found.tolist() == [3.0, 4.0] and not outcome.members[0].clipped


def test_the_filter_is_relative_to_the_median_of_those_that_are_not_too_stale():
    sent = [
        Contribution(name, np.array([norm]), 1, stale)
        for name, norm, stale in [("a", 1.0, 0), ("b", 1.0, 0), ("c", 2.5, 0), ("d", 100.0, 9), ("e", 100.0, 9)]
    ]
    _, outcome = aggregated(sent, made.settings(5, norm_filter=2, max_staleness=5))
    assert [member.reason for member in outcome.members] == [None, None, "norm_filter", "too_stale", "too_stale"]
    assert math.isclose(outcome.members[2].norm, 2.5)


@pytest.mark.parametrize("raw", [KRUM, {"name": "multi_krum", "byzantine": 1, "keep": 2}, "geometric_median", "median"])
def test_vectors_whose_distances_are_beyond_float64_have_a_finite_aggregate(raw):
    """Each square is finite, as it has to be; their sums are not. A round that cannot be closed would be worse."""
    huge = [np.full(5000, sign * 1.2e154) for sign in (1, -1, 1, -1, 1)]
    found, outcome = aggregated(rows(*huge), made.settings(5, aggregate=raw))
    assert np.isfinite(found).all() and math.isinf(outcome.members[0].norm)
    clipped, _ = aggregated(rows(*huge), made.settings(5, aggregate=raw, clip_norm=1.0))
    assert np.isfinite(clipped).all()


@pytest.mark.parametrize("kernels", [compiled, reference])
def test_slices_without_room_together_give_the_same_bits(monkeypatch, kernels):
    """Ten thousand contributions have no room for a slice of each."""
    sent, chosen = made.contributions(5, 20_000), made.settings(5, aggregate="geometric_median")
    wanted, _ = aggregated(sent, chosen, kernels=kernels)
    monkeypatch.setattr(distances, "ROOM", 4 * distances.BLOCK * 5 - 1)
    found, _ = aggregated(sent, chosen, kernels=kernels)
    assert found.tobytes() == wanted.tobytes()
    assert robust.distance_bytes(made.settings(5, aggregate=KRUM), 1000) == 144_000_000
    assert robust.distance_bytes(chosen, 1000) == 0
