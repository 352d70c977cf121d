"""The pure rules of rounds: what a contribution gets, when a round closes, who is drawn."""

from dataclasses import replace

import pytest

from adamd.errors import Busy, ContributionConflict, HistoryLost, NotSelected, RoundClosed, StepGap
from adamd.wire import layout
from adamd_service.rounds import Counted, Frozen, RoundDocument, Standing, parse_rounds
from adamd_service.rounds.rules import (
    deadline,
    due,
    evaluation_refusal,
    foresee,
    is_over,
    is_selected,
    needed,
    refusal,
    state_of,
)
from adamd_service.rounds.selection import EVALUATE, TRAIN, drawn

LAYOUT = layout.vector_layout((4,))
OPEN = Standing(number=5, incarnation="i", chain="c" * 64, step=4, opened_at=100.0, now=110.0, config={})
FROZEN = Frozen("t", "quorum", 109.0, "r", ())


def settings_of(**more):
    return parse_rounds({"quorum": 3, **more}, LAYOUT)


def error_of(standing=OPEN, number=5, *, waits=False, counted="", if_match=None, **more):
    return foresee(standing, settings_of(**more), number, "a", waits=waits, counted=counted, if_match=if_match)


def test_what_a_contribution_gets():
    assert error_of() is None
    assert isinstance(error_of(number=6), StepGap)
    assert isinstance(error_of(number=6, if_match="d" * 64), HistoryLost)
    assert isinstance(error_of(if_match="d" * 64), HistoryLost)
    assert error_of(if_match=OPEN.chain) is None
    assert isinstance(error_of(replace(OPEN, frozen=FROZEN)), RoundClosed)
    assert error_of(replace(OPEN, frozen=FROZEN), waits=True) is None
    assert error_of(replace(OPEN, frozen=FROZEN), mode="buffered") is None
    assert isinstance(error_of(replace(OPEN, received=3)), Busy)
    assert isinstance(error_of(cohort=3), NotSelected)
    assert error_of(replace(OPEN, drawn=True, cohort=("a", "b", "c")), cohort=3) is None
    assert isinstance(error_of(total=4), RoundClosed)


@pytest.mark.parametrize(
    ("number", "counted", "told"),
    [(4, "d 4", True), (4, "d 0", False), (4, "", False), (1, "", False), (1, "d 1", True)],
)
def test_who_comes_too_late_learns_whether_it_counted(number, counted, told):
    refused = error_of(number=number, counted=counted)
    assert isinstance(refused, RoundClosed)
    assert refused.extra == {"round": 5, "counted": told}


def test_the_owner_is_not_told_to_ask_for_a_task():
    refused = refusal("closed", OPEN, 4, "")
    assert "stays as it is" in refused.detail and refused.extra == {"round": 5}


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("closed", RoundClosed, "takes no evaluation any more"),
        ("conflict", ContributionConflict, "a has evaluated round 4 already"),
        ("full", Busy, "as many evaluations"),
        ("ahead", StepGap, "is ahead"),
    ],
)
def test_an_evaluation_that_is_refused_is_told_of_evaluations(word, error, said):
    refused = evaluation_refusal(word, OPEN, 4, "a")
    assert isinstance(refused, error) and said in refused.detail
    assert refused.extra.get("counted") is None  # it may have come before: nothing tells, once its round is closed


def test_after_many_rounds_nobody_knows_whether_it_counted():
    later = replace(OPEN, number=40)
    assert [error_of(later, number=number).extra["counted"] for number in (23, 24)] == [None, False]


def test_a_buffered_session_takes_what_is_late():
    late = {"mode": "buffered", "max_staleness": 2}
    assert error_of(number=3, **late) is None
    assert isinstance(error_of(number=2, **late), RoundClosed)
    assert isinstance(error_of(number=4, counted="d 4", **late), RoundClosed)


def test_when_a_round_closes():
    plain, timed = settings_of(), settings_of(min_contributions=2, deadline_s=5)
    assert (due(OPEN, plain), deadline(OPEN, timed)) == (None, None)
    assert due(replace(OPEN, received=3), plain) == "quorum"
    late = replace(OPEN, first_at=104.0, received=2)
    assert (due(late, plain), due(late, timed), deadline(late, timed)) == (None, "deadline", 109.0)
    assert due(replace(late, now=108.0), timed) is None
    few = replace(late, received=1)
    assert (due(few, timed), state_of(few, timed), state_of(few, plain)) == (None, "overdue", "open")
    assert due(replace(few, frozen=FROZEN), timed) == "quorum"
    assert [needed(why, timed) for why in ("quorum", "deadline", "hand")] == [3, 2, 1]
    assert needed("hand", settings_of(quorum=5, aggregate={"name": "krum", "byzantine": 1})) == 5


def test_the_last_round_and_the_cohort():
    assert is_over(OPEN, settings_of(total=4)) and not is_over(OPEN, settings_of(total=5))
    assert is_selected(OPEN, settings_of(), "a") and not is_selected(OPEN, settings_of(cohort=3), "a")


def test_drawings_follow_from_the_seed():
    known = [f"c{i}" for i in range(40)]
    one = drawn(known, 5, 7, 1, 0, TRAIN)
    assert one == drawn(list(reversed(known)), 5, 7, 1, 0, TRAIN)
    assert one == tuple(sorted(set(one))) and len(one) == 5
    others = [
        drawn(known, 5, *four) for four in ((8, 1, 0, TRAIN), (7, 2, 0, TRAIN), (7, 1, 1, TRAIN), (7, 1, 0, EVALUATE))
    ]
    assert one not in others
    assert drawn(known, 99, 7, 1, 0, TRAIN) == tuple(sorted(known))
    counts = {client: sum(client in drawn(known, 5, 7, number, 0, TRAIN) for number in range(400)) for client in known}
    assert (
        20 <= min(counts.values()) and max(counts.values()) <= 85
    )  # 50 on average: of fixed seeds, so always the same


def test_a_document_is_json():
    row = Counted("a", 2.0, {"loss": 0.5}, 2.0, 1.5, counted=True)
    document = RoundDocument(1, "closed", 0, 1.0, 2.0, "quorum", 1, 1, {}, {"loss": 0.5}, None, (row,), step=1)
    told = document.to_json()
    assert told["contributions"][0]["norm"] == 1.5
    assert told["evaluation"] is None and told["closed_by"] == "quorum"
