"""Writes a session's export, in the format of `adamd.wire.export_format`, piece by piece, without a copy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.wire import safetensors
from adamd_service.codecs.documents import document
from adamd_service.engine import Exported, advice_of

PREFIX = {"params": "param"}


def state_pieces(exported: Exported) -> list[memoryview]:
    """Return the file: its header, then the arrays as they lie in memory."""
    head = exported.head
    tensors, pieces = [], []
    for array, flat in exported.arrays.items():
        prefix = PREFIX.get(array, array)
        tensors += [(f"{prefix}:{t.name}", head.spec.dtype, t.shape) for t in head.spec.layout.tensors]
        pieces.append(raw(flat))
    counts = dict(zip(head.spec.layout.names, exported.counts, strict=True))
    state: dict[str, Any] = {"step": head.step, "counts": counts}
    if head.progress:
        state["progress"] = head.progress
    if exported.carried:
        names = head.spec.layout.names
        state["carried"] = {n: dict(zip(names, values, strict=True)) for n, values in exported.carried.items()}
    metadata = document(head, exported.settings, advice_of(head, exported.settings), diverged=False) | {"state": state}
    del metadata["diverged"]  # the arrays say it
    header = safetensors.write_header(tensors, {"adamd": json.dumps(metadata)})
    return [memoryview(header), *pieces]


def raw(flat: NDArray[Any]) -> memoryview:
    """Return an array's own bytes."""
    return memoryview(flat.view(np.uint8)).cast("B") if flat.size else memoryview(b"")
