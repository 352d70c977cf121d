"""An optimizer with everything decided: what a kernel runs, and what a record's scalars mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from adamd_service.optim.recurrence import wrapping
from adamd_service.optim.recurrence.language import Recurrence, Text, join, signature, specialise
from adamd_service.optim.recurrence.optimizer import KNOWN, Optimizer, Scalar

CONSTANTS = "tiny", "zero"  # of the dtype: its smallest normal number, and 0


@dataclass(frozen=True, slots=True)
class Part:
    """A text with its choices decided, as the reference runs it."""

    text: Text
    choices: Mapping[str, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One variant of an optimizer. There is one object for each (`rule_of`), so it is its own key in a cache.

    scalars: the recorded ones, in the records' order. arrays: the state arrays that the session has, by their names in
    the texts, in the state's order. parts: the prelude, the optimizer's own text, the postlude. recurrence: all of them
    joined. watched: results whose NaN or infinity means that the session has diverged.
    """

    optimizer: Optimizer
    scalars: tuple[str, ...]
    arrays: tuple[str, ...]
    parts: tuple[Part, ...]
    recurrence: Recurrence
    watched: tuple[str, ...]


def rule_for(optimizer: Optimizer, scalars: Mapping[str, float], arrays: tuple[str, ...]) -> Rule:
    """The variant that these (rounded) scalars and state arrays ask for."""
    return rule_of(optimizer, tuple(scalars), arrays, tuple(optimizer.choices(scalars, arrays).items()))


@cache
def rule_of(
    optimizer: Optimizer, scalars: tuple[str, ...], arrays: tuple[str, ...], choices: tuple[tuple[str, bool], ...]
) -> Rule:
    """The variant with these scalars, state arrays and choices. Raises TextError where texts do not fit together."""
    own = {array: name for name, array in (*optimizer.arrays, *wrapping.ARRAYS)}
    names = tuple(own[array] for array in arrays)
    before = wrapping.parts(wrapping.PRELUDE, scalars, names)
    after = wrapping.parts(wrapping.POSTLUDE, scalars, names)
    made = (
        *(Part(text, {}) for text in before),
        Part(optimizer.text, dict(choices)),
        *(Part(text, {}) for text in after),
    )
    recurrence = join([specialise(part.text, part.choices) for part in made])
    watched = ("p", *(own[array] for array in optimizer.nonnegative if own[array] in recurrence.results))
    return Rule(optimizer, scalars, names, made, recurrence, watched)


@cache
def required(optimizer: Optimizer) -> tuple[str, ...]:
    """The scalars that each record of this optimizer has, in order."""
    return (*wrapping.REQUIRED, *(name for name in signature(optimizer.text).scalars if name not in CONSTANTS))


@cache
def schema(optimizer: Optimizer) -> Mapping[str, Scalar]:
    """What each scalar of this optimizer may be, by name; those that may be left out are among them."""
    known = {**KNOWN, **optimizer.schema}
    anything = Scalar(-float("inf"), float("inf"), "lr", "a scalar")
    return {**{name: known.get(name, anything) for name in required(optimizer)}, **wrapping.SCHEMA}
