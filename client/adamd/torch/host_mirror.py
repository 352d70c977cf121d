"""What travels between a model's tensors and its session: reused host memory, and a watch on who else writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from adamd.errors import WrongDtype
from adamd.sansio.arrays import Flat, raw_bytes
from adamd.torch.parameters import BY_NAME, DTYPES, NARROW, Place
from adamd.wire.layout import Layout

# Bytes of a gradient below which a copy of it beside its neighbours costs less than sending it by itself.
GATHERED = 256 * 1024
SAMPLED = 4096  # elements of a large parameter that are compared before each step, others each time


@dataclass(frozen=True, slots=True)
class Run:
    """Parameters first..last-1, which lie at elements start..end-1; ``large`` is one whose gradient may go uncopied."""

    large: bool
    first: int
    last: int
    start: int
    end: int


class Mirror:
    """The session's parameters as last read, beside the model's, which are the same or narrower.

    Where all parameters are bfloat16, or all float16, answers come as that already: half of the bytes. Where the user
    has chosen a narrower dtype for them than the model's, they come into a buffer of that, and `landed` widens them.

    Answers come into one flat host buffer, which is used again with every step, and are copied into the parameters only
    when they are whole: an answer that breaks off must not leave half of it in the model.

    Args:
        places: all parameters, in the layout's order.
        layout: the session's.
        dtype: the session's.
        chosen: the dtype in which the user wants answers; None: the session's.

    Attributes:
        flat: the buffer.
        room: the same, or that of the chosen dtype, for `Session.step`.
        answer: the dtype that answers have to come in; None: the session's.

    Raises:
        WrongDtype: the user wants answers in another dtype than a narrow model's own.

    """

    def __init__(self, places: Sequence[Place], layout: Layout, dtype: str, chosen: str | None = None) -> None:
        self._places = places
        self._tensors = [place.tensor for place in places]
        self._dtypes = [tensor.dtype for tensor in self._tensors]
        self._bounds = layout.bounds
        one = self._dtypes[0] if len(set(self._dtypes)) == 1 else torch.float32
        own = DTYPES[one] if one in NARROW else None
        if chosen not in (None, own) and own is not None:
            raise WrongDtype(f"answer_dtype is {chosen!r}; the model is {own}, and answers come as that already")
        self.answer = own or chosen
        self.flat = self._empty(one)
        self._views = self._split(self.flat)
        self._layout = layout
        self._narrow = None if own == self.answer else self._empty(BY_NAME[self.answer or dtype])
        room = self.flat if self._narrow is None else self._narrow
        self.room = Flat(layout, self.answer or dtype, (_bytes(room),))
        self._runs = self._planned()
        self._staged: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # made when it is needed
        self._looks = 0
        self.mark()

    def gradients(self, present: Sequence[Place]) -> Any:
        """Return gradients in host memory and C order: large ones their own where it is that, else a reused copy.

        Where all are there in one dtype, they are one `Flat`; else tensors by name.
        """
        found = [place.tensor.grad.detach() for place in present]
        kinds = {gradient.dtype for gradient in found} | set(self._dtypes)
        if len(found) == len(self._tensors) and len(kinds) == 1:
            return self._gathered(found)
        return {place.name: gradient.resolve_neg() for place, gradient in zip(present, found, strict=True)}

    def landed(self) -> None:
        """Widen an answer that came in the dtype chosen for it."""
        if self._narrow is not None:
            self.flat.copy_(self._narrow)

    def write(self, touched: Sequence[Place] | None = None) -> None:
        """Copy these parameters from the buffer into the model; None copies all, and so does an answer that rounds."""
        if touched is None or self._narrow is not None or len(touched) == len(self._tensors):
            torch._foreach_copy_(self._tensors, self._views)
        else:
            views = dict(zip((place.name for place in self._places), self._views, strict=True))
            torch._foreach_copy_([place.tensor for place in touched], [views[place.name] for place in touched])
        self.mark()

    def read(self) -> None:
        """Copy all parameters from the model into the buffer, where the session has them so."""
        torch._foreach_copy_(self._views, self._tensors)
        self.mark()

    def mark(self) -> None:
        """Remember the model's tensors as they are. After all copies: views of one tensor share its version."""
        self._marks = self._marked()

    def suspects(self, *, every: bool) -> list[Place]:
        """Return the parameters that someone wrote to since the last `mark`, or all of them.

        A write through ``p.data`` leaves no trace in torch: it is seen by its values, in small parameters always, in
        large ones where it touches an element that is looked at now, or as many neighbours as lie between two of these.
        """
        if every:
            return list(self._places)
        now, self._looks = self._marked(), self._looks + 1
        four = zip(self._places, self._views, self._marks, now, strict=True)
        return [place for place, view, mark, found in four if mark != found or self._differs(place.tensor, view)]

    def _differs(self, tensor: torch.Tensor, view: torch.Tensor) -> bool:
        """Compare some elements, others at each look."""
        stride = tensor.numel() // SAMPLED
        if stride < 2 or not tensor.ndim:
            return not _same(tensor, view)
        if tensor.is_contiguous():
            first = self._looks * 997 % stride
            return not _same(tensor.detach().view(-1)[first::stride], view.view(-1)[first::stride])
        stride = min(stride, tensor.shape[0])
        first = self._looks * 997 % stride
        return not _same(tensor[first::stride], view[first::stride])

    @property
    def views(self) -> list[torch.Tensor]:
        """The session's values of each parameter, in the layout's order."""
        return self._views

    def differ(self, suspects: Iterable[Place]) -> list[Place]:
        """Return those whose values are not the buffer's. A model that was swapped out and back again is the same."""
        asked = {id(place) for place in suspects}
        pairs = zip(self._places, self._views, strict=True)
        return [place for place, view in pairs if id(place) in asked and not _same(place.tensor, view)]

    def converted(self) -> list[Place]:
        """Return the parameters that are of another dtype than when the session was made."""
        pairs = zip(self._places, self._dtypes, strict=True)
        return [place for place, dtype in pairs if place.tensor.dtype != dtype]

    # -- flat buffers

    def _empty(self, dtype: torch.dtype) -> torch.Tensor:
        """Return one flat buffer. A device copies faster from and to pinned memory."""
        pinned = any(tensor.device.type == "cuda" for tensor in self._tensors)
        return torch.empty(self._bounds[-1], dtype=dtype, device="cpu", pin_memory=pinned)

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return [flat[start:end].view(t.shape) for t, (start, end) in zip(self._tensors, bounds, strict=True)]

    def _planned(self) -> tuple[Run, ...]:
        """Put neighbours whose gradients are small into one run, and each large one into a run of its own."""
        keys = [(index if tensor.nbytes >= GATHERED else -1) for index, tensor in enumerate(self._tensors)]
        runs = []
        for key, group in groupby(range(len(keys)), key=keys.__getitem__):
            members = list(group)
            first, last = members[0], members[-1] + 1
            runs.append(Run(key >= 0, first, last, self._bounds[first], self._bounds[last]))
        return tuple(runs)

    def _gathered(self, found: list[torch.Tensor]) -> Flat:
        pieces, copied = list[memoryview](), list[int]()
        for run in self._runs:
            own = found[run.first] if run.large and _plain(found[run.first]) else None
            if own is None:
                copied.extend(range(run.first, run.last))
                own = self._stage()[0][run.start : run.end]
            pieces.append(_bytes(own))
        if copied:
            views = self._stage()[1]
            torch._foreach_copy_([views[index] for index in copied], [found[index] for index in copied])
        return Flat(self._layout, DTYPES[self._dtypes[0]], tuple(pieces))

    def _stage(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if self._staged is None:
            flat = self._empty(self._dtypes[0])
            self._staged = flat, self._split(flat)
        return self._staged

    def _marked(self) -> list[tuple[int, int]]:
        """Return what changes when a tensor is written to in place (its version) or gets other memory."""
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]


def _plain(gradient: torch.Tensor) -> bool:
    return gradient.device.type == "cpu" and gradient.is_contiguous() and not gradient.is_neg()


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's bytes, uncopied. NumPy has no bfloat16: there it is its bits."""
    return raw_bytes((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _same(tensor: torch.Tensor, view: torch.Tensor) -> bool:
    return tensor.shape == view.shape and bool(torch.equal(tensor.detach().cpu(), view.to(tensor.dtype)))
