"""Rounds: clients contribute, the server closes each round with one ordinary step."""

from adamd_service.engine.rounds.calls import CLIENT, LONGEST_WAIT, ContributeCall, Contributed, EvaluateCall, Task
from adamd_service.engine.rounds.service import RoundsService
from adamd_service.engine.rounds.tally import Tally

__all__ = ["CLIENT", "LONGEST_WAIT", "ContributeCall", "Contributed", "EvaluateCall", "RoundsService", "Tally", "Task"]
