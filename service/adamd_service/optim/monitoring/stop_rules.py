"""Evaluates the stop rules after a step; returns the first one that holds. They only advise. Pure.

    target_loss      lowest loss <= target_loss
    gradient_norm    norm <= gradient_norm * first norm,    of the last step's gradient and of the first one's
    relative_loss    the last `window` losses were no progress, where a loss is progress if it lies below the
                     reference by more than tolerance * |reference|, and then is the next reference
    max_steps        step >= max_steps

The norm is that of `norm.gradient_norm`, over all tensors present; where a session has bounds, of the gradient that
they leave: an element that would push its parameter out of its bound counts as zero. A loss is the metric "loss" of a
step; a step that tells none is no loss. A server never refuses a step for such a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, ValidationError

from adamd_service.optim.monitoring.progress import Progress
from adamd_service.optim.validation import (
    SettingsError,
    Strict,
    first_error,
    not_null,
    number,
    shown,
    suggestion,
    whole,
)

FRACTION = "a finite number above 0, at most 1"
COUNT = "a whole number of steps, 1 or more"
WANTED: Final[Mapping[str, str]] = {
    "max_steps": COUNT,
    "gradient_norm": FRACTION,
    "relative_loss": 'an object such as {"window": 50, "tolerance": 1e-4}',
    "relative_loss.window": COUNT,
    "relative_loss.tolerance": "a finite number, 0 or more and below 1",
    "target_loss": "a finite number",
}


Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=2**53)]
Number = Annotated[float, BeforeValidator(number)]


class RelativeLoss(Strict):
    """See above."""

    window: Count
    tolerance: Annotated[Number, Field(ge=0, lt=1)] = 0.0


class Stop(Strict):
    """The rules of a session; None is off."""

    max_steps: Annotated[Count | None, BeforeValidator(not_null)] = None
    gradient_norm: Annotated[Annotated[Number, Field(gt=0, le=1)] | None, BeforeValidator(not_null)] = None
    relative_loss: Annotated[RelativeLoss | None, BeforeValidator(not_null)] = None
    target_loss: Annotated[Number | None, BeforeValidator(not_null)] = None

    @property
    def of_loss(self) -> bool:
        """Some rule looks at the losses."""
        return self.relative_loss is not None or self.target_loss is not None


def parse_stop(raw: object) -> Stop:
    """Rules from decoded JSON; an empty object is none. Raises SettingsError at the first thing that is wrong."""
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise SettingsError("", f'is {shown(raw)}; wanted an object such as {{"max_steps": 1000}}, or {{}} for no rule')
    try:
        return Stop.model_validate(raw)
    except ValidationError as error:
        raise _explain(*first_error(error)) from None


def advice(stop: Stop, step: int, progress: Progress) -> str | None:
    """Say which rule holds after a step: the first of those above; None where none does."""
    lowest, plateau = progress.lowest, stop.relative_loss
    if stop.target_loss is not None and lowest is not None and lowest <= stop.target_loss:
        return "target_loss"
    share, norm, first = stop.gradient_norm, progress.norm, progress.first_norm
    if share is not None and norm is not None and first is not None and norm <= share * first:
        return "gradient_norm"
    if plateau is not None and progress.stale >= plateau.window:
        return "relative_loss"
    if stop.max_steps is not None and step >= stop.max_steps:
        return "max_steps"
    return None


def _explain(place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    path = ".".join(str(part)[:64] for part in place).encode(errors="backslashreplace").decode()
    if kind == "extra_forbidden":
        model: Any = RelativeLoss if len(place) > 1 else Stop
        hint = suggestion(str(place[-1]), model.model_fields, {})
        return SettingsError(path, f"is no rule; {hint}" if len(place) == 1 else f"is unknown; {hint}")
    if kind == "missing":
        return SettingsError(path, f"is missing; wanted {WANTED[path]}")
    return SettingsError(path, f"is {shown(came)}; wanted {WANTED.get(path, 'an object whose keys are names')}")
