"""The settings of aggregation: what is refused, in which words, and that documents come back as they went."""

import json

import pytest

from adamd_service.aggregation import AggregationSettings, aggregation_to_json, parse_aggregation, staleness_factor
from adamd_service.aggregation.settings import (
    AdaptiveClip,
    ConstantStaleness,
    GeometricMedian,
    HingeStaleness,
    Krum,
    Mean,
    MultiKrum,
    PolynomialStaleness,
    Privacy,
    TrimmedMean,
)
from adamd_service.optim import SettingsError

PRIVATE = {"noise_multiplier": 1.0, "clip_norm": 2.0, "delta": 1e-5}


def parse(raw, quorum=10, buffered=True):
    return parse_aggregation(raw, quorum=quorum, buffered=buffered)


def test_the_defaults():
    assert parse({}) == AggregationSettings(quorum=10)
    assert parse({}).weighting == "num_examples" and parse({}).aggregate == Mean()
    nothing = dict.fromkeys(("max_weight", "clip_norm", "norm_filter", "privacy", "max_staleness"))
    assert parse(nothing) == parse({}) == parse(nothing, buffered=False)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ({"aggregate": "trimmed_mean"}, TrimmedMean(trim=0.2)),
        ({"aggregate": {"name": "trimmed_mean", "trim": 0.1}}, TrimmedMean(trim=0.1)),
        ({"aggregate": {"name": "krum", "byzantine": 3}}, Krum(byzantine=3)),
        ({"aggregate": {"name": "multi_krum", "byzantine": 3.0, "keep": 4}}, MultiKrum(byzantine=3, keep=4)),
        ({"aggregate": "geometric_median"}, GeometricMedian(iterations=8, smoothing=1e-6)),
        ({"staleness": "constant"}, ConstantStaleness()),
        ({"staleness": "polynomial"}, PolynomialStaleness(exponent=0.5)),
        ({"staleness": {"name": "hinge", "a": 2}}, HingeStaleness(a=2.0, b=4.0)),
        ({"privacy": PRIVATE}, Privacy(noise_multiplier=1.0, clip_norm=2.0, delta=1e-5)),
        (
            {"privacy": {"noise_multiplier": 0.5, "adaptive": {}, "delta": 1e-5}},
            Privacy(noise_multiplier=0.5, adaptive=AdaptiveClip(), delta=1e-5),
        ),
    ],
)
def test_documents_come_back(raw, wanted):
    made = parse(raw)
    assert getattr(made, next(iter(raw))) == wanted
    document = json.loads(json.dumps(aggregation_to_json(made)))
    assert parse(document) == made


@pytest.mark.parametrize("raw", [{"aggregate": "median"}, {"aggregate": "trimmed_mean"}, {"privacy": PRIVATE}])
def test_what_has_no_weights_is_equal(raw):
    assert parse(raw).weighting == "equal"
    assert parse({**raw, "weighting": "equal"}) == parse(raw)


def test_a_session_in_sync_mode_has_no_staleness():
    assert not {"staleness", "max_staleness"} & aggregation_to_json(parse({}, buffered=False)).keys()


