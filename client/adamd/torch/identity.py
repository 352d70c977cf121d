"""Whether the tensors that resume a session without names are its own: by position alone, layers may change places.

A session whose parameters had no names knows them as group.index. Which other tensor of the same shape stands there
cannot be known for sure, but much can be seen in the values: those of the session itself, those that the same seed made
(training moves weights, and leaves them correlated with where they began), or those of another position.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adamd.errors import WrongLayout
from adamd.torch.parameters import Place

SAMPLE = 4096  # elements of a tensor that are looked at
SURE = 8.0  # standard deviations: what is no chance among millions of pairs


def by_position(names: Sequence[str]) -> bool:
    """Say whether a session's tensors had no names when it was made."""
    return all(re.fullmatch(r"\d+\.\d+", name) for name in names)


@dataclass(frozen=True, slots=True)
class Doubt:
    """How many tensors could stand in each other's place, without a sign in their values that they do not."""

    tensors: int


def compare(places: Sequence[Place], theirs: Sequence[torch.Tensor]) -> Doubt | None:
    """Compare tensors with a session's, position by position; None where nothing speaks against their order.

    Args:
        places: the tensors that are given, under the names of their positions.
        theirs: the session's values at the same positions.

    Raises:
        WrongLayout: one has the values of another position: they are in another order.

    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        alike[tuple(place.tensor.shape)].append(index)
    open_ones, confirmed = 0, False
    for members in alike.values():
        if len(members) < 2 or not places[members[0]].tensor.numel():
            continue
        mine = torch.stack([_sampled(places[index].tensor) for index in members])
        its = torch.stack([_sampled(theirs[index]) for index in members])
        if torch.equal(mine, its):
            confirmed = True
            continue
        found = _misplaced(mine, its)
        if found is not None:
            here, there = (places[members[number]] for number in found)
            raise WrongLayout(
                f"{here} has the values of the session's {there.name!r}, or what became of them: the tensors are "
                "given in another order than when the session was made, and layers would change places. Give them in "
                "the same order; a session that is made with model.named_parameters() knows them by name"
            )
        if _recognised(mine, its):
            confirmed = True
        else:
            open_ones += len(members)
    return Doubt(open_ones) if open_ones and not confirmed else None


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return some elements of a tensor, the same places of each of its shape."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].to("cpu", torch.float64)


def _misplaced(mine: torch.Tensor, its: torch.Tensor) -> tuple[int, int] | None:
    """Return which of ours has another's values (which?) while that other's own is no better explained."""
    like, noise = _likeness(mine, its)
    own = like.diagonal()
    certain = (like > noise) & (like - own.unsqueeze(1) > noise) & (like - own.unsqueeze(0) > noise)
    same = torch.zeros_like(certain)
    perhaps = (mine[:, :1] == its[:, 0]) & (mine[:, -1:] == its[:, -1])
    for here, there in perhaps.nonzero().tolist():  # of a few elements the likeness tells nothing, equality does
        same[here, there] = torch.equal(mine[here], its[there])
    alone = same & ~same.diagonal().unsqueeze(1) & ~same.diagonal().unsqueeze(0)
    found = (certain | alone).nonzero()
    return (int(found[0][0]), int(found[0][1])) if len(found) else None


def _recognised(mine: torch.Tensor, its: torch.Tensor) -> bool:
    """Say whether one of ours is like the one in its own place, and like no other."""
    like, noise = _likeness(mine, its)
    own = like.diagonal().clone()
    others = like - torch.diag(torch.full_like(own, 3.0))
    return bool(((own > noise) & (own - others.amax(0) > noise) & (own - others.amax(1) > noise)).any())


def _likeness(mine: torch.Tensor, its: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the correlation of each of ours with each of the session's, and what chance may make of it."""
    ours, theirs = _centred(mine), _centred(its)
    return ours @ theirs.T, SURE / float(mine.shape[1]) ** 0.5


def _centred(values: torch.Tensor) -> torch.Tensor:
    moved = values - values.mean(1, keepdim=True)
    return moved / moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
