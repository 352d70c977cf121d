"""Converts a caller's arrays to the flat vector of a layout and back, without copying large ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from adamd.errors import InvalidRequest, RequestError, WrongDtype, WrongLayout
from adamd.sansio import array_checks
from adamd.wire.dtypes import ITEMSIZE, Array, check_widens, storage, widen
from adamd.wire.layout import Layout, Tensor, named_layout, vector_layout


@dataclass(frozen=True, slots=True)
class TensorPart:
    """One tensor as it will travel: C order, little-endian, in ``storage(dtype)``."""

    name: str
    dtype: str
    array: Array


@dataclass(frozen=True, slots=True)
class Flat:
    """The whole vector of a layout as pieces of memory, in order: a gradient, or room for an answer.

    For an adapter that keeps flat buffers, and has checked shapes when it made them: a thousand small tensors cost
    nothing each. As `Session.step`'s gradient and ``out`` at once; they must not overlap.
    """

    layout: Layout
    dtype: str
    pieces: tuple[memoryview, ...]

    def checked(self, layout: Layout, what: str) -> Flat:
        """Return it, if it is of this layout."""
        expected, nbytes = layout.size * ITEMSIZE[self.dtype], sum(piece.nbytes for piece in self.pieces)
        if (self.layout is not layout and self.layout != layout) or nbytes != expected:
            raise WrongLayout(f"{what}: {nbytes} bytes of another layout; wanted {expected} bytes of this session's")
        return self

    def parts(self) -> tuple[TensorPart, ...]:
        """Return a copy of it, tensor by tensor."""
        flat = np.frombuffer(b"".join(self.pieces), storage(self.dtype))
        pairs = zip(self.layout.tensors, self.layout.bounds, self.layout.bounds[1:], strict=False)
        return tuple(TensorPart(t.name, self.dtype, flat[start:end].reshape(t.shape)) for t, start, end in pairs)


class Backup:
    """A copy of the caller's memory from before an answer, so that a failed answer changes nothing.

    It is made while the server works, when there is nothing else to do, and its own memory is used again.
    """

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)
        self._views: tuple[memoryview, ...] = ()
        self._copied = False

    def of(self, views: tuple[memoryview, ...]) -> None:
        """Set the memory that the next answer will come into, and drop the copy before."""
        self._views, self._copied = views, False

    def keep(self) -> None:
        """Copy the memory, unless an earlier attempt did."""
        if self._copied or not self._views:
            return
        size = sum(view.nbytes for view in self._views)
        if len(self._room) != size:
            self._room = np.empty(size, np.uint8)
        offset = 0
        for view in self._views:
            self._room[offset : offset + view.nbytes] = view
            offset += view.nbytes
        self._copied = True

    def restore(self) -> None:
        """Write the copy back, if there is one: an answer may have begun to come."""
        if not self._copied:
            return
        offset, room = 0, memoryview(self._room)
        for view in self._views:
            view[:] = room[offset : offset + view.nbytes]
            offset += view.nbytes


@dataclass(frozen=True, slots=True)
class Landing:
    """The memory for an answer's parameters, and the result for the caller.

    ``copies`` are (target, source) where the answer cannot come into the caller's own memory. A source of uint16 is
    bfloat16. ``own`` is the caller's memory where the answer comes into it directly.
    """

    result: Any
    buffers: tuple[memoryview, ...]
    copies: tuple[tuple[Array, Array], ...] = ()
    own: tuple[memoryview, ...] = ()

    def finish(self) -> Any:
        """Return the caller's arrays, once the buffers are full."""
        for target, source in self.copies:
            widen(source, "bfloat16" if source.dtype == np.uint16 else source.dtype.name, target.dtype.name, target)
        return self.result


def raw_bytes(array: Array) -> memoryview:
    """Return a C-ordered array's bytes, uncopied."""
    return memoryview(np.asarray(array).reshape(-1).view(np.uint8))


