"""Keeps a session's parameters in reused host memory beside the model's, and notices other writes to the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from adamd.errors import WrongDtype
from adamd.sansio.arrays import Flat, raw_bytes
from adamd.torch.parameters import BY_NAME, DTYPES, NARROW, ParameterPlace
from adamd.wire.layout import Layout

# A gradient of fewer bytes is copied next to its neighbours, which costs less than sending it by itself.
GATHER_BYTES = 256 * 1024
SAMPLE_ELEMENTS = 4096  # of a large parameter, compared before each step; other ones each time


@dataclass(frozen=True, slots=True)
class Segment:
    """Parameters first..last-1, at elements start..end-1. A ``large`` one's gradient may be sent uncopied."""

    large: bool
    first: int
    last: int
    start: int
    end: int


class Mirror:
    """The session's parameters as last read, in the model's dtype.

    Answers arrive in one flat host buffer that every step reuses. They are copied into the parameters only when they
    are complete, so an answer that breaks off leaves nothing in the model.

    Where all parameters are bfloat16, or all float16, answers come in that dtype: half of the bytes. Where the user has
    chosen a narrower dtype than the model's, they come into a buffer of that dtype, and `widen_answer` widens them.

    Args:
        places: all parameters, in the layout's order.
        layout: the session's.
        dtype: the session's.
        chosen: the dtype that the user chose for answers; None: the session's.

    Attributes:
        flat: the parameters in the model's dtype.
        answer_buffer: where `Session.step` writes its answer: ``flat``, or the buffer of the chosen dtype.
        answer_dtype: the dtype that answers come in; None: the session's.

    Raises:
        WrongDtype: the user chose another dtype than a narrow model's own.

    """

    def __init__(self, places: Sequence[ParameterPlace], layout: Layout, dtype: str, chosen: str | None = None) -> None:
        self._places = places
        self._tensors = [place.tensor for place in places]
        self._dtypes = [tensor.dtype for tensor in self._tensors]
        self._bounds = layout.bounds
        model_dtype = self._dtypes[0] if len(set(self._dtypes)) == 1 else torch.float32
        narrow = DTYPES[model_dtype] if model_dtype in NARROW else None
        if chosen not in (None, narrow) and narrow is not None:
            raise WrongDtype(f"answer_dtype is {chosen!r}; the model is {narrow}, and answers come as that already")
        self.answer_dtype = narrow or chosen
        self.flat = self._empty(model_dtype)
        self._views = self._split(self.flat)
        self._layout = layout
        self._chosen = None if narrow == self.answer_dtype else self._empty(BY_NAME[self.answer_dtype or dtype])
        buffer = self.flat if self._chosen is None else self._chosen
        self.answer_buffer = Flat(layout, self.answer_dtype or dtype, (_bytes(buffer),))
        self._segments = self._plan_segments()
        self._staging: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # for gradients that are copied
        self._look_count = 0
        self.remember_versions()

    def gather_gradients(self, present: Sequence[ParameterPlace]) -> Any:
        """Return the gradients for `Session.step`, in host memory and C order; large ones uncopied where possible.

        They are one `Flat` where every parameter has a gradient and all dtypes are equal; else tensors by name.
        """
        gradients = [place.tensor.grad.detach() for place in present]
        dtypes = {gradient.dtype for gradient in gradients} | set(self._dtypes)
        if len(gradients) == len(self._tensors) and len(dtypes) == 1:
            return self._gather(gradients)
        return {place.name: gradient.resolve_neg() for place, gradient in zip(present, gradients, strict=True)}

    def widen_answer(self) -> None:
        """Widen an answer that came in the chosen dtype."""
        if self._chosen is not None:
            self.flat.copy_(self._chosen)

    def write_to_model(self, touched: Sequence[ParameterPlace] | None = None) -> None:
        """Copy these parameters from the buffer into the model. None, or an answer in a chosen dtype, copies all."""
        if touched is None or self._chosen is not None or len(touched) == len(self._tensors):
            torch._foreach_copy_(self._tensors, self._views)
        else:
            views = dict(zip((place.name for place in self._places), self._views, strict=True))
            torch._foreach_copy_([place.tensor for place in touched], [views[place.name] for place in touched])
        self.remember_versions()

    def read_from_model(self) -> None:
        """Copy all parameters from the model, which equals the session, into the buffer."""
        torch._foreach_copy_(self._views, self._tensors)
        self.remember_versions()

    def remember_versions(self) -> None:
        """Remember the tensors' versions. Call it after all copies: views of one tensor share its version."""
        self._versions = self._current_versions()

    def suspects(self, *, everything: bool) -> list[ParameterPlace]:
        """Return the parameters that may have been written to since the last `remember_versions`, or all of them.

        A write through ``p.data`` leaves no trace in torch, so values are compared: all of a small parameter, a sample
        of a large one. Each call samples other elements.
        """
        if everything:
            return list(self._places)
        versions, self._look_count = self._current_versions(), self._look_count + 1
        rows = zip(self._places, self._views, self._versions, versions, strict=True)
        return [place for place, view, old, new in rows if old != new or self._differs(place.tensor, view)]

    def _differs(self, tensor: torch.Tensor, view: torch.Tensor) -> bool:
        """Compare a sample of a tensor's elements with the session's."""
        stride = tensor.numel() // SAMPLE_ELEMENTS
        if stride < 2 or not tensor.ndim:
            return not _equal(tensor, view)
        if tensor.is_contiguous():
            first = self._look_count * 997 % stride
            return not _equal(tensor.detach().view(-1)[first::stride], view.view(-1)[first::stride])
        stride = min(stride, tensor.shape[0])
        first = self._look_count * 997 % stride
        return not _equal(tensor[first::stride], view[first::stride])

    @property
    def views(self) -> list[torch.Tensor]:
        """The session's values of each parameter, in the layout's order."""
        return self._views

    def differing(self, suspects: Iterable[ParameterPlace]) -> list[ParameterPlace]:
        """Return those whose values differ from the buffer. A model that was swapped out and back does not."""
        suspect_ids = {id(place) for place in suspects}
        pairs = zip(self._places, self._views, strict=True)
        return [place for place, view in pairs if id(place) in suspect_ids and not _equal(place.tensor, view)]

    def converted(self) -> list[ParameterPlace]:
        """Return the parameters whose dtype has changed since the session was made."""
        pairs = zip(self._places, self._dtypes, strict=True)
        return [place for place, dtype in pairs if place.tensor.dtype != dtype]

    # -- flat buffers

    def _empty(self, dtype: torch.dtype) -> torch.Tensor:
        """Return one flat buffer, pinned for CUDA, which copies faster from and to pinned memory."""
        pinned = any(tensor.device.type == "cuda" for tensor in self._tensors)
        return torch.empty(self._bounds[-1], dtype=dtype, device="cpu", pin_memory=pinned)

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return [flat[start:end].view(t.shape) for t, (start, end) in zip(self._tensors, bounds, strict=True)]

    def _plan_segments(self) -> tuple[Segment, ...]:
        """Put neighbours with small gradients into one segment, and each large one into a segment of its own."""
        keys = [(index if tensor.nbytes >= GATHER_BYTES else -1) for index, tensor in enumerate(self._tensors)]
        segments = []
        for key, group in groupby(range(len(keys)), key=keys.__getitem__):
            members = list(group)
            first, last = members[0], members[-1] + 1
            segments.append(Segment(key >= 0, first, last, self._bounds[first], self._bounds[last]))
        return tuple(segments)

    def _gather(self, gradients: list[torch.Tensor]) -> Flat:
        pieces, copied = list[memoryview](), list[int]()
        for segment in self._segments:
            piece = gradients[segment.first] if segment.large and _plain(gradients[segment.first]) else None
            if piece is None:
                copied.extend(range(segment.first, segment.last))
                piece = self._stage()[0][segment.start : segment.end]
            pieces.append(_bytes(piece))
        if copied:
            views = self._stage()[1]
            torch._foreach_copy_([views[index] for index in copied], [gradients[index] for index in copied])
        return Flat(self._layout, DTYPES[self._dtypes[0]], tuple(pieces))

    def _stage(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if self._staging is None:
            flat = self._empty(self._dtypes[0])
            self._staging = flat, self._split(flat)
        return self._staging

    def _current_versions(self) -> list[tuple[int, int]]:
        """Return each tensor's version, which an in-place write changes, and its address."""
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]


def _plain(gradient: torch.Tensor) -> bool:
    return gradient.device.type == "cpu" and gradient.is_contiguous() and not gradient.is_neg()


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's bytes, uncopied. bfloat16 goes as int16, since NumPy has no bfloat16."""
    return raw_bytes((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _equal(tensor: torch.Tensor, view: torch.Tensor) -> bool:
    return tensor.shape == view.shape and bool(torch.equal(tensor.detach().cpu(), view.to(tensor.dtype)))
