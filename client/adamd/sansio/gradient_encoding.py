"""Encoder: writes a session's gradients, and keeps what lossy encodings drop (error feedback). Pure.

    sent_t = C(g_t + e_t),        e_{t+1} = (g_t + e_t) - decode(sent_t),        e_1 = 0

C rounds or leaves out (`adamd.wire.encodings`); e is what it dropped, and goes along with the next gradient, so that
nothing is lost for good. Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1. It is
kept in the session's dtype, and moves on only with a step that was acknowledged: a repeated step sends the same bytes,
and a gradient that was refused has no part in it. Where an answer was lost for good, and the script goes on from the
parameters instead of repeating the step, nobody can tell whether e_t was applied: e is dropped, since it must not count
twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from adamd.errors import AdamdError, BadGradient, InvalidRequest, WrongDtype, WrongLayout
from adamd.sansio import array_checks, arrays
from adamd.sansio.arrays import Flat, TensorPart, raw_bytes
from adamd.sansio.operations import Body, body_of
from adamd.wire import encodings
from adamd.wire.dtypes import Array, check_widens, narrow, storage, widen
from adamd.wire.layout import Layout, Tensor

_SLICE = 65_536  # elements decoded at once, while they are in the cache


@dataclass(frozen=True, slots=True)
class TopK:
    """Send only the elements of the largest magnitude, ``fraction`` of all of them (0 to 1], one at least.

    The rest counts as zero at the server and is kept back here, for the steps to come.
    """

    __module__ = "adamd"  # pickles name the public place

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InvalidRequest(f"TopK({self.fraction!r}): wanted a fraction in (0, 1], as 0.01 for one in a hundred")


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A gradient, or one tensor of it, of which only some elements are given. It is sent as it is, nothing is rounded.

    Attributes:
        indices: whole numbers, in any order, none twice: places in the flattened tensor; or, where ``values`` has more
            than one dimension, its rows (of an embedding, say).
        values: as many of them; float16, bfloat16, float32, or float64 in a float64 session.
        lazy: what is not named is not touched, as in ``torch.optim.SparseAdam``; else it counts as zero (dense Adam).

    """

    __module__ = "adamd"  # pickles name the public place

    indices: Any
    values: Any
    lazy: bool = False


Encoding: TypeAlias = Literal["raw", "float16", "bfloat16", "int8"] | TopK


ANSWERS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How a session's gradients and parameters travel: see `Encoder` for the attributes."""

    encoding: Encoding
    error_feedback: bool
    answer_dtype: str | None

    @classmethod
    def of(cls, encoding: Any = "raw", error_feedback: bool = True, answer_dtype: Any = None) -> Self:
        """Check a choice.

        Raises:
            InvalidRequest, WrongDtype: there is no such encoding, or dtype.

        """
        return cls(checked(encoding), bool(error_feedback), checked_answer(answer_dtype, None))

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Take the encoding options out of a call's options; raises as `of`."""
        names = (field.name for field in fields(cls))
        return cls.of(**{name: options.pop(name) for name in names if name in options})


@dataclass(frozen=True, slots=True)
class EncodedGradient:
    """A gradient as it is sent. ``parts`` are the caller's own arrays, if uncopied; ``residual`` is the next e."""

    body: Body
    parts: tuple[TensorPart, ...]
    residual: Array | None


def locate(error: AdamdError, what: str, layout: Layout, parts: tuple[TensorPart, ...]) -> None:
    """Name the tensor, and the place in it, of the element that a BadGradient is about. Other errors stay as they are.

    ``parts``: the tensors that were sent; none: all of the layout.
    """
    at = error.extra.get("index")
    if not isinstance(error, BadGradient) or type(at) is not int or at < 0:
        return
    sent = [(part.name, part.array.shape) for part in parts] or [(one.name, one.shape) for one in layout.tensors]
    for name, shape in sent:
        if at < (size := math.prod(shape)):
            place = [int(axis) for axis in np.unravel_index(at, shape)]
            named = what if layout.vector else f"{what} {name!r}"
            error.reword(f"{named} at {place}: {error.detail}" if place else f"{named}: {error.detail}")
            error.extra |= {"place": place} if layout.vector else {"tensor": name, "place": place}
            return
        at -= size