def pieces(arrays: Iterable[Array]) -> tuple[memoryview, ...]:
    """Return the bytes of C-ordered arrays, uncopied and in their order.

    Neighbours that lie one behind the other in one larger array, as the views of a flat vector do, are one piece: a
    thousand small ones would cost as many calls of the socket.
    """
    runs: list[tuple[Any, int, int]] = []  # (the array that owns the memory, first address, end)
    for array in arrays:
        owner = array.base if isinstance(array.base, np.ndarray) and array.base.flags.c_contiguous else array
        start, end = byte_bounds(array) if array.size else (0, 0)
        if runs and runs[-1][0] is owner and runs[-1][2] == start:
            runs[-1] = owner, runs[-1][1], end
        elif array.size:
            runs.append((owner, start, end))
    return tuple(_window(*run) for run in runs)


def _window(owner: Array, start: int, end: int) -> memoryview:
    first = byte_bounds(owner)[0]
    return raw_bytes(owner)[start - first : end - first]


def part(
    name: str, value: Any, what: str, dtype: str = "float64", overflow: type[RequestError] = InvalidRequest
) -> TensorPart:
    """Read one array-like: NumPy, anything with ``__array__`` or dlpack, a torch tensor, or nested lists of numbers.

    Python's own numbers have no dtype that could be lost: they take ``dtype``, as JSON's do.

    Raises:
        WrongDtype: no floating-point dtype that travels.
        WrongLayout: ragged, or with labels that would be lost.
        InvalidRequest: a mask or a unit would be lost, it is sparse, or no array at all; or a Python number is too
            large for ``dtype`` (or what ``overflow`` says).

    """
    array_checks.check(value, what)
    array, kind = _read(value, what)
    if _plain(value):
        array, kind = _in_dtype(array, dtype, what, overflow), dtype
    array_checks.check_dtype(array, kind, value, what)
    return TensorPart(name, kind, np.asarray(array, dtype=storage(kind), order="C"))


def _read(value: Any, what: str) -> tuple[Array, str]:
    try:
        if hasattr(value, "detach"):
            return _from_torch(value)
        array = np.asarray(value)
        if array.dtype == object and not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise array_checks.unreadable(value, error, what) from None
    if array.dtype.kind in "iu" and not hasattr(value, "dtype"):  # whole numbers, as in [1, 2] or range(3)
        array = array.astype(np.float64)
    kind = array.dtype.name
    return (array.view(np.uint16), kind) if kind == "bfloat16" else (array, kind)  # ml_dtypes', as jax gives it


def _plain(value: Any) -> bool:
    """Say whether these are Python's own numbers alone, in lists or tuples of any depth."""
    if not isinstance(value, list | tuple):
        return type(value) in (int, float)
    kinds = set(map(type, value))
    return kinds <= {int, float} or (kinds <= {list, tuple} and all(map(_plain, value)))


def _in_dtype(array: Array, dtype: str, what: str, overflow: type[RequestError]) -> Array:
    """Round Python's numbers to a session's dtype, by way of float64 as JSON's readers do."""
    try:
        doubles = array.astype(np.float64)
    except OverflowError:
        raise overflow(f"{what} has a whole number that no float64 holds") from None
    with np.errstate(over="ignore"):
        rounded: Array = doubles.astype(storage(dtype))
    lost = np.flatnonzero(np.isinf(rounded) & np.isfinite(doubles))
    if lost.size:
        place = [int(axis) for axis in np.unravel_index(lost[0], doubles.shape)]
        where = f"{what} at {place}" if place else what
        raise overflow(f"{where}: {doubles[tuple(place)]:g}, which no {dtype} holds", place=place)
    return rounded


