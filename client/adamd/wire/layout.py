"""A layout: the ordered list of named tensors that the flat vector concatenates, row-major."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adamd.errors import WrongLayout

MAX_TENSORS = 16_384
MAX_NAME = 512  # characters
MAX_NAMES = 512 * 1024  # bytes of all names together, in UTF-8: an export says each up to six times
MAX_RANK = 32
MAX_ELEMENTS = 2**53  # every index is exact in a float64, so in any client's JSON
MAX_EMPTY = 65_536  # rows of a tensor that has no elements: in JSON each is a pair of brackets
SHOWN = 80  # characters of what came, in an error's words


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor. ``shape`` is a tuple of sizes, () for a scalar."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements; Python's integers do not overflow."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Named tensors in order. ``vector`` says that the client gave a plain array, and wants one back.

    A vector's one tensor is named ``"parameters"``.
    """

    tensors: tuple[Tensor, ...]
    vector: bool = False

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Element offsets, n+1 of them: tensor i is ``flat[bounds[i]:bounds[i+1]]``."""
        offsets = [0]
        for tensor in self.tensors:
            offsets.append(offsets[-1] + tensor.size)
        return tuple(offsets)

    @property
    def size(self) -> int:
        """The number of elements in all tensors together."""
        return self.bounds[-1]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in order."""
        return tuple(tensor.name for tensor in self.tensors)

    @cached_property
    def index(self) -> dict[str, int]:
        """From name to place."""
        return {name: i for i, name in enumerate(self.names)}

    def to_json(self) -> list[dict[str, Any]]:
        """Return ``[{"name": …, "shape": […]}, …]``."""
        return [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in self.tensors]


def vector_layout(shape: Iterable[int]) -> Layout:
    """Return the layout of one plain array."""
    return checked((Tensor("parameters", tuple(shape)),), vector=True)


def named_layout(shapes: Mapping[str, Iterable[int]]) -> Layout:
    """Return the layout of a dict of arrays: sorted by name, as JSON objects and safetensors keep no order."""
    return checked(tuple(Tensor(name, tuple(shapes[name])) for name in sorted(shapes)))


def checked(tensors: tuple[Tensor, ...], *, vector: bool = False) -> Layout:
    """Check a layout's names, ranks and sizes before anything of that size exists.

    Raises:
        WrongLayout: too many tensors, a bad or doubled name, a bad size, or a product beyond 2^53.

    """
    if vector and len(tensors) != 1:
        raise WrongLayout(f"vector: a plain array is a layout of one tensor, not of {len(tensors)}")
    check_tensors(tensors)
    names = sum(len(tensor.name.encode()) for tensor in tensors)
    if names > MAX_NAMES:
        raise WrongLayout(f"the tensors' names have {names} bytes together; at most {MAX_NAMES} are possible")
    return Layout(tensors, vector)


def check_tensors(tensors: tuple[Tensor, ...], most: int = MAX_TENSORS, longest: int = MAX_NAME) -> None:
    """Check what every collection of tensors keeps, a file's too: ``checked`` without what only a layout is held to."""
    if len(tensors) > most:
        raise WrongLayout(f"{len(tensors)} tensors; at most {most} are possible")
    names: set[str] = set()
    total = 0
    for tensor in tensors:
        _check_name(tensor.name, names, longest)
        _check_shape(tensor)
        total += tensor.size
        if total > MAX_ELEMENTS:
            raise WrongLayout(f"there are more than 2^53 elements at tensor {tensor.name!r}")


def from_json(raw: Any, *, vector: bool = False) -> Layout:
    """Read ``[{"name": …, "shape": […]}, …]`` from outside.

    Raises:
        WrongLayout: it is something else.

    """
    if not isinstance(raw, list):
        raise WrongLayout(f"layout: wanted a list of {{name, shape}}, got {type(raw).__name__}")
    if len(raw) > MAX_TENSORS:
        raise WrongLayout(f"{len(raw)} tensors; at most {MAX_TENSORS} are possible")
    tensors = []
    for i, item in enumerate(raw):
        if not isinstance(item, dict) or set(item) != {"name", "shape"}:
            raise WrongLayout(f"layout[{i}]: wanted exactly the members name and shape")
        if not isinstance(item["shape"], list):
            raise WrongLayout(f"layout[{i}].shape: wanted a list of sizes")
        tensors.append(Tensor(item["name"], tuple(item["shape"])))
    return checked(tuple(tensors), vector=vector)


def shown(value: object) -> str:
    """Return what came, cut to a length that fits into an error's words."""
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value[:SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _check_name(name: object, names: set[str], longest: int) -> None:
    if not isinstance(name, str) or not name or len(name) > longest:
        raise WrongLayout(f"a tensor's name is a string of 1 to {longest} characters, not {shown(name)}")
    if not name.isprintable():
        raise WrongLayout(f"the tensor name {shown(name)} has unprintable characters")
    if name in names:
        raise WrongLayout(f"the tensor name {shown(name)} comes twice")
    names.add(name)


def _check_shape(tensor: Tensor) -> None:
    if len(tensor.shape) > MAX_RANK:
        raise WrongLayout(f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions; at most {MAX_RANK}")
    for size in tensor.shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise WrongLayout(f"tensor {tensor.name!r}: {shown(size)} is not a size (0 to 2^53)")
    if math.prod(size or 1 for size in tensor.shape) > MAX_ELEMENTS:
        # Nor may a 0 among the sizes hide the others: no array could have this shape.
        raise WrongLayout(f"tensor {tensor.name!r}: its sizes multiply to more than 2^53")
    if 0 in tensor.shape and math.prod(tensor.shape[: tensor.shape.index(0)]) > MAX_EMPTY:
        raise WrongLayout(f"tensor {tensor.name!r}: without elements it has at most {MAX_EMPTY} rows")


def some(names: tuple[str, ...]) -> str:
    """Return a few names, short enough for an error's words."""
    text = ", ".join(name if len(name) <= 64 else f"{name[:63]}…" for name in names[:8])
    return f"{text}, …" if len(names) > 8 else text
