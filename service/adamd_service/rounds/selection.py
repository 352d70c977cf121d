"""Draws who is asked in a round, from the recorded seed: the same on every replica."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TRAIN, EVALUATE = 0, 1  # what is drawn, so that both drawings of a round differ


def drawn(known: Sequence[str], count: int, seed: int, number: int, tries: int, what: int) -> tuple[str, ...]:
    """Return ``count`` of the known clients, sorted, each as likely as any other; all of them where they are fewer.

    Args:
        known: clients, in any order.
        count: how many are wanted.
        seed: the session's, 0 or more.
        number: the round.
        tries: how often it was cancelled: then others are asked.
        what: TRAIN or EVALUATE.

    The generator is NumPy's PCG64, seeded by all four numbers.

    """
    names = sorted(known)
    if count >= len(names):
        return tuple(names)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, tries, what])))
    places = generator.choice(len(names), size=count, replace=False)
    return tuple(names[place] for place in sorted(places.tolist()))