class Encoder:
    """Writes one session's gradients.

    Attributes:
        encoding: from the next step on.
        error_feedback: whether what an encoding drops goes along with the next gradient.
        answer_dtype: what parameters are rounded to on their way here; None: not at all.
        in_doubt: a gradient was sent, and whether it counts is not known.

    """

    def __init__(self) -> None:
        self.encoding: Encoding = "raw"
        self.error_feedback = True
        self.answer_dtype: str | None = None
        self.in_doubt = False
        self._residual: Array | None = None

    def choose(self, options: EncodingOptions, dtype: str) -> None:
        """Set the options of a session of ``dtype``."""
        self.encoding, self.error_feedback = options.encoding, options.error_feedback
        self.answer_dtype = checked_answer(options.answer_dtype, dtype)

    @property
    def chosen(self) -> EncodingOptions:
        """The present options."""
        return EncodingOptions(self.encoding, self.error_feedback, self.answer_dtype)

    def write(
        self,
        gradient: Any,
        layout: Layout,
        dtype: str,
        options: EncodingOptions | None = None,
        what: str = "gradient",
    ) -> EncodedGradient:
        """Write a gradient for a session of ``layout`` and ``dtype``; nothing here changes until it is `sent`.

        ``options`` are those `chosen` when the step was asked for; None: the present ones. ``what`` is its name in
        errors.

        Raises:
            WrongLayout, WrongDtype: it does not fit.
            BadGradient: it cannot be scaled (NaN, infinity), or has a Python number that is too large for ``dtype``.

        """
        options = options or self.chosen
        if _is_sparse(gradient):
            return EncodedGradient(_sparse(gradient, layout, dtype), (), self._residual)
        if isinstance(gradient, Flat):
            check_widens(gradient.checked(layout, what).dtype, dtype)
            if options.encoding == "raw" and (self._residual is None or not options.error_feedback):
                return EncodedGradient(Body(gradient.pieces, gradient.dtype), (), None)
            parts = gradient.parts()
        else:
            parts = arrays.matching(gradient, layout, dtype, what, BadGradient)
        complete = len(parts) == len(layout.tensors)
        residual = self._residual if options.error_feedback else None
        if options.encoding == "raw" and (residual is None or not complete):
            return EncodedGradient(body_of(parts, layout), parts, residual)
        if not complete:
            raise WrongLayout(
                f"encoding {options.encoding!r} writes the gradient as one vector, so every tensor has to be there; "
                "set session.encoding = 'raw' for a step that leaves some out"
            )
        total = _total(parts, layout, dtype, residual)
        body, rest = _compressed(total, options.encoding)
        return EncodedGradient(body, (), rest if options.error_feedback else None)

    @property
    def residual(self) -> Array | None:
        """What was dropped so far, and goes along with the next gradient; None: nothing."""
        return self._residual

    def recall(self, residual: Array | None) -> None:
        """Go on with a residual that was kept elsewhere."""
        self._residual = residual

    def sent(self, encoded: EncodedGradient) -> None:
        """Note that a gradient was acknowledged."""
        self._residual = encoded.residual
        self.in_doubt = False

    def forget(self) -> None:
        """Drop the residual: it belongs to a history that is no longer this session's."""
        self._residual = None
        self.in_doubt = False

    def moved(self) -> None:
        """Note that the session went on without an acknowledgement of ours.

        A gradient in doubt may be what moved the session. Then its residual has been applied, and would count twice,
        so the residual is dropped.
        """
        if self.in_doubt:
            self.forget()


def checked(encoding: Any) -> Encoding:
    """Check an encoding.

    Raises:
        InvalidRequest: something else.

    """
    if isinstance(encoding, TopK) or encoding in ("raw", "float16", "bfloat16", "int8"):
        return encoding  # type: ignore[no-any-return]  # one of the literals
    raise InvalidRequest(f"encoding {encoding!r}; wanted 'raw', 'float16', 'bfloat16', 'int8' or adamd.TopK(fraction)")


def checked_answer(answer_dtype: Any, dtype: str | None) -> str | None:
    """Check an answer's dtype for a session of ``dtype``; None where it would change nothing.

    Raises:
        WrongDtype: something else.

    """
    if answer_dtype is not None and answer_dtype not in ANSWERS:
        raise WrongDtype(f"answer_dtype {answer_dtype!r}; wanted {', '.join(ANSWERS)}, or None for the session's own")
    return None if answer_dtype == dtype else answer_dtype


def _total(parts: tuple[TensorPart, ...], layout: Layout, dtype: str, residual: Array | None) -> Array:
    """Return g + e as a flat vector of its own, in the session's dtype."""
    total = np.empty(layout.size, storage(dtype))
    for part, start, end in zip(parts, layout.bounds, layout.bounds[1:], strict=False):
        widen(part.array.reshape(-1), part.dtype, dtype, total[start:end])
    if residual is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # the server judges what comes of it
            total += residual
    return total


def _compressed(total: Array, encoding: Encoding) -> tuple[Body, Array | None]:
    """Return C(total), and total - decode(C(total)) in the same memory (None: nothing)."""
    if encoding == "raw":
        return Body((raw_bytes(total),), total.dtype.name), None
    if isinstance(encoding, TopK):
        indices = encodings.largest(total, max(1, math.ceil(encoding.fraction * len(total))))
        body = encodings.encode_sparse(indices, total[indices])
        total[indices] = 0
        return Body((raw_bytes(body),), total.dtype.name, encodings.SPARSE), total
    if encoding == "int8":
        body = encodings.encode_int8(total)
        scales, quantized = encodings.int8_parts(body, len(total))
        _subtract(total, lambda start, out: encodings.decode_int8(scales, quantized, start, out))
        return Body((raw_bytes(body),), "float32", encodings.INT8), total
    rounded = np.empty(len(total), storage(encoding))
    for start in range(0, len(total), _SLICE):
        narrow(total[start : start + _SLICE], encoding, rounded[start : start + _SLICE])

    def decode(start: int, out: Array) -> None:
        widen(rounded[start : start + len(out)], encoding, out.dtype.name, out)

    _subtract(total, decode)
    return Body((raw_bytes(rounded),), encoding), total


