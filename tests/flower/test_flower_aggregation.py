"""Flower's own aggregates of the same arrays beside ours: equal bits where it only orders or chooses, else roundings.

The kernels are the reference's: Numba is not in this environment, and its loops give the same bits (tests/aggregation).
"""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate_median
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, MultiKrum
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from test_flower_strategies import EXAMPLES, ROUNDS, SIZE, apart, flowers, start, trained
from test_flower_strategies import identity as identity  # a fixture: Flower's messages are made in its name

from adamd_service.aggregation import Contribution, aggregate_round, parse_aggregation
from adamd_service.aggregation.kernels import reference

pytestmark = pytest.mark.flower
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
COUNTS = pytest.mark.parametrize("count", [3, 4, 10, 11])


def arrays(count, dtype, seed=0):
    rng = np.random.default_rng([seed, count])
    truth = rng.standard_normal(2000)
    return [(truth + rng.standard_normal(2000) * (1 + 5 * (i == 1))).astype(dtype) for i in range(count)]


def ours(given, raw, weights=None):
    weights = weights or [1.0] * len(given)
    sent = [
        Contribution(f"{i:03}", values, weight) for i, (values, weight) in enumerate(zip(given, weights, strict=True))
    ]
    out = np.empty_like(given[0])
    settings = parse_aggregation({"aggregate": raw}, quorum=len(given), buffered=False)
    outcome = aggregate_round(sent, settings, out, kernels=reference)
    return out, [int(member.client) for member in outcome.members if member.counted]


def records(given, weights=None):
    weights = weights or [1.0] * len(given)
    return [
        RecordDict({"arrays": ArrayRecord([values]), "metrics": MetricRecord({"num-examples": weight})})
        for values, weight in zip(given, weights, strict=True)
    ]


@DTYPES
@COUNTS
def test_the_median_has_flowers_bits(dtype, count):
    given = arrays(count, dtype)
    [wanted] = aggregate_median([([values], 1) for values in given])
    assert wanted.dtype == dtype
    assert ours(given, "median")[0].tobytes() == wanted.tobytes()


@DTYPES
@COUNTS
@pytest.mark.parametrize("trim", [0, 0.34, 0.45])
def test_the_trimmed_mean_is_flowers(dtype, count, trim):
    """Where one or two are left, in bits; of more, Flower adds in an order of its own, in the arrays' dtype."""
    given = arrays(count, dtype)
    cut = int(trim * count)
    found, wanted = ours(given, {"name": "trimmed_mean", "trim": trim})[0], trim_mean(np.stack(given), trim)
    if count - 2 * cut <= 2:
        assert found.tobytes() == wanted.tobytes()
    roundings = (count - 2 * cut) * np.abs(np.stack(given)).max(axis=0) * np.finfo(dtype).eps
    assert (np.abs(found - wanted) <= roundings).all()


@pytest.mark.parametrize("trim", [0.1, 0.26, 0.4])
def test_the_trimmed_mean_of_integers_has_flowers_bits(trim):
    """Their sums are exact in any order, so that only what is cut could differ."""
    given = [np.random.default_rng(i).integers(-999, 999, 2000).astype("float32") for i in range(16)]
    found, wanted = ours(given, {"name": "trimmed_mean", "trim": trim})[0], trim_mean(np.stack(given), trim)
    left = 16 - 2 * int(trim * 16)
    assert found.tobytes() == wanted.tobytes() or left & (left - 1)  # a division by other than a power of 2 rounds
    np.testing.assert_allclose(found, wanted, rtol=2e-7)


@DTYPES
@pytest.mark.parametrize(("count", "byzantine"), [(4, 0), (5, 1), (10, 0), (10, 3), (11, 4)])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_krum_chooses_as_flower_does(dtype, count, keep, byzantine):
    given, weights = arrays(count, dtype), [float(1 + i) for i in range(count)]
    raw = {"name": "multi_krum", "byzantine": byzantine, "keep": keep}
    found, chosen = ours(given, raw if keep > 1 else {"name": "krum", "byzantine": byzantine}, weights)
    wanted = select_multikrum(records(given, weights), byzantine, keep)
    places = [int(content["metrics"]["num-examples"]) - 1 for content in wanted]
    assert chosen == sorted(places) and 1 not in chosen  # the second is far from the others
    if keep == 1:
        assert found.tobytes() == given[places[0]].tobytes()
    else:
        [mean] = aggregate_arrayrecords(wanted, "num-examples").to_numpy_ndarrays()
        np.testing.assert_allclose(found, mean, rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(given).max())


@DTYPES
def test_the_mean_is_flowers_to_its_roundings(dtype):
    given, weights = arrays(10, dtype), [float(w) for w in (5, 40, 11, 1, 300, 2, 2, 2, 7, 90)]
    [wanted] = aggregate_arrayrecords(records(given, weights), "num-examples").to_numpy_ndarrays()
    found, _ = ours(given, "mean", weights)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=10 * np.finfo(dtype).eps * np.abs(given).max())


# Krum is not among them: of three, the two nearest always have one score, and roundings choose.
STRATEGIES = {
    "FedAvg": (FedAvg, {}, "mean"),
    "FedMedian": (FedMedian, {}, "median"),
    "FedTrimmedAvg": (FedTrimmedAvg, {"beta": 0.34}, {"name": "trimmed_mean", "trim": 0.34}),
    "MultiKrum": (MultiKrum, {"num_nodes_to_select": 2}, {"name": "multi_krum", "byzantine": 0, "keep": 2}),
}


@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_whole_rounds_of_flowers_strategies(name, dtype, allowed):
    """The clients' pseudo-gradients, aggregated and stepped by sgd with lr 1, lead where the strategy leads."""
    strategy, options, raw = STRATEGIES[name]
    parameters = start(dtype)
    seen = [parameters]
    for number in range(1, ROUNDS + 1):
        sent = [parameters - trained(node, number, parameters) for node in EXAMPLES]
        parameters = parameters - ours(sent, raw, [float(count) for count in EXAMPLES.values()])[0]
        seen.append(parameters)
    theirs = flowers(strategy, options, dtype)
    assert len(parameters) == SIZE and apart(theirs, [theirs[0]] * len(theirs)) > 0.1
    assert apart(seen, theirs) <= allowed
