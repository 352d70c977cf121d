"""Decides about rounds: what a contribution gets whatever its body is, and when a round is closed.

closed by    when
quorum       `quorum` contributions are there
deadline     the time is up, and `min_contributions` are there; with fewer it is overdue
hand         its owner says so
"""

from __future__ import annotations

from typing import Final

from adamd.errors import (
    AdamdError,
    Busy,
    ContributionConflict,
    HistoryLost,
    NotSelected,
    PrivacySpent,
    RoundClosed,
    SettingsConflict,
    StepGap,
    StoreUnavailable,
)
from adamd_service.aggregation import rounds_within
from adamd_service.aggregation.settings import fewest
from adamd_service.rounds.documents import ClosedBy, Standing, State
from adamd_service.rounds.settings import RoundsSettings

REMEMBERED: Final = 16  # closed rounds, at least, of which it stays known who has contributed


def deadline(standing: Standing, settings: RoundsSettings) -> float | None:
    """Return when the time is up, in Unix seconds; None before the first contribution, or without a deadline."""
    if settings.deadline_s is None or standing.first_at is None:
        return None
    return standing.first_at + settings.deadline_s


def due(standing: Standing, settings: RoundsSettings) -> ClosedBy | None:
    """Return why the open round is to be closed now; None where it is not."""
    if standing.frozen is not None:
        return standing.frozen.closed_by
    if standing.received >= settings.quorum:
        return "quorum"
    until = deadline(standing, settings)
    if until is not None and standing.now >= until and standing.received >= settings.min_contributions:
        return "deadline"
    return None


def needed(closed_by: ClosedBy, settings: RoundsSettings) -> int:
    """Return the contributions that a round needs to be closed so."""
    by = {"quorum": settings.quorum, "deadline": settings.min_contributions, "hand": 1}
    return max(by[closed_by], fewest(settings.aggregation.aggregate))


def state_of(standing: Standing, settings: RoundsSettings) -> State:
    """Return the state of the open round: open, or overdue: its time is up, and too few have come."""
    until = deadline(standing, settings)
    return "overdue" if until is not None and standing.now >= until and standing.frozen is None else "open"


def is_over(standing: Standing, settings: RoundsSettings) -> bool:
    """Say whether the session's last round is over."""
    return 0 < settings.total < standing.number


def last_round(settings: RoundsSettings) -> int | None:
    """Return the last round that a session may make, by ``total`` and by ``max_epsilon``; None where there is none.

    Slow where an accountant is asked for the first time.
    """
    privacy = settings.aggregation.privacy
    within = None if privacy is None or privacy.max_epsilon is None else rounds_within(privacy, settings.asked)
    return min((last for last in (settings.total or None, within) if last is not None), default=None)


def is_selected(standing: Standing, settings: RoundsSettings, client: str) -> bool:
    """Say whether a client is asked to train in the open round."""
    if not settings.cohort:
        return True
    return standing.drawn and client in (standing.cohort or ())


def foresee(
    standing: Standing,
    settings: RoundsSettings,
    number: int,
    client: str,
    *,
    waits: bool,
    counted: str,
    if_match: str | None,
    last: int | None = None,
) -> AdamdError | None:
    """Return the error that a contribution to round ``number`` gets whatever its body is, or None (law 6).

    Args:
        standing: where the open round stands.
        settings: of the session's rounds.
        number: the round that it was made for.
        client: whose it is.
        waits: a contribution of this client to that round waits to be counted: only its body tells more.
        counted: what the store knows of one that does not wait any more; see `refusal`.
        if_match: the chain of step ``number`` - 1 that the client saw.
        last: the last round, as `last_round` says; while it closes nothing is taken for the one after it.

    """
    open_round = standing.number
    if number > open_round and if_match is not None:
        return HistoryLost(
            f"you have seen step {number - 1} acknowledged; the store has only {standing.step}: it went back. A person "
            f"decides: go on with round {open_round} without what is lost, or restore an export.",
            step=standing.step,
        )
    if number > open_round:
        return refusal("ahead", standing, number, client)
    if number == open_round and if_match is not None and if_match != standing.chain:
        return HistoryLost(
            f"round {number} builds on chain {standing.chain[:12]}…; If-Match says {if_match[:12]}…: another history. "
            "A person decides whether to read the parameters and go on from there.",
            step=standing.step,
        )
    if waits:
        return None
    goes_on = settings.buffered and open_round != last
    if counted or number < open_round - settings.remembered or (standing.frozen is not None and not goes_on):
        return refusal("closed", standing, number, client, counted)
    if is_over(standing, settings):
        return refusal("over", standing, number, client)
    if last is not None and open_round > last:
        return refusal("spent", standing, number, client)
    if not is_selected(standing, settings, client):
        return refusal("not_selected", standing, number, client)
    if standing.received >= settings.max_contributions:
        return refusal("full", standing, number, client)
    return None


