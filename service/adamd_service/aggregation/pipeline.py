"""Makes one pseudo-gradient of a round's contributions.

    staleness weight → cap on weights → norm filter → clip → aggregate → noise

    w_i = min(num_examples_i, max_weight)  or 1        the weights
    a_i = s(staleness_i) min(1, clip_norm / ||g_i||)   the scales
    out = aggregate of a_i g_i with weights w_i

Contributions are taken in the order of their clients' names, whatever the order of arrival, and every sum has its own
fixed order: the same contributions give the same bits, with any number of threads, by either kernels. Pure: reads what
it is given and writes `out`.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.aggregation import compiled
from adamd_service.aggregation.blocks import Lanes
from adamd_service.aggregation.clipping import beyond_median, clip_scale, norms
from adamd_service.aggregation.kernels import Kernels
from adamd_service.aggregation.mean import write_mean
from adamd_service.aggregation.sections import Part
from adamd_service.aggregation.settings import MOST_WHOLE, AggregationSettings, Mean
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
    kernels: Kernels = compiled,
) -> Outcome:
    """Write the aggregate of the contributions into `out`, a flat vector of the session's length and dtype.

    threads, lanes: an executor, and how many threads may work at once, the caller's among them. noise_seed: of this
    round alone, where there is privacy (`privacy.noise_seed`). clip_norm: the adaptive clip's of this round, None for
    its first. Where no contribution counts, `out` is 0, or noise alone.
    Raises ValueError for privacy without a noise_seed, and what `Values` raise.
    """
    ordered = sorted(contributions, key=lambda one: (one.client, -one.staleness))
    vectors = [_values(one.values) for one in ordered]
    shared = Lanes(threads, lanes)
    found = norms(vectors, out, kernels, shared)
    reasons = _refused(ordered, found, settings)
    parts = [
        Part(
            vector,
            _weight(one, settings),
            staleness_factor(settings.staleness, one.staleness) * clip_scale(norm, settings.clip_norm),
            one.present,
        )
        for one, vector, norm in zip(ordered, vectors, found, strict=True)
    ]
    counted = [part for part, reason in zip(parts, reasons, strict=True) if reason is None]
    if settings.privacy is not None or not isinstance(settings.aggregate, Mean):
        raise NotImplementedError(settings.aggregate.name)
    write_mean(counted, out, kernels, shared)
    return Outcome(_members(ordered, found, reasons, settings, settings.clip_norm), clip_norm=settings.clip_norm)


def _values(given: Floats | Values) -> Values:
    return ArrayValues(given) if isinstance(given, np.ndarray) else given


def _weight(one: Contribution, settings: AggregationSettings) -> float:
    if settings.weighting == "equal":
        return 1.0
    return min(one.num_examples, settings.max_weight or MOST_WHOLE)  # their sum stays finite


def _refused(
    ordered: Sequence[Contribution], found: Sequence[float], settings: AggregationSettings
) -> list[Reason | None]:
    """Why each contribution does not count; the median is that of those which are not too stale."""
    most = settings.max_staleness
    fresh = [most is None or one.staleness <= most for one in ordered]
    large = iter(
        beyond_median([norm for norm, is_fresh in zip(found, fresh, strict=True) if is_fresh], settings.norm_filter)
    )
    return [("norm_filter" if next(large) else None) if is_fresh else "too_stale" for is_fresh in fresh]


def _members(
    ordered: Sequence[Contribution],
    found: Sequence[float],
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
            norm=norm,
            clipped=clip_norm is not None and norm > clip_norm,
            staleness=one.staleness,
            counted=reason is None,
            reason=reason,
        )
        for one, norm, reason in zip(ordered, found, reasons, strict=True)
    )
