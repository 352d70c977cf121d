"""Makes the ``rounds`` settings of a session from a coordinator's options. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from adamd.errors import InvalidRequest
from adamd.fed.aggregates import UNWEIGHTED, Aggregate, Mean
from adamd.fed.buffering import Buffered
from adamd.fed.options import FederationOptions
from adamd.fed.strategies import FedAvg

CREATION = ("dtype", "durability", "labels")  # options of the session, and not of its rounds
OPTION_NAMES = {  # of the settings of rounds that have another name here
    "total": "num_rounds",
    "deadline_s": "timeout",
    "min_contributions": "min_replies",
    "max_contributions": "max_replies",
}


def plans(options: Mapping[str, Any]) -> bool:
    """Say whether the options plan a federation; else one that is there is taken as it is."""
    return any(value is not None for value in options.values())


def optimizer_document(options: FederationOptions) -> dict[str, Any]:
    """Return the session's optimizer settings: the strategy's.

    Raises:
        InvalidRequest: it is no strategy.

    """
    strategy = options.get("strategy") or FedAvg()
    if not callable(getattr(strategy, "document", None)) or isinstance(strategy, type):
        raise InvalidRequest(f"strategy is {strategy!r:.60}; wanted one of adamd.fed, as fed.FedAdam(eta=0.05)")
    return strategy.document()


def rounds_document(
    options: FederationOptions, *, counters: Sequence[str] = (), statistics: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the ``rounds`` settings, complete: those of two coordinators are equal, or they want different things.

    Args:
        options: of `adamd.Client.open_federation`; what is None counts as left out.
        counters: tensors of whole numbers, for ``carry``.
        statistics: tensors of running statistics, for ``averaged``.

    Raises:
        InvalidRequest: an option is missing or unknown, or two of them do not fit; the words have the numbers.

    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    unknown = next((name for name in given if name not in FederationOptions.__annotations__), None)
    if unknown is not None:
        known = ", ".join(FederationOptions.__annotations__)
        raise InvalidRequest(f"open_federation has no option {unknown!r}; known are {known}")
    quorum, cohort = _counts(given)
    least, aggregate = given.get("min_replies", quorum), given.get("aggregate", Mean())
    if not callable(getattr(aggregate, "document", None)) or isinstance(aggregate, type):
        raise InvalidRequest(f"aggregate is {aggregate!r:.60}; wanted one of adamd.fed, as fed.Median()")
    _check_deadline(given, quorum, least)
    _check_aggregate(aggregate, quorum, least)
    privacy, buffered = given.get("privacy"), given.get("buffered")
    unweighted = privacy is not None or isinstance(aggregate, UNWEIGHTED)
    private = _patterns("private", given.get("private", ()))
    document = {
        "mode": "sync" if buffered is None else "buffered",
        "quorum": quorum,
        "min_contributions": least,
        "max_contributions": given.get("max_replies", quorum),
        "deadline_s": given.get("timeout"),
        "cohort": cohort,
        "seed": given.get("seed"),
        "total": given.get("num_rounds", 0),
        "evaluate": given.get("evaluate", 0),
        "config": given.get("config", {}),
        "weighting": given.get("weighting", "equal" if unweighted else "num_examples"),
        "max_weight": given.get("max_weight"),
        "clip_norm": aggregate.clip_norm,
        "norm_filter": aggregate.norm_filter,
        "aggregate": aggregate.document(),
        "privacy": None if privacy is None else privacy.document(),
        "averaged": _patterns("averaged", given.get("averaged", statistics)),
        "carry": _patterns("carry", given.get("carry", counters)),
        "private": private,
    }
    return document | ({} if buffered is None else _buffering(buffered))


def in_options(words: str) -> str:
    """Return a server's words about settings of rounds with the options' names beside theirs."""
    for setting, option in OPTION_NAMES.items():
        words = words.replace(f"rounds.{setting} ", f"{option} (rounds.{setting}) ")
    return words


def _counts(given: Mapping[str, Any]) -> tuple[int, int]:
    """Return the quorum, and how many clients are asked (0: all)."""
    buffered: Buffered | None = given.get("buffered")
    if buffered is not None:
        extra = next((name for name in ("cohort", "quorum") if name in given), None)
        if extra is not None:
            raise InvalidRequest(f"{extra} is {given[extra]} beside buffered, which asks all clients: leave it out")
        return _count("buffered.size", buffered.size), 0
    if "cohort" not in given and "quorum" not in given:
        raise InvalidRequest(
            "how many clients a round asks is missing: give cohort=8, or quorum=8 to close a round with the first 8 "
            "replies of however many clients there are"
        )
    cohort = _count("cohort", given["cohort"]) if "cohort" in given else 0
    quorum = _count("quorum", given["quorum"]) if "quorum" in given else cohort
    if 0 < cohort < quorum:
        raise InvalidRequest(
            f"quorum is {quorum}, and a round asks only {cohort} clients (cohort); wanted at most that"
        )
    return quorum, cohort


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise InvalidRequest(f"{name} is {value!r}; wanted a number of replies, 1 or more")
    return value


def _check_deadline(given: Mapping[str, Any], quorum: int, least: Any) -> None:
    _count("min_replies", least)
    if least > quorum:
        raise InvalidRequest(f"min_replies is {least}; wanted at most the {quorum} that close a round")
    if least < quorum and "timeout" not in given:
        raise InvalidRequest(
            f"min_replies is {least}, which counts at the timeout, and there is none: give timeout=600"
        )


def _check_aggregate(aggregate: Aggregate, quorum: int, least: int) -> None:
    """Refuse an aggregate that a full round is too small for; warn of one that a round at its timeout may be."""
    refusal = aggregate.refusal(quorum)
    if refusal is not None:
        raise InvalidRequest(refusal)
    weaker = aggregate.refusal(least) if least < quorum else None
    if weaker is not None:
        message = f"with min_replies={least} a round may be closed at its timeout with too few replies: {weaker}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _buffering(buffered: Buffered) -> dict[str, Any]:
    return {"staleness": buffered.staleness.document(), "max_staleness": buffered.max_staleness}


def _patterns(name: str, given: Any) -> list[str]:
    if isinstance(given, str) or not all(isinstance(item, str) for item in given):
        raise InvalidRequest(f"{name} is {given!r:.60}; wanted a list of names or patterns, as ['head.*']")
    return list(given)