def _subtract(total: Array, decode: Callable[[int, Array], None]) -> None:
    decoded = np.empty(min(_SLICE, len(total)), total.dtype)
    for start in range(0, len(total), _SLICE):
        piece = total[start : start + _SLICE]
        decode(start, decoded[: len(piece)])
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused by the server
            piece -= decoded[: len(piece)]


def _is_sparse(gradient: Any) -> bool:
    if isinstance(gradient, Mapping):
        return any(isinstance(value, Sparse) for value in gradient.values())
    return isinstance(gradient, Sparse)


def _sparse(gradient: Any, layout: Layout, dtype: str) -> Body:
    """Write sparse tensors as one sparse vector."""
    if layout.vector == isinstance(gradient, Mapping):
        raise WrongLayout(f"gradient: wanted {'one' if layout.vector else 'a dict of'} adamd.Sparse")
    by_name = {layout.names[0]: gradient} if layout.vector else {k: v for k, v in gradient.items() if v is not None}
    unknown = next((name for name in by_name if name not in layout.index), None)
    if unknown is not None:
        raise WrongLayout(f"gradient: this session has no tensor {unknown!r}; it has {', '.join(layout.names[:8])}")
    if not all(isinstance(value, Sparse) for value in by_name.values()) or len({v.lazy for v in by_name.values()}) != 1:
        raise WrongLayout("gradient: wanted every tensor as adamd.Sparse, all of them lazy or none")
    lazy = next(iter(by_name.values())).lazy
    if not lazy and len(by_name) != len(layout.tensors):
        missing = next(name for name in layout.names if name not in by_name)
        raise WrongLayout(
            f"gradient: {missing!r} is missing; what a sparse gradient does not name counts as zero, so give it as "
            "adamd.Sparse([], []), or lazy=True to leave tensors untouched"
        )
    places, parts = [], []
    for tensor, start in zip(layout.tensors, layout.bounds, strict=False):
        if tensor.name in by_name:
            indices, part = _elements(by_name[tensor.name], tensor, dtype)
            places.append(indices + start)
            parts.append(part)
    kinds = {part.dtype for part in parts if part.array.size} or {dtype}
    kind = kinds.pop() if len(kinds) == 1 else dtype  # several: the session's, which takes all of them exactly
    values = [part.array if part.dtype == kind else widen(part.array, part.dtype, kind) for part in parts]
    encodings.most(encodings.LAZY, layout.size, kind)  # refuses what 4 bytes cannot name
    body = encodings.encode_sparse(np.concatenate(places), np.concatenate([v for v in values if v.size] or values[:1]))
    return Body((raw_bytes(body),), kind, encodings.LAZY if lazy else encodings.SPARSE)


def _elements(sparse: Sparse, tensor: Tensor, dtype: str) -> tuple[Array, TensorPart]:
    """Return the ascending places in one flattened tensor, and their values."""
    what = f"gradient {tensor.name!r}"
    array_checks.check(sparse.indices, f"{what}: indices")
    indices = np.asarray(sparse.indices)
    indices = indices.astype(np.int64) if not indices.size else indices
    some = np.size(sparse.values) > 0  # an empty array's dtype says nothing
    raw_values = sparse.values if some else np.empty(0, storage(dtype))
    values = arrays.part(tensor.name, raw_values, f"{what}: values", dtype, BadGradient)
    check_widens(values.dtype, dtype, f"{what}: values")
    array = values.array
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or array.shape[:1] != indices.shape:
        raise WrongLayout(
            f"{what}: {indices.dtype}{list(indices.shape)} indices and values of shape {list(array.shape)}; wanted a "
            "flat list of whole numbers, and a value (or a row) for each"
        )
    rows = array.ndim > 1
    if rows and array.shape[1:] != tensor.shape[1:]:
        raise WrongLayout(f"{what}: rows of shape {list(array.shape[1:])}; this tensor's are {list(tensor.shape[1:])}")
    limit = tensor.shape[0] if rows else tensor.size
    order = np.argsort(indices, kind="stable")
    indices, array = indices[order].astype(np.int64), array[order]
    if indices.size and (indices[0] < 0 or indices[-1] >= limit):
        wrong = int(indices[0]) if indices[0] < 0 else int(indices[-1])
        raise WrongLayout(f"{what}: index {wrong}; this tensor has {limit} {'rows' if rows else 'elements'}, from 0")
    if (indices[1:] == indices[:-1]).any():
        twice = int(indices[1:][indices[1:] == indices[:-1]][0])
        raise WrongLayout(f"{what}: index {twice} comes twice; add its values up first")
    if rows:
        each = math.prod(tensor.shape[1:])
        indices = (indices[:, None] * each + np.arange(each)).reshape(-1)
    return indices, TensorPart(tensor.name, values.dtype, np.ascontiguousarray(array.reshape(-1)))
