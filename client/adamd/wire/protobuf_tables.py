"""Protobuf's numbers, Struct and Layout against adamd's own terms, for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from adamd.wire.layout import Layout
from adamd.wire.v1 import adamd_pb2 as pb

DTYPES = {"float16": pb.DTYPE_FLOAT16, "bfloat16": pb.DTYPE_BFLOAT16}
DTYPES |= {"float32": pb.DTYPE_FLOAT32, "float64": pb.DTYPE_FLOAT64}
ENCODINGS = {"raw": pb.ENCODING_RAW, "int8": pb.ENCODING_INT8}
ENCODINGS |= {"sparse": pb.ENCODING_SPARSE, "sparse-lazy": pb.ENCODING_SPARSE_LAZY}
DURABILITIES = {"committed": pb.DURABILITY_COMMITTED, "memory": pb.DURABILITY_MEMORY}
KINDS = {"delta": pb.CONTRIBUTION_KIND_DELTA, "parameters": pb.CONTRIBUTION_KIND_PARAMETERS}
KINDS |= {"gradient": pb.CONTRIBUTION_KIND_GRADIENT}
TASKS = {"train": pb.TASK_KIND_TRAIN, "evaluate": pb.TASK_KIND_EVALUATE, "stop": pb.TASK_KIND_STOP}
STATES = {"open": pb.ROUND_STATE_OPEN, "overdue": pb.ROUND_STATE_OVERDUE, "closed": pb.ROUND_STATE_CLOSED}
CLOSERS = {"quorum": pb.CLOSED_BY_QUORUM, "deadline": pb.CLOSED_BY_DEADLINE, "hand": pb.CLOSED_BY_HAND}
# The ways back. Number 0 is "unspecified" in each, and in none of them.
DTYPE_NAMES: Mapping[int, str] = {number: name for name, number in DTYPES.items()}
ENCODING_NAMES: Mapping[int, str] = {number: name for name, number in ENCODINGS.items()}
DURABILITY_NAMES: Mapping[int, str] = {number: name for name, number in DURABILITIES.items()}
KIND_NAMES: Mapping[int, str] = {number: name for name, number in KINDS.items()}
TASK_NAMES: Mapping[int, str] = {number: name for name, number in TASKS.items()}
STATE_NAMES: Mapping[int, str] = {number: name for name, number in STATES.items()}
CLOSER_NAMES: Mapping[int, str] = {number: name for name, number in CLOSERS.items()}


def struct(value: Mapping[str, Any]) -> Struct:
    """Return an object as a Struct, whose numbers are all doubles."""
    message = Struct()
    message.update(value)
    return message


def plain(value: Struct) -> dict[str, Any]:
    """Return a Struct as JSON's parser would give it. Protobuf's own parser bounds how deep it goes."""
    return {name: _plain(item) for name, item in value.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def layout_message(layout: Layout) -> pb.Layout:
    """Return a layout as a message."""
    return pb.Layout(tensors=[pb.Tensor(name=t.name, shape=t.shape) for t in layout.tensors], vector=layout.vector)
