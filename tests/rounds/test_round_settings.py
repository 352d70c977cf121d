"""Settings of rounds: what is read, and what is refused in which words."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from adamd.wire import layout
from adamd_service.optim import SettingsError
from adamd_service.rounds import parse_rounds, with_config
from adamd_service.rounds.settings import check_new, shown_to_all, with_seed

LAYOUT = layout.named_layout({"bn.mean": (3,), "bn.tracked": (), "head.w": (4, 2), "w": (5,)})
REFUSED = [
    (7, "rounds is 7; wanted an object"),
    ({}, "rounds.quorum is missing; wanted a whole number"),
    ({"quorum": 0}, "rounds.quorum is 0"),
    ({"quorum": True}, "rounds.quorum is true"),
    ({"quorum": 10_001}, "rounds.quorum is 10001"),
    ({"quorum": 1, "quorom": 2}, "rounds.quorom is unknown; did you mean quorum?"),
    ({"quorum": 1, "agregate": "mean"}, "rounds.agregate is unknown; did you mean aggregate?"),
    ({"quorum": 2, "min_contributions": 3, "deadline_s": 1}, "rounds.min_contributions is 3; wanted at most quorum"),
    ({"quorum": 2, "min_contributions": 1}, "rounds.min_contributions is 1, below quorum"),
    ({"quorum": 2, "max_contributions": 1}, "rounds.max_contributions is 1; wanted at least quorum"),
    ({"quorum": 3, "cohort": 2}, "rounds.cohort is 2; wanted at least quorum"),
    ({"mode": "buffered", "quorum": 1, "cohort": 2}, "rounds.cohort is 2; a buffered session asks all"),
    ({"quorum": 1, "deadline_s": 0}, "rounds.deadline_s is 0.0; wanted a finite number of seconds above 0"),
    ({"quorum": 1, "mode": "async"}, "rounds.mode is 'async'"),
    ({"quorum": 1, "config": []}, "rounds.config is a list of 0"),
    ({"quorum": 1, "config": {"a": "x" * 16_384}}, "rounds.config has 16392 bytes"),
    ({"quorum": 1, "averaged": "bn.*"}, "rounds.averaged is 'bn.*'; wanted a list"),
    ({"quorum": 1, "averaged": ["bm.*"]}, "rounds.averaged[0] is 'bm.*', which no tensor matches"),
    ({"quorum": 1, "carry": ["w"], "private": ["w"]}, "rounds.private[0] is 'w', already at carry[0]"),
    ({"quorum": 1, "private": ["*"]}, "rounds.private names every tensor"),
    ({"quorum": 1, "total": -1}, "rounds.total is -1"),
    ({"quorum": 1, "seed": 0.5}, "rounds.seed is 0.5"),
    ({"quorum": 5, "aggregate": {"name": "krum", "byzantine": 2}}, "rounds.aggregate.byzantine is 2"),
    (
        {
            "quorum": 5,
            "min_contributions": 2,
            "deadline_s": 9,
            "aggregate": {"name": "multi_krum", "byzantine": 1, "keep": 5},
        },
        "rounds.min_contributions is 2, and multi_krum with byzantine 1 takes 5",
    ),
    (
        {"quorum": 1, "averaged": ["bn.mean"], "privacy": {"noise_multiplier": 1, "clip_norm": 1, "delta": 1e-5}},
        "rounds.averaged stands beside privacy",
    ),
]


@pytest.mark.parametrize(("raw", "words"), REFUSED)
def test_what_is_refused_says_where_and_what(raw, words):
    with pytest.raises(SettingsError) as refused:
        parse_rounds(raw, LAYOUT)
    assert refused.value.message.startswith(words)
    assert refused.value.message.startswith(refused.value.path)


def test_defaults_and_places():
    made = parse_rounds({"quorum": 6, "averaged": ["bn.mean"], "carry": ["*.tracked"], "private": ["head.*"]}, LAYOUT)
    assert (made.min_contributions, made.max_contributions, made.cohort, made.total) == (6, 6, 0, 0)
    assert (made.averaged, made.carry, made.private) == ((0,), (1,), (2,))
    assert (made.buffered, made.remembered, made.asked) == (False, 0, 6)
    late = parse_rounds({"mode": "buffered", "quorum": 6, "max_staleness": 3}, LAYOUT)
    assert (late.buffered, late.remembered) == (True, 3)


@given(
    st.fixed_dictionaries(
        {"quorum": st.integers(5, 50)},
        optional={
            "deadline_s": st.one_of(st.none(), st.floats(0.1, 1e6)),
            "total": st.integers(0, 1000),
            "evaluate": st.integers(0, 10),
            "config": st.dictionaries(
                st.text(max_size=5), st.one_of(st.integers(-5, 5), st.text(max_size=5)), max_size=3
            ),
            "averaged": st.sampled_from([[], ["bn.*"], ["w"]]),
            "weighting": st.sampled_from(["num_examples", "equal"]),
            "clip_norm": st.one_of(st.none(), st.floats(0.1, 10)),
            "seed": st.integers(0, 2**53),
        },
    )
)
@settings(deadline=None)
def test_the_document_is_the_settings(raw):
    made = parse_rounds(raw, LAYOUT)
    assert parse_rounds(json.loads(json.dumps(made.to_json())), LAYOUT) == made


def test_config_alone_changes():
    made = parse_rounds({"quorum": 1}, LAYOUT)
    assert with_config(made, {"config": {"lr": 0.1}}).config == {"lr": 0.1}
    assert with_config(made, {}) == made
    with pytest.raises(SettingsError, match="rounds.quorum is fixed"):
        with_config(made, {"quorum": 2})


def test_a_seed_is_drawn_once_and_the_noises_is_told_to_nobody():
    privacy = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}
    made = with_seed(parse_rounds({"quorum": 2, "seed": 3, "privacy": privacy}, LAYOUT), 11, 12)
    assert (made.seed, made.aggregation.privacy.seed) == (3, 12)
    assert parse_rounds(made.to_json(), LAYOUT) == made
    assert shown_to_all(made.to_json())["privacy"].keys() == made.to_json()["privacy"].keys() - {"seed"}
    assert shown_to_all({"quorum": 1}) == {"quorum": 1}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"quorum": 1001}, "rounds.quorum is 1001, and krum compares each two; wanted at most 1000"),
        ({"quorum": 9, "max_contributions": 10_000}, "rounds.max_contributions is 10000, and krum compares each two"),
    ],
)
def test_krum_compares_so_many_and_older_sessions_go_on(raw, words):
    """All distances at once: 14 GB for 10,000 contributions."""
    made = parse_rounds({**raw, "aggregate": {"name": "krum", "byzantine": 1}}, LAYOUT)
    with pytest.raises(SettingsError) as refused:
        check_new(made)
    assert refused.value.message.startswith(words)
    check_new(parse_rounds({**raw, "aggregate": "geometric_median"}, LAYOUT))
    check_new(parse_rounds({"quorum": 1000, "aggregate": {"name": "krum", "byzantine": 1}}, LAYOUT))
