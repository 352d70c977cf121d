"""What surrounds every optimizer's text: before it a prelude on the gradient, after it a postlude on the parameters.

Each part is a recurrence of its own. It is there where its scalars are among the recorded ones and its state arrays
among the session's, so that a replay decides alike, and a session without it runs the kernel of the bare text.
"""

from collections.abc import Collection, Mapping
from typing import Final

from adamd_service.optim.family.optimizer import Hyper, Scalar
from adamd_service.optim.recurrence import Operand, Text, signature


def scale(g: Operand, /, sign: Operand) -> tuple[Operand, ...]:
    """G = sign g, where sign is -1 if the objective is maximized, else 1: exact."""
    g = sign * g
    return (g,)


PRELUDE: Final[tuple[Text, ...]] = (scale,)  # on g, in this order
POSTLUDE: Final[tuple[Text, ...]] = ()  # on p, in this order
# State arrays that a postlude keeps: (name in its text, name of the state array).
ARRAYS: Final[tuple[tuple[str, str], ...]] = ()
SCHEMA: Final[Mapping[str, Scalar]] = {"sign": Scalar(-1.0, 1.0, "maximize", "the gradient's sign")}
REQUIRED: Final = ("sign",)  # scalars that every update has; the others come with their settings


def scalars(hyper: Hyper) -> dict[str, float]:
    """The exact scalars of the parts that these settings ask for."""
    return {"sign": -1.0 if hyper.maximize else 1.0}


def present(hyper: Hyper) -> tuple[str, ...]:
    """The state arrays, in ARRAYS' order, that these settings ask for."""
    del hyper
    return ()


def parts(texts: tuple[Text, ...], scalars: Collection[str], arrays: Collection[str]) -> tuple[Text, ...]:
    """Those of `texts` for which everything is there. scalars: names recorded; arrays: names in the texts."""
    known = {"p", "g", "tiny", "zero", *scalars, *arrays}
    return tuple(
        text for text in texts if known.issuperset(signature(text).arrays) and known.issuperset(signature(text).scalars)
    )