def _from_torch(tensor: Any) -> tuple[Array, str]:
    """Return a tensor's memory (or a copy from its device). NumPy has no bfloat16: there it is its bits."""
    tensor = tensor.detach().cpu()
    tensor = tensor.resolve_neg() if hasattr(tensor, "resolve_neg") else tensor
    if str(tensor.dtype) == "torch.bfloat16":
        return np.asarray(tensor.contiguous().view(sys.modules["torch"].int16)).view(np.uint16), "bfloat16"
    array = np.asarray(tensor)
    return array, array.dtype.name


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters as a caller gave them. ``dtype`` is the session's: the narrowest that takes all parts exactly.

    ``order`` has the names in the caller's order, where the layout has another.
    """

    layout: Layout
    dtype: str
    parts: tuple[TensorPart, ...]
    order: tuple[str, ...] | None = None


def parameters(values: Any, dtype: str | None = None) -> Parameters:
    """Read parameters: one array, or a mapping of names to arrays (sorted by name, as the server does).

    Args:
        values: float16, bfloat16, float32 or float64, of any shapes; lists of numbers are of ``dtype``, or float64.
        dtype: the session's, "float32" or "float64"; by default float64 where a part is, else float32.

    Raises:
        WrongDtype: it would have to be rounded.
        WrongLayout: bad names, or no arrays at all.

    """
    if dtype not in (None, "float32", "float64"):
        raise WrongDtype(f"dtype is {dtype!r}; a session is 'float32' or 'float64' (narrower arrays widen into it)")
    list_dtype, order = dtype or "float64", None
    if isinstance(values, Mapping):
        by_name = {name: part(name, value, f"parameter {name!r}", list_dtype) for name, value in values.items()}
        if not by_name:
            raise WrongLayout("the parameters have no tensors at all; give an array, or a dict with one at least")
        if not all(isinstance(name, str) for name in by_name):
            raise WrongLayout("the parameters' names are strings, as in {'w': w, 'b': b}")
        layout = named_layout({name: item.array.shape for name, item in by_name.items()})
        parts = tuple(by_name[name] for name in layout.names)
        order = None if tuple(by_name) == layout.names else tuple(by_name)
    else:
        single = part("parameters", values, "the parameter array", list_dtype)
        layout, parts = vector_layout(single.array.shape), (single,)
    if dtype is None:
        dtype = "float64" if any(item.dtype == "float64" for item in parts) else "float32"
    for item in parts:
        check_widens(item.dtype, dtype, f"parameter {item.name!r}")
    return Parameters(layout, dtype, parts, order)


def matching(
    values: Any, layout: Layout, dtype: str, what: str, overflow: type[RequestError] = InvalidRequest
) -> tuple[TensorPart, ...]:
    """Read arrays for a session's layout, in its order; those left out of a mapping, or None, are left out.

    Raises:
        WrongLayout: an unknown name, another shape, nothing at all, or an array where a mapping is wanted.
        WrongDtype: the session could take it only by rounding.
        InvalidRequest: a Python number is too large for ``dtype``; or what ``overflow`` says.

    """
    if layout.vector == isinstance(values, Mapping):
        expected = "one array" if layout.vector else f"a dict of arrays ({', '.join(layout.names[:8])})"
        raise WrongLayout(f"{what}: wanted {expected}, as the parameters are; got {type(values).__name__}")
    by_name = {layout.names[0]: values} if layout.vector else values
    unknown = next((name for name in by_name if name not in layout.index), None)
    if unknown is not None:
        raise WrongLayout(f"{what}: this session has no tensor {unknown!r}; it has {', '.join(layout.names[:8])}")
    parts = []
    for tensor in layout.tensors:
        value = by_name.get(tensor.name)
        if value is None:
            continue
        place = what if layout.vector else f"{what} {tensor.name!r}"
        item = part(tensor.name, value, place, dtype, overflow)
        if item.array.shape != tensor.shape:
            raise WrongLayout(f"{place} has shape {list(item.array.shape)}; this session's is {list(tensor.shape)}")
        check_widens(item.dtype, dtype, place)
        parts.append(item)
    if not parts and layout.tensors:
        raise WrongLayout(f"{what}: every tensor is left out; that would be no step")
    return tuple(parts)


def landing(
    layout: Layout,
    dtype: str,
    out: Any = None,
    source: tuple[TensorPart, ...] = (),
    order: tuple[str, ...] | None = None,
) -> Landing:
    """Prepare the memory for an answer's parameters: fresh (a dict in this order of names), or the caller's ``out``.

    NumPy has no bfloat16: parameters that come in it become float32, exactly.

    Where ``out`` overlaps what is being sent (``source``), the answer comes into fresh memory first: a retry
    must send what the first attempt sent.

    Raises:
        WrongLayout, WrongDtype: ``out`` is not what a step returns: the same shapes, C order, writable.

    """
    result_dtype = "float32" if dtype == "bfloat16" else dtype
    if out is None:
        flat = np.empty(layout.size, storage(result_dtype))
        if result_dtype == dtype:
            return Landing(split(flat, layout, order), (raw_bytes(flat),))
        bits = np.empty(layout.size, storage(dtype))
        return Landing(split(flat, layout, order), (raw_bytes(bits),), ((flat, bits),))
    if isinstance(out, Flat):
        if out.dtype != dtype:
            raise WrongDtype(f"out is {out.dtype}; the answer is {dtype}")
        return Landing(out, out.checked(layout, "out").pieces)
    if layout.vector == isinstance(out, Mapping):
        raise WrongLayout(f"out: wanted {'one array' if layout.vector else 'a dict of arrays'}, as a step returns")
    targets = []
    for tensor in layout.tensors:
        target = out if layout.vector else out.get(tensor.name)
        targets.append(_target(target, tensor, result_dtype))
    if result_dtype == dtype and not _overlap(targets, source):
        into = pieces(targets)
        return Landing(out, into, own=into)
    flat = np.empty(layout.size, storage(dtype))
    spans = (flat[start:end] for start, end in zip(layout.bounds, layout.bounds[1:], strict=False))
    copies = tuple((target, span.reshape(target.shape)) for target, span in zip(targets, spans, strict=True))
    return Landing(out, (raw_bytes(flat),), copies)


def split(flat: Array, layout: Layout, order: tuple[str, ...] | None = None) -> Any:
    """Return views of a flat vector in the layout's shapes: one array, or a dict in its order, or in this one."""
    views = [
        flat[start:end].reshape(tensor.shape)
        for tensor, start, end in zip(layout.tensors, layout.bounds, layout.bounds[1:], strict=False)
    ]
    if layout.vector:
        return views[0]
    by_name = dict(zip(layout.names, views, strict=True))
    return by_name if order is None else {name: by_name[name] for name in order}


