"""Orchestrates sessions: lock, load, decide, commit, apply, answer."""

from adamd_service.advice import Advice, advice_of
from adamd_service.engine.admission import Limits
from adamd_service.engine.calls import (
    Answer,
    CreateCall,
    Exported,
    Gradient,
    RequestBody,
    SavedState,
    SessionView,
    StepCall,
)
from adamd_service.engine.directory import ASKED
from adamd_service.engine.engine import Engine
from adamd_service.engine.readiness import LIFE
from adamd_service.engine.watching import WatchEvent
from adamd_service.engine.workers import to_its_end

__all__ = [
    "ASKED",
    "LIFE",
    "Advice",
    "Answer",
    "CreateCall",
    "Engine",
    "Exported",
    "Gradient",
    "Limits",
    "RequestBody",
    "SavedState",
    "SessionView",
    "StepCall",
    "WatchEvent",
    "advice_of",
    "to_its_end",
]
