"""Notes progress with each step, and derives advice from it: stop rules and warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adamd.errors import Damaged
from adamd.wire.dtypes import storage
from adamd_service.optim import (
    Encoded,
    Progress,
    Settings,
    State,
    Update,
    advice,
    bounded,
    gradient_norm,
    progress_from_json,
    projected,
    remedy,
    stall_words,
    stalls,
)
from adamd_service.records import Head


@dataclass(frozen=True, slots=True)
class StepNotes:
    """What a session will remember after a step, and whether the parameters before it are the best ones."""

    progress: Progress
    best: bool


NO_PROGRESS = Progress()


def progress_of(head: Head) -> Progress:
    """Return what a session remembers.

    Raises:
        Damaged: the store's text is none.

    """
    if not head.progress:
        return NO_PROGRESS
    try:
        return progress_from_json(head.progress)
    except ValueError as error:
        raise Damaged(f"the head of session {head.spec.id} in the store is damaged ({error})") from None


def notes_of(
    head: Head,
    number: int,
    settings: Settings,
    state: State,
    gradient: Encoded,
    metrics: Mapping[str, Any],
    updates: tuple[Update, ...],
    fetch: Callable[[State], object],
) -> StepNotes:
    """Return what a session remembers after a step that is about to be committed.

    Args:
        head: where it builds on.
        number: the step's.
        settings: that count with it.
        state: before it.
        gradient: whole and checked.
        metrics: what the client measured at the parameters before it.
        updates: with the scalars that it will use.
        fetch: brings the state's arrays to the host, where a rule looks at them.

    """
    before = after = progress_of(head)
    largest = gradient.largest
    loss, plateau = metrics.get("loss"), settings.stop.relative_loss
    if settings.of_loss and loss is not None:
        after = after.told(number, float(loss), 0.0 if plateau is None else plateau.tolerance)
    dtype = storage(head.spec.dtype)
    if settings.stop.gradient_norm is not None:
        if bounded(state, updates):
            fetch(state)
            gradient = projected(state, gradient, updates, head.spec.layout.bounds)
        norm = gradient_norm(gradient, dtype)
        after = after.measured(norm) if np.isfinite(norm) else after
    indicators = stalls(largest, (update.scalars.named for update in updates), dtype, number, before.stalls)
    if indicators or before.stalls:
        after = replace(after, stalls=indicators)
    return StepNotes(after, settings.keep_best and after.lowest != before.lowest)


@dataclass(frozen=True, slots=True)
class StallAdvice:
    """One warning: its name, its words, and the eps that would help (None: no eps does)."""

    code: str
    detail: str
    eps: float | None


@dataclass(frozen=True, slots=True)
class Advice:
    """The stop rule that holds, if one does, and a session's warnings."""

    stop: str | None = None
    warnings: tuple[StallAdvice, ...] = ()


NOTHING = Advice()


def advice_of(head: Head, settings: Settings, step: int | None = None) -> Advice:
    """Return what to tell with a session as it stands; ``step`` is its step, where that is not the head's."""
    if not head.progress and settings.stop.max_steps is None:
        return NOTHING
    number = head.step if step is None else step
    progress, dtype = progress_of(head), storage(head.spec.dtype)
    eps = remedy(progress.stalls, dtype) if progress.stalls else None
    indicators = tuple(
        StallAdvice(name, stall_words(name, progress.stalls, dtype), eps) for name in sorted(progress.stalls)
    )
    return Advice(advice(settings.stop, number, progress), indicators)
