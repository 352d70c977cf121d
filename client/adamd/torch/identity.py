"""Detects tensors in another order than the session's, where the session has no names for them.

A session whose parameters had no names knows them by position, as group.index. Tensors of one shape could swap places
unnoticed. Their values show it in most cases: they equal the session's, or correlate with them (trained weights stay
correlated with their start, and the same seed makes the same start), or with those of another position.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adamd.errors import WrongLayout
from adamd.torch.parameters import ParameterPlace

SAMPLE_ELEMENTS = 4096  # of a tensor that are compared
SURE_DEVIATIONS = 8.0  # a correlation of more standard deviations is no chance, even among millions of pairs


def by_position(names: Sequence[str]) -> bool:
    """Say whether the session was made with tensors without names."""
    return all(re.fullmatch(r"\d+\.\d+", name) for name in names)


@dataclass(frozen=True, slots=True)
class Doubt:
    """How many tensors could be in each other's place: their values do not show the order."""

    tensors: int


def compare(places: Sequence[ParameterPlace], session_values: Sequence[torch.Tensor]) -> Doubt | None:
    """Compare tensors with a session's, position by position; return None where their order is plausible.

    Args:
        places: the optimizer's tensors, named by their positions.
        session_values: the session's values at the same positions.

    Raises:
        WrongLayout: a tensor has the values of another position.

    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        alike[tuple(place.tensor.shape)].append(index)
    doubtful, confirmed = 0, False
    for members in alike.values():
        if len(members) < 2 or not places[members[0]].tensor.numel():
            continue
        own = torch.stack([_sampled(places[index].tensor) for index in members])
        saved = torch.stack([_sampled(session_values[index]) for index in members])
        if torch.equal(own, saved):
            confirmed = True
            continue
        pair = _misplaced(own, saved)
        if pair is not None:
            place, other = (places[members[number]] for number in pair)
            raise WrongLayout(
                f"{place} has the values of the session's {other.name!r}, or what became of them: the tensors are "
                "given in another order than when the session was made, and layers would change places. Give them in "
                "the same order; a session that is made with model.named_parameters() knows them by name"
            )
        if _recognised(own, saved):
            confirmed = True
        else:
            doubtful += len(members)
    return Doubt(doubtful) if doubtful and not confirmed else None


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sample of a tensor's elements, at the same places for every tensor of its shape."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE_ELEMENTS))].to("cpu", torch.float64)


def _misplaced(own: torch.Tensor, saved: torch.Tensor) -> tuple[int, int] | None:
    """Return (i, j) where our tensor i has the values of the session's j, and of no other; None where there is none."""
    score, noise = _likeness(own, saved)
    diagonal = score.diagonal()
    certain = (score > noise) & (score - diagonal.unsqueeze(1) > noise) & (score - diagonal.unsqueeze(0) > noise)
    same = torch.zeros_like(certain)
    perhaps = (own[:, :1] == saved[:, 0]) & (own[:, -1:] == saved[:, -1])
    for index, other in perhaps.nonzero().tolist():  # a correlation of few elements means nothing
        same[index, other] = torch.equal(own[index], saved[other])
    alone = same & ~same.diagonal().unsqueeze(1) & ~same.diagonal().unsqueeze(0)
    pairs = (certain | alone).nonzero()
    return (int(pairs[0][0]), int(pairs[0][1])) if len(pairs) else None


def _recognised(own: torch.Tensor, saved: torch.Tensor) -> bool:
    """Say whether one of our tensors is like the session's in its own place, and like no other."""
    score, noise = _likeness(own, saved)
    diagonal = score.diagonal().clone()
    others = score - torch.diag(torch.full_like(diagonal, 3.0))
    return bool(((diagonal > noise) & (diagonal - others.amax(0) > noise) & (diagonal - others.amax(1) > noise)).any())


def _likeness(own: torch.Tensor, saved: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the correlation of each of our tensors with each of the session's, and the bound of chance."""
    centred, saved_centred = _centred(own), _centred(saved)
    return centred @ saved_centred.T, SURE_DEVIATIONS / float(own.shape[1]) ** 0.5


def _centred(values: torch.Tensor) -> torch.Tensor:
    moved = values - values.mean(1, keepdim=True)
    return moved / moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
