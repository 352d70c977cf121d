"""Reads and writes a session's exported state. Pure; arrays are not copied. The server writes by `codecs.states`.

Safetensors with ``param:<name>`` and, for each state array, ``<array>:<name>``; in the metadata, under ``adamd``, the
session's document with ``state``: the step, each tensor's count of updates, and the numbers that it carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamd.wire import safetensors
from adamd.wire.dtypes import Array, storage

PARAMETERS = "param"


@dataclass(frozen=True, slots=True)
class ExportedState:
    """What an export holds.

    Attributes:
        step: at which it was taken.
        chain: of which history.
        settings: the whole of them.
        counts: updates, by tensor.
        carried: numbers from update to update, by their names, then by tensor; of most optimizers none.
        arrays: views of the body, by "param" or a state array's name, then by tensor.

    """

    step: int
    chain: str
    dtype: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    carried: Mapping[str, Mapping[str, float]]
    arrays: Mapping[str, Mapping[str, Array]]


def read(export: bytes) -> ExportedState:
    """Read an export."""
    body = memoryview(bytearray(export))  # writable, which torch wants of memory that it looks at
    header = safetensors.read_header(body)
    document = json.loads(header.metadata["adamd"])
    arrays: dict[str, dict[str, Array]] = {}
    for item in header.tensors:
        array, _, name = item.tensor.name.partition(":")
        raw = body[header.data_start + item.start : header.data_start + item.end]
        arrays.setdefault(array, {})[name] = np.frombuffer(raw, storage(item.dtype)).reshape(item.tensor.shape)
    state = document["state"]
    return ExportedState(
        step=state["step"],
        chain=document["chain"],
        dtype=document["dtype"],
        settings=document["optimizer"],
        counts=state["counts"],
        carried=state.get("carried", {}),
        arrays=arrays,
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """An export to be written: what a session is to be restored as, without its arrays' values.

    Attributes:
        dtype: the session's.
        shapes: by tensor.
        settings: the whole of them.
        names: the state arrays'.
        counts: updates, by tensor.
        carried: numbers, by their names, then by tensor.
        step: the session's; the largest count at least.

    """

    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]
    names: Sequence[str]
    counts: Mapping[str, int]
    carried: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    step: int = 0

    def laid_out(self) -> tuple[memoryview, dict[str, dict[str, Array]]]:
        """Return the body, and views of it for the values: by "param" or array, then by tensor. They hold nothing yet.

        ``Client.restore`` takes the body.
        """
        step = max(self.step, *self.counts.values(), 0)
        state: dict[str, Any] = {"step": step, "counts": dict(self.counts)}
        if self.carried:
            state["carried"] = {number: dict(values) for number, values in self.carried.items()}
        document = {"optimizer": dict(self.settings), "dtype": self.dtype, "state": state}
        arrays = (PARAMETERS, *self.names)
        tensors = [(f"{array}:{name}", self.dtype, shape) for array in arrays for name, shape in self.shapes.items()]
        head = safetensors.write_header(tensors, {"adamd": json.dumps(document, allow_nan=False)})
        kind = storage(self.dtype)
        sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in self.shapes.items()}
        body = np.empty(len(head) + len(arrays) * kind.itemsize * sum(sizes.values()), np.uint8)
        body[: len(head)] = np.frombuffer(head, np.uint8)
        rest, start = body[len(head) :].view(kind), 0  # the header is padded, so this is aligned
        views: dict[str, dict[str, Array]] = {array: {} for array in arrays}
        for array in arrays:
            for name, shape in self.shapes.items():
                views[array][name] = rest[start : start + sizes[name]].reshape(shape)
                start += sizes[name]
        return memoryview(body), views