def refusal(word: str, standing: Standing, number: int, client: str, counted: str = "") -> AdamdError:
    """Return the error for a contribution that is refused.

    Args:
        word: why, as contribute.lua says it: ahead, closed, over, not_selected, full, conflict, moved, chunks; and
            spent: over, because privacy would be spent.
        standing: where the open round stands.
        number: the round that the contribution was made for.
        client: whose it is; "" for the owner, who wants to close or cancel the round.
        counted: "digest step" of a contribution of this client to that round which was used; step 0: it was left out.

    """
    step, open_round = standing.step, standing.number
    if word == "ahead":
        return StepGap(f"round {number} is ahead; round {open_round} is open", step=step, round=open_round)
    if word == "conflict":
        return ContributionConflict(
            f"{client} has contributed to round {number} already, with other bytes; the first contribution stays",
            step=step,
            round=open_round,
        )
    if word == "not_selected":
        return NotSelected(
            f"round {number} asks other clients; ask for a task to learn when {client} is wanted",
            step=step,
            round=open_round,
        )
    if word == "full":
        return Busy(f"round {open_round} has as many contributions as it takes", step=step, retry_after=1.0)
    if word == "over":
        return RoundClosed("the session's last round is over", step=step, round=open_round, counted=False)
    if word == "spent":
        return PrivacySpent(
            f"round {open_round} would spend more than max_epsilon; the session's last private round is over", step=step
        )
    if word == "closed":
        return _closed(standing, number, client, counted)
    if word == "moved":
        return SettingsConflict("the session was made anew meanwhile; try again", step=step, retry_after=0.2)
    return StoreUnavailable("the contribution took too long to arrive, and is no longer there; send it again")


def evaluation_refusal(word: str, standing: Standing, number: int, client: str) -> AdamdError:
    """Return the error for an evaluation that is refused: ``word`` as evaluate.lua says it, the others as `refusal`."""
    step, open_round = standing.step, standing.number
    if word == "closed":
        # The evaluations went with the round, and nothing tells whether this one had come before.
        said = f"round {number} is closed, and takes no evaluation any more. Ask for a task and go on"
        return RoundClosed(f"{said} with round {open_round}", step=step, round=open_round, counted=None)
    if word == "conflict":
        said = f"{client} has evaluated round {number} already, with other numbers; the first ones stay"
        return ContributionConflict(said, step=step, round=open_round)
    if word == "full":
        return Busy(f"round {open_round} has as many evaluations as it takes", step=step, retry_after=1.0)
    return refusal(word, standing, number, client)


def _closed(standing: Standing, number: int, client: str, counted: str) -> RoundClosed:
    if not client:
        said = f"round {number} is closed, and stays as it is; round {standing.number} is open"
        return RoundClosed(said, step=standing.step, round=standing.number)
    made = int(counted.rpartition(" ")[2] or 0) if counted else 0
    known = bool(counted) or number >= standing.number - REMEMBERED
    if made:
        said = f"; the contribution of {client} counted in step {made}"
    elif counted:
        said = f"; the contribution of {client} was left out, as the round's document says"
    elif known:
        said = f"; no contribution of {client} counted"
    else:
        said = f"; too long ago to say whether one of {client} counted"
    closing = "is being closed" if number == standing.number else "is closed"
    return RoundClosed(
        f"round {number} {closing}{said}. Ask for a task and go on with round {standing.number}",
        step=standing.step,
        round=standing.number,
        counted=bool(made) if known else None,
    )
