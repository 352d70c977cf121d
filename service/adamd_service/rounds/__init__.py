"""Rounds of federated training, pure: settings, the rules, who is asked, and the records."""

from adamd_service.rounds.documents import (
    Counted,
    Evaluation,
    Failure,
    Frozen,
    KeptContribution,
    LeftOut,
    MemberName,
    RoundDocument,
    RoundEvent,
    Standing,
)
from adamd_service.rounds.settings import RoundsSettings, parse_rounds, with_config

__all__ = [
    "Counted",
    "Evaluation",
    "Failure",
    "Frozen",
    "KeptContribution",
    "LeftOut",
    "MemberName",
    "RoundDocument",
    "RoundEvent",
    "RoundsSettings",
    "Standing",
    "parse_rounds",
    "with_config",
]