KRUM = {"name": "krum", "byzantine": 4}
REFUSED = [
    ({"weighting": "loss"}, "weighting", 'is \'loss\'; wanted "num_examples" or "equal"'),
    ({"weighting": None}, "weighting", "is null"),
    ({"max_weight": 0}, "max_weight", "is 0; wanted a finite number above 0, or null for none"),
    ({"max_weight": "5"}, "max_weight", "is '5'"),
    ({"max_weight": True}, "max_weight", "is true"),
    ({"max_weight": 5, "weighting": "equal"}, "max_weight", 'is for weighting "num_examples"'),
    ({"clip_norm": -1}, "clip_norm", "is -1; wanted a finite number above 0, at most 1e+15"),
    ({"clip_norm": float("nan")}, "clip_norm", "is nan"),
    ({"clip_norm": 10**400}, "clip_norm", "is a number of more than 60 digits"),
    ({"norm_filter": 1}, "norm_filter", "is 1; wanted a finite number above 1"),
    ({"max_staleness": 1.5}, "max_staleness", "is 1.5; wanted a whole number, 0 or more"),
    ({"aggregate": "mode"}, "aggregate", "is 'mode'; wanted one of mean, median, trimmed_mean"),
    ({"aggregate": None}, "aggregate", "is null; wanted a name, or an object such as"),
    ({"aggregate": ["mean"]}, "aggregate", "is a list of 1; wanted a name, or an object such as"),
    ({"aggregate": {"trim": 0.1}}, "aggregate", "is an object without a name"),
    ({"aggregate": {"name": "means"}}, "aggregate.name", "is 'means'; did you mean mean?"),
    ({"aggregate": {"name": "mean", "trim": 0.1}}, "aggregate.trim", "is unknown; known are name"),
    ({"aggregate": {"name": "trimmed_mean", "beta": 0.1}}, "aggregate.beta", "is unknown; did you mean trim?"),
    ({"aggregate": {"name": "trimmed_mean", "trim": 0.5}}, "aggregate.trim", "is 0.5; wanted a finite number, 0 or"),
    (
        {"aggregate": {"name": "trimmed_mean", "trim": 0.05}},
        "aggregate.trim",
        "cuts none of 10, the quorum; wanted 0.1",
    ),
    ({"aggregate": "krum"}, "aggregate.byzantine", "is missing; wanted a whole number, 0 or more"),
    ({"aggregate": KRUM}, "aggregate.byzantine", "is 4, which takes a quorum of 11; it is 10"),
    (
        {"aggregate": {**KRUM, "name": "multi_krum", "keep": 2}},
        "aggregate.byzantine",
        "is 4, which takes a quorum of 11",
    ),
    ({"aggregate": {"name": "multi_krum", "byzantine": 1, "keep": 11}}, "aggregate.keep", "is 11; wanted at most 10"),
    ({"aggregate": {"name": "multi_krum", "byzantine": 1, "keep": 0}}, "aggregate.keep", "is 0; wanted a whole number"),
    (
        {"aggregate": {"name": "geometric_median", "iterations": 0}},
        "aggregate.iterations",
        "is 0; wanted a whole number",
    ),
    (
        {"aggregate": {"name": "geometric_median", "smoothing": 0}},
        "aggregate.smoothing",
        "is 0; wanted a finite number",
    ),
    ({"aggregate": "median", "weighting": "num_examples"}, "weighting", "is num_examples beside aggregate median"),
    ({"aggregate": "median", "max_weight": 5}, "max_weight", 'is for weighting "num_examples"'),
    ({"staleness": "polynomal"}, "staleness", "is 'polynomal'; did you mean polynomial?"),
    ({"staleness": {"name": "hinge", "a": 0}}, "staleness.a", "is 0; wanted a finite number above 0"),
    (
        {"staleness": {"name": "polynomial", "exponent": -1}},
        "staleness.exponent",
        "is -1; wanted a finite number, 0 or",
    ),
    ({"privacy": True}, "privacy", 'is true; wanted an object such as {"noise_multiplier"'),
    (
        {"privacy": {}},
        "privacy.noise_multiplier",
        "is missing; wanted a finite number above 0, at least 1e-6 and at most 1e6",
    ),
    (
        {"privacy": {**PRIVATE, "noise_multiplier": 0}},
        "privacy.noise_multiplier",
        "is 0; wanted a finite number above 0",
    ),
    ({"privacy": {**PRIVATE, "delta": 1}}, "privacy.delta", "is 1; wanted a number above 0 and below 1"),
    ({"privacy": {**PRIVATE, "epsilon": 1}}, "privacy.epsilon", "is unknown; did you mean max_epsilon?"),
    (
        {"privacy": {**PRIVATE, "clip_norm": None}},
        "privacy.clip_norm",
        "is missing; wanted one of privacy.clip_norm and",
    ),
    ({"privacy": {**PRIVATE, "adaptive": {}}}, "privacy.clip_norm", "stands beside privacy.adaptive"),
    ({"privacy": {**PRIVATE, "adaptive": {"initial": 0}}}, "privacy.adaptive.initial", "is 0; wanted a finite number"),
    (
        {"privacy": {**PRIVATE, "adaptive": {"inital": 1}}},
        "privacy.adaptive.inital",
        "is unknown; did you mean initial?",
    ),
    ({"privacy": {**PRIVATE, "sampling": "poisson"}}, "privacy.population", "is missing; sampling poisson takes the"),
    ({"privacy": {**PRIVATE, "population": 99}}, "privacy.population", "is 99, and sampling is none, which does not"),
    (
        {"privacy": {**PRIVATE, "sampling": "poisson", "population": 9}},
        "privacy.population",
        "is 9; wanted at least 10, the quorum",
    ),
    ({"privacy": {**PRIVATE, "sampling": "uniform"}}, "privacy.sampling", 'is \'uniform\'; wanted "none" or "poisson"'),
    ({"privacy": {**PRIVATE, "seed": -1}}, "privacy.seed", "is -1; wanted a whole number, 0 or more and below 2^64"),
    (
        {"privacy": PRIVATE, "weighting": "num_examples"},
        "weighting",
        "is num_examples beside privacy, where every client",
    ),
    ({"privacy": PRIVATE, "aggregate": "median"}, "aggregate", "is median beside privacy"),
    ({"privacy": PRIVATE, "clip_norm": 1}, "clip_norm", "stands beside privacy, which has a clip of its own"),
    ({"privacy": PRIVATE, "norm_filter": 3}, "norm_filter", "stands beside privacy"),
    (
        {"privacy": {"noise_multiplier": 1.0, "adaptive": {}, "delta": 1e-5}},
        "privacy.adaptive.count_noise",
        "is 0.5 (a twentieth of the quorum); wanted more than half of noise_multiplier, which is 0.5",
    ),
    ({"wieghting": "equal"}, "wieghting", "is unknown; did you mean weighting?"),
]


