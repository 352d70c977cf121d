"""A coordinator's options become the settings of rounds, which the server takes as they are."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd import fed
from adamd.errors import InvalidRequest
from adamd.fed.plan import optimizer_document, rounds_document
from adamd.wire.layout import named_layout
from adamd_service.optim import parse_settings
from adamd_service.rounds import parse_rounds

LAYOUT = named_layout({"w": (4,), "n": (), "bn.running_mean": (2,), "head": (3,)})


def test_a_whole_plan():
    document = rounds_document(
        {
            "num_rounds": 100,
            "cohort": 8,
            "min_replies": 6,
            "timeout": 600,
            "aggregate": fed.TrimmedMean(0.2, clip_norm=2.0),
            "config": {"epochs": 3},
            "private": ["head"],
        },
        counters=["n"],
        statistics=["bn.running_mean"],
    )
    assert document == {
        "mode": "sync",
        "quorum": 8,
        "min_contributions": 6,
        "max_contributions": 8,
        "deadline_s": 600,
        "cohort": 8,
        "seed": None,
        "total": 100,
        "evaluate": 0,
        "config": {"epochs": 3},
        "weighting": "equal",
        "max_weight": None,
        "clip_norm": 2.0,
        "norm_filter": None,
        "aggregate": {"name": "trimmed_mean", "trim": 0.2},
        "privacy": None,
        "averaged": ["bn.running_mean"],
        "carry": ["n"],
        "private": ["head"],
    }


AGGREGATES = [
    fed.Mean(1.0, 3.0),
    fed.Median(norm_filter=2.0),
    fed.TrimmedMean(0.25),
    fed.TrimmedMean(0),
    fed.Krum(2),
    fed.MultiKrum(2, keep=4),
    fed.GeometricMedian(iterations=3, smoothing=1e-3),
]
PRIVATE = fed.Privacy(1.0, 0.5, delta=1e-5, max_epsilon=8.0, population=1000, sampling="poisson", seed=3)
ADAPTIVE = fed.Privacy(0.5, fed.AdaptiveClip(initial=0.3), delta=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        *({"cohort": 8, "aggregate": aggregate} for aggregate in AGGREGATES),
        {"quorum": 3, "cohort": 5, "max_replies": 4, "seed": 11, "evaluate": 2, "num_rounds": 4},
        {"quorum": 20, "privacy": PRIVATE},
        {"quorum": 20, "privacy": ADAPTIVE},
        {"quorum": 2, "weighting": "num_examples", "max_weight": 100.0},
        {"buffered": fed.Buffered(10)},
        {"buffered": fed.Buffered(10, fed.Hinge(5, 2), max_staleness=7)},
        {"buffered": fed.Buffered(10, fed.Constant())},
    ],
    ids=str,
)
def test_the_server_takes_it_and_keeps_it_as_it_is(options):
    """Or a second coordinator with the same options would be refused."""
    found = {} if "privacy" in options else {"counters": ["n"], "statistics": ["bn.running_mean"]}
    document = rounds_document(options, **found)
    kept = parse_rounds(document, LAYOUT).to_json()
    kept = {"staleness": {"name": "constant"}, "max_staleness": None, **kept}
    assert document.items() <= kept.items()


STRATEGIES = [fed.FedAdam(), fed.FedYogi(), fed.FedAdagrad(), fed.FedAvg(), fed.FedAvgM()]


@pytest.mark.parametrize(
    "strategy", [*STRATEGIES, fed.FedAdam(0.05, tau=1e-4, form="flower"), fed.Optimizer("lion")], ids=str
)
def test_strategies_are_optimizers_of_the_server(strategy):
    document = optimizer_document({"strategy": strategy})
    parse_settings(document)
    assert document["name"] in ("fedadam", "fedyogi", "fedadagrad", "sgd", "lion")


def test_strategies_have_the_servers_defaults():
    """The papers' names, and Flower's numbers, which the server has too."""
    for strategy in STRATEGIES[:3]:
        document = strategy.document()
        plain = parse_settings({"name": document["name"]})
        assert parse_settings(document) == plain


def test_the_default_strategy_is_the_clients_mean():
    assert optimizer_document({}) == {"name": "sgd", "lr": 1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give cohort=8, or quorum=8"),
        ({"cohort": 8, "aggregate": fed.TrimmedMean(0.1)}, "TrimmedMean(0.1) of 8 replies cuts floor(0.1 x 8) = 0"),
        ({"cohort": 8, "aggregate": fed.TrimmedMean(0.1)}, "A trim of 0.125 cuts one of 8; 0.1 cuts one of 10 replies"),
        ({"cohort": 8, "aggregate": fed.Krum(3)}, "Krum(byzantine=3) takes 2 x 3 + 3 = 9 replies; 8 come"),
        ({"cohort": 8, "aggregate": fed.MultiKrum(1, keep=9)}, "averages 9 replies, and 8 come"),
        ({"cohort": 8, "min_replies": 9, "timeout": 1}, "min_replies is 9; wanted at most the 8"),
        ({"cohort": 8, "min_replies": 6}, "which counts at the timeout, and there is none"),
        ({"cohort": 8, "quorum": 9}, "quorum is 9, and a round asks only 8 clients"),
        ({"cohort": 0}, "cohort is 0; wanted a number of replies"),
        ({"cohort": 8.0}, "cohort is 8.0; wanted a number of replies"),
        ({"cohort": 8, "buffered": fed.Buffered(3)}, "cohort is 8 beside buffered"),
        ({"cohort": 8, "private": "head"}, "private is 'head'; wanted a list"),
        ({"cohort": 8, "rounds": 3}, "no option 'rounds'; known are strategy, num_rounds"),
        ({"cohort": 8, "aggregate": "median"}, "aggregate is 'median'; wanted one of adamd.fed"),
        ({"cohort": 8, "aggregate": fed.Median}, "wanted one of adamd.fed"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(options, words):
    with pytest.raises(InvalidRequest, match=re.escape(words)):
        rounds_document(options)


def test_a_strategy_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="strategy is 'fedadam'"):
        optimizer_document({"strategy": "fedadam"})


def test_a_round_at_its_timeout_may_be_too_small_for_its_aggregate():
    with pytest.warns(RuntimeWarning, match=r"min_replies=6 .* TrimmedMean\(0.125\) of 6 replies cuts"):
        rounds_document({"cohort": 8, "min_replies": 6, "timeout": 9, "aggregate": fed.TrimmedMean(0.125)})


@given(st.floats(0.001, 0.499), st.integers(1, 2000))
def test_a_trim_is_refused_where_the_server_cuts_none(trim, replies):
    refused = fed.TrimmedMean(trim).refusal(replies)
    assert (refused is not None) == (int(trim * replies) == 0)
    if refused is not None:
        least = int(re.search(r"of (\d+) replies or more", refused)[1])
        assert int(trim * least) == 1 and int(trim * (least - 1)) == 0


def test_what_is_none_counts_as_left_out():
    assert rounds_document({"cohort": 2, "timeout": None, "private": None}) == rounds_document({"cohort": 2})


def test_numpys_numbers_are_told_apart_from_counts():
    with pytest.raises(InvalidRequest, match="wanted a number of replies"):
        rounds_document({"cohort": np.float64(8)})
