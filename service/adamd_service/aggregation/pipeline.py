"""Makes one pseudo-gradient of a round's contributions.

    staleness weight → cap on weights → norm filter → clip → aggregate → noise

    w_i = min(num_examples_i, max_weight)  or 1        the weights
    a_i = s(staleness_i) min(1, clip_norm / ||g_i||)   the scales
    out = aggregate of a_i g_i with weights w_i

Contributions are taken in the order of their clients' names, whatever the order of arrival, and every sum has its own
fixed order: the same contributions give the same bits, with any number of threads, by either kernels. Pure: reads what
it is given and writes `out`.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal, TypeAlias

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation.clipping import RunningNorm, beyond_median, clip_scale, read_norms
from adamd_service.aggregation.kernels import compiled
from adamd_service.aggregation.kernels.protocol import Kernels
from adamd_service.aggregation.lanes import Lanes
from adamd_service.aggregation.mean import InOnePass, write_mean, write_sum
from adamd_service.aggregation.privacy import PrivateMean, next_clip_norm, vector_multiplier
from adamd_service.aggregation.ranks import write_median, write_trimmed_mean
from adamd_service.aggregation.robust import geometric_shares, krum
from adamd_service.aggregation.sections import Scaled
from adamd_service.aggregation.settings import (
    MOST_WHOLE,
    Aggregate,
    AggregationSettings,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    TrimmedMean,
)
from adamd_service.aggregation.staleness import staleness_factor
from adamd_service.aggregation.values import ArrayValues, Span, Values

# too_stale: beyond max_staleness. superseded: a newer one of the same client counts, in a private round. norm_filter:
# its norm is beyond norm_filter times the median. not_chosen: Krum chose others.
Reason: TypeAlias = Literal["too_stale", "superseded", "norm_filter", "not_chosen"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One client's pseudo-gradient for a round.

    values: flat, in the session's dtype, as long as `out`; an array (a file's mapping, a read-only view) or `Values`.
    Finite, and so is each square. num_examples: above 0. staleness: steps made since its parameters were pulled, 0 or
    more. present: the spans of tensors that it has, ascending and apart; None for all.
    They are first read once, all elements in order, by one thread after the other; then as it comes.
    """

    client: str
    values: Floats | Values
    num_examples: float = 1.0
    staleness: int = 0
    present: tuple[Span, ...] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """What became of one contribution.

    weight: its weight times its staleness factor, in the unit of the weighting; 0 where it does not count. norm: as
    it came, before clip and staleness. clipped: the norm was above the clip norm. reason: why it does not count.
    """

    client: str
    weight: float
    norm: float
    clipped: bool
    staleness: int
    counted: bool
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a round was aggregated.

    members: in the order of clients' names, and of one client the stalest first. noise_stddev: of the noise in each
    element of `out`; 0 without privacy. clip_norm: what was clipped to, None where nothing was. clip_norm_next: the
    next round's, where the clip is adaptive.
    """

    members: tuple[Member, ...]
    noise_stddev: float = 0.0
    clip_norm: float | None = None
    clip_norm_next: float | None = None


def aggregate_round(
    contributions: Sequence[Contribution],
    settings: AggregationSettings,
    out: Floats,
    *,
    threads: Executor | None = None,
    lanes: int = 1,
    noise_seed: bytes | None = None,
    clip_norm: float | None = None,
    seen: Callable[[], None] = lambda: None,
    written: Callable[[int], None] = lambda stop: None,
    kernels: Kernels = compiled,
) -> Outcome:
    """Write the aggregate of the contributions into `out`, a flat vector of the session's length and dtype.

    seen: is called once all of them were read in order, and before anything but a plain mean is made of them. What it
    raises is raised; `out` is worth nothing then. written: may be told before that up to which element `out` is final,
    in order, by one thread after the other.
    threads, lanes: an executor, and how many threads may work at once, the caller's among them. noise_seed: of this
    round alone, where there is privacy (`privacy.noise_seed`). clip_norm: the adaptive clip's of this round, None for
    its first. Where no contribution counts, `out` is 0, or noise alone.
    Raises ValueError for privacy without a noise_seed, and what `Values` raise.
    """
    ordered = sorted(contributions, key=lambda one: (one.client, -one.staleness))
    vectors = [_values(one.values) for one in ordered]
    shared = Lanes(threads, lanes)
    reasons = _refused(ordered, settings)
    norms = [RunningNorm() for _ in ordered]
    most = _clip_norm(settings, clip_norm)
    at_once = _is_one_pass(ordered, settings, most)
    first = [place for place, reason in enumerate(reasons) if reason is not None or not at_once]
    read_norms([vectors[place] for place in first], [norms[place] for place in first], out, kernels, shared)
    if not at_once:
        seen()
        _filter(reasons, norms, settings)
    places = [place for place, reason in enumerate(reasons) if reason is None]
    counted = [norms[place] for place in places]
    parts = [
        Scaled(
            vectors[place],
            _weight(ordered[place], settings),
            staleness_factor(settings.staleness, ordered[place].staleness) * clip_scale(norms[place].norm, most),
            ordered[place].present,
        )
        for place in places
    ]
    noise, following = 0.0, None
    if at_once:
        write_mean(parts, out, kernels, shared, InOnePass(counted, written))
        seen()
    elif settings.privacy is not None:
        assert most is not None
        found = [norm.norm for norm in counted]
        noise, following = _write_private(parts, settings, most, found, noise_seed, out, kernels, shared)
    else:
        chosen = _write(parts, settings.aggregate, out, kernels, shared)
        for place in set(places) - {places[one] for one in chosen}:
            reasons[place] = "not_chosen"
    return Outcome(_members(ordered, norms, reasons, settings, most), noise, most, following)


def _is_one_pass(ordered: Sequence[Contribution], settings: AggregationSettings, clip_norm: float | None) -> bool:
    """Say whether norms are only told, so that the pass which makes the mean may find them."""
    plain = isinstance(settings.aggregate, Mean) and clip_norm is None and settings.norm_filter is None
    return plain and all(one.present is None for one in ordered)


def _write(
    parts: Sequence[Scaled], aggregate: Aggregate, out: Floats, kernels: Kernels, lanes: Lanes
) -> Collection[int]:
    """Write the aggregate into `out`; the places of the contributions that are in it."""
    match aggregate:
        case Median():
            write_median(parts, out, kernels, lanes)
        case TrimmedMean(trim=trim):
            write_trimmed_mean(parts, trim, out, kernels, lanes)
        case Krum(byzantine=byzantine) | MultiKrum(byzantine=byzantine):
            keep = aggregate.keep if isinstance(aggregate, MultiKrum) else 1
            chosen = krum(parts, byzantine, keep, out, kernels, lanes)
            write_mean([parts[place] for place in chosen], out, kernels, lanes)
            return chosen
        case GeometricMedian():
            shares = geometric_shares(parts, aggregate, out, kernels, lanes)
            weighted = [replace(part, weight=share) for part, share in zip(parts, shares, strict=True)]
            write_mean(weighted, out, kernels, lanes)
        case Mean():
            write_mean(parts, out, kernels, lanes)
    return range(len(parts))


def _write_private(
    parts: Sequence[Scaled],
    settings: AggregationSettings,
    clip_norm: float,
    found: Sequence[float],
    seed: bytes | None,
    out: Floats,
    kernels: Kernels,
    lanes: Lanes,
) -> tuple[float, float | None]:
    """Write the private mean into `out`; the noise in each element of it, and the next clip norm if that adapts."""
    privacy, quorum = settings.privacy, settings.quorum
    assert privacy is not None
    if seed is None:
        raise ValueError("a private round without a noise_seed")
    stddev = vector_multiplier(privacy, quorum) * clip_norm
    write_sum(parts, out, PrivateMean(seed, stddev, quorum), kernels, lanes)
    adaptive = privacy.adaptive
    following = None if adaptive is None else next_clip_norm(adaptive, clip_norm, found, quorum, seed)
    return stddev / quorum, following


def _clip_norm(settings: AggregationSettings, adapted: float | None) -> float | None:
    """The norm that this round clips to; None for no clip."""
    privacy = settings.privacy
    if privacy is None:
        return settings.clip_norm
    if privacy.adaptive is None:
        return privacy.clip_norm
    return privacy.adaptive.initial if adapted is None else adapted


def _values(given: Floats | Values) -> Values:
    return ArrayValues(given) if isinstance(given, np.ndarray) else given


def _weight(one: Contribution, settings: AggregationSettings) -> float:
    if settings.weighting == "equal":
        return 1.0
    return min(one.num_examples, settings.max_weight or MOST_WHOLE, MOST_WHOLE)  # their sum stays finite


def _refused(ordered: Sequence[Contribution], settings: AggregationSettings) -> list[Reason | None]:
    """Why each contribution does not count, whatever is in it; None where it does, so far."""
    reasons = list[Reason | None]()
    most = settings.max_staleness
    for one, after in zip_longest(ordered, ordered[1:]):
        # A private sum has a bound on what one client changes only where each is in it once.
        again = settings.privacy is not None and after is not None and after.client == one.client
        too_stale = most is not None and one.staleness > most
        reasons.append("too_stale" if too_stale else "superseded" if again else None)
    return reasons


def _filter(reasons: list[Reason | None], norms: Sequence[RunningNorm], settings: AggregationSettings) -> None:
    """Note which of those that count so far have too large a norm."""
    fresh = [place for place, reason in enumerate(reasons) if reason is None]
    large = beyond_median([norms[place].norm for place in fresh], settings.norm_filter)
    for place, beyond in zip(fresh, large, strict=True):
        if beyond:
            reasons[place] = "norm_filter"


def _members(
    ordered: Sequence[Contribution],
    norms: Sequence[RunningNorm],
    reasons: Sequence[Reason | None],
    settings: AggregationSettings,
    clip_norm: float | None,
) -> tuple[Member, ...]:
    return tuple(
        Member(
            client=one.client,
            weight=0.0
            if reason is not None
            else _weight(one, settings) * staleness_factor(settings.staleness, one.staleness),
            norm=norm.norm,
            clipped=clip_norm is not None and norm.norm > clip_norm,
            staleness=one.staleness,
            counted=reason is None,
            reason=reason,
        )
        for one, norm, reason in zip(ordered, norms, reasons, strict=True)
    )