@pytest.mark.parametrize(
    ("raw", "path", "message"), REFUSED, ids=[f"{path} {i}" for i, (_, path, _) in enumerate(REFUSED)]
)
def test_what_is_refused(raw, path, message):
    with pytest.raises(SettingsError) as refused:
        parse(raw)
    assert refused.value.path == path
    assert message in refused.value.message
    assert refused.value.message.split()[0] in ("is", "stands")


@pytest.mark.parametrize("key", ["staleness", "max_staleness"])
def test_staleness_is_for_buffered_rounds(key):
    with pytest.raises(SettingsError, match="is for buffered rounds") as refused:
        parse({key: {"staleness": "constant", "max_staleness": 3}[key]}, buffered=False)
    assert refused.value.path == key


def test_a_trim_that_no_quorum_of_two_can_have():
    with pytest.raises(SettingsError, match="cuts none of 2, the quorum; wanted 0"):
        parse({"aggregate": "trimmed_mean"}, quorum=2)


def test_staleness_by_hand():
    """Xie et al. 2019, section 5.2; FedBuff's is 1 / sqrt(1 + t)."""
    assert [staleness_factor(ConstantStaleness(), t) for t in (0, 1, 99)] == [1, 1, 1]
    assert [staleness_factor(PolynomialStaleness(), t) for t in (0, 3, 8)] == [1, 0.5, 1 / 3]
    assert [staleness_factor(PolynomialStaleness(exponent=1), t) for t in (0, 1, 3)] == [1, 0.5, 0.25]
    assert [staleness_factor(HingeStaleness(), t) for t in (0, 4, 5, 6)] == [1, 1, 1 / 11, 1 / 21]
    with pytest.raises(ValueError, match="later step"):
        staleness_factor(ConstantStaleness(), -1)
