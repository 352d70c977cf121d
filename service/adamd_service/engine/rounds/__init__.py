"""Rounds: clients contribute, the server closes each round with one ordinary step."""

from adamd_service.engine.rounds.calls import (
    CLIENT,
    EXAMPLES_WORDS,
    LEAST_EXAMPLES,
    LONGEST_WAIT,
    MOST_EXAMPLES,
    ContributeCall,
    Contributed,
    EvaluateCall,
    Task,
)
from adamd_service.engine.rounds.service import RoundsService
from adamd_service.engine.rounds.tally import Tally

__all__ = [
    "CLIENT",
    "EXAMPLES_WORDS",
    "LEAST_EXAMPLES",
    "LONGEST_WAIT",
    "MOST_EXAMPLES",
    "ContributeCall",
    "Contributed",
    "EvaluateCall",
    "RoundsService",
    "Tally",
    "Task",
]
