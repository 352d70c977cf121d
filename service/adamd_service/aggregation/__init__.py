"""Many clients' contributions become one pseudo-gradient, pure: weights, clips, robust means, noise, an accountant."""

from adamd_service.aggregation.accountant import affords, check_accounting, epsilon, rounds_within
from adamd_service.aggregation.kernels.compiled import compile_aggregation
from adamd_service.aggregation.lanes import Lanes
from adamd_service.aggregation.pipeline import Contribution, Member, Outcome, Reason, aggregate_round
from adamd_service.aggregation.privacy import noise_seed
from adamd_service.aggregation.robust import distance_bytes
from adamd_service.aggregation.settings import (
    FIELDS,
    AggregationSettings,
    Privacy,
    aggregation_to_json,
    parse_aggregation,
)
from adamd_service.aggregation.staleness import staleness_factor
from adamd_service.aggregation.values import ArrayValues, Kind, PartialValues, SentValues, Span, Values

__all__ = [
    "FIELDS",
    "AggregationSettings",
    "ArrayValues",
    "Contribution",
    "Kind",
    "Lanes",
    "Member",
    "Outcome",
    "PartialValues",
    "Privacy",
    "Reason",
    "SentValues",
    "Span",
    "Values",
    "affords",
    "aggregate_round",
    "aggregation_to_json",
    "check_accounting",
    "compile_aggregation",
    "distance_bytes",
    "epsilon",
    "noise_seed",
    "parse_aggregation",
    "rounds_within",
    "staleness_factor",
]
