"""What travels between a model's tensors and its session: reused host memory, and a watch on who else writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch

from adamd._torch_layout import Place

# Bytes of a gradient below which a copy of it beside its neighbours costs less than sending it by itself.
GATHERED = 256 * 1024


class Mirror:
    """The session's parameters as last read, beside the model's.

    Answers come into one flat host buffer, which is used again with every step, and are copied into the parameters only
    when they are whole: an answer that breaks off must not leave half of it in the model.

    Attributes:
        out: the buffer by names, for `Session.step`.

    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self.out = _arrays(places)
        self._views = {name: torch.from_numpy(array) for name, array in self.out.items()}
        self._staged: dict[str, Any] | None = None
        self._marks = [_mark(place.tensor) for place in places]

    def gradients(self, present: Iterable[Place]) -> dict[str, Any]:
        """Return gradients in host memory and C order: large ones their own where it is that, else a reused copy."""
        return {place.name: self._hosted(place) for place in present}

    def _hosted(self, place: Place) -> Any:
        gradient = place.tensor.grad.detach()
        plain = gradient.device.type == "cpu" and gradient.is_contiguous()
        if (plain and gradient.nbytes >= GATHERED) or gradient.dtype != place.tensor.dtype:
            return gradient.resolve_neg()  # of another dtype: the session says whether it widens
        if self._staged is None:
            self._staged = _arrays(self._places)
        target = self._staged[place.name]
        torch.from_numpy(target).copy_(gradient)
        return target

    def write(self, touched: Iterable[Place]) -> None:
        """Copy these parameters from the buffer into the model."""
        for place in touched:
            place.tensor.copy_(self._views[place.name])
        self.mark()

    def read(self) -> None:
        """Copy all parameters from the model into the buffer, where the session has them so."""
        for place in self._places:
            self._views[place.name].copy_(place.tensor)
        self.mark()

    def mark(self) -> None:
        """Remember the model's tensors as they are. After all copies: views of one tensor share its version."""
        self._marks = [_mark(place.tensor) for place in self._places]

    def suspects(self, *, every: bool) -> list[Place]:
        """Return the parameters that someone wrote to since the last `mark`, or all of them."""
        pairs = zip(self._places, self._marks, strict=True)
        return [place for place, mark in pairs if every or _mark(place.tensor) != mark]

    def differ(self, suspects: Iterable[Place]) -> list[Place]:
        """Return those whose values are not the buffer's. A model that was swapped out and back again is the same."""
        return [place for place in suspects if not _same(place.tensor, self._views[place.name])]


def _arrays(places: Sequence[Place]) -> dict[str, Any]:
    """Return one flat buffer as NumPy arrays by names. A device copies faster from and to pinned memory."""
    sizes = [place.tensor.numel() for place in places]
    pinned = any(place.tensor.device.type == "cuda" for place in places)
    flat = torch.empty(sum(sizes), dtype=places[0].tensor.dtype, device="cpu", pin_memory=pinned).numpy()
    ends = list(accumulate(sizes))
    return {
        place.name: flat[end - size : end].reshape(tuple(place.tensor.shape))
        for place, size, end in zip(places, sizes, ends, strict=True)
    }


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what changes when a tensor is written to in place (autograd's version counter) or gets other memory."""
    return tensor._version, tensor.data_ptr()


def _same(tensor: torch.Tensor, view: torch.Tensor) -> bool:
    alike = tensor.dtype == view.dtype and tensor.shape == view.shape
    return bool(alike and torch.equal(tensor.detach().cpu(), view))