def _target(target: Any, tensor: Tensor, dtype: str) -> Array:
    what = f"out {tensor.name!r}"
    if not isinstance(target, np.ndarray):
        raise WrongLayout(f"{what}: wanted a numpy array to write into, got {type(target).__name__}")
    array_checks.check(target, what)
    if target.dtype != storage(dtype):
        raise WrongDtype(f"{what} is {target.dtype}; this session's parameters are {dtype}")
    if target.shape != tensor.shape:
        raise WrongLayout(f"{what} has shape {list(target.shape)}; this session's is {list(tensor.shape)}")
    if not (target.flags.c_contiguous and target.flags.writeable):
        raise WrongLayout(f"{what} is not a writable array in C order; leave out= away, or give numpy.empty_like(x)")
    return target


def _overlap(targets: list[Array], source: tuple[TensorPart, ...]) -> bool:
    """Say whether memory to write may be memory to send, by the arrays' outer bounds."""
    spans = [(*byte_bounds(target), True) for target in targets if target.size]
    spans += [(*byte_bounds(item.array), False) for item in source if item.array.size]
    ends = {True: 0, False: 0}  # how far those that began already reach, of each kind
    for start, end, written in sorted(spans):
        if start < ends[not written]:
            return True
        ends[written] = max(ends[written], end)
    return False
