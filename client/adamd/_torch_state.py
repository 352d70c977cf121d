"""A session's exported state as `torch.optim.Adam`'s ``optimizer.state``, and back.

Export: safetensors with ``param:<name>``, ``exp_avg:<name>``, ``exp_avg_sq:<name>``, with amsgrad
``max_exp_avg_sq:<name>``, and each tensor's count of updates in the metadata. torch: for each parameter that was ever
updated ``{"step": float32 scalar, "exp_avg", "exp_avg_sq"[, "max_exp_avg_sq"]}``, in the parameter's own dtype, device
and memory format. Of a bfloat16 or float16 parameter they are float32, and so is its master, "master_param".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from adamd._torch_layout import NARROW, Place
from adamd.errors import InvalidState
from adamd.wire import safetensors
from adamd.wire.dtypes import storage

MOMENTS = ("exp_avg", "exp_avg_sq")
LARGEST = "max_exp_avg_sq"
MASTER = "master_param"  # as transformer_engine's FusedAdam calls it
State = dict[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An export: at which step of which history it was taken, and the state in torch's layout."""

    step: int
    chain: str
    state: State


def unpack(export: bytes, places: Sequence[Place]) -> Unpacked:
    """Read an export. Parameters that were never updated have no state, as in torch."""
    body = memoryview(bytearray(export))  # writable, which torch wants of memory that it looks at
    header = safetensors.read_header(body)
    told = json.loads(header.metadata["adamd"])
    stored = {item.tensor.name: item for item in header.tensors}
    counts: dict[str, int] = told["state"]["counts"]
    state: State = {}
    for place in places:
        if not counts[place.name]:
            continue
        mine = {"step": _count(counts[place.name])}
        narrow = place.tensor.dtype in NARROW
        for array in (*MOMENTS, LARGEST, *((MASTER,) if narrow else ())):
            item = stored.get(f"{'param' if array == MASTER else array}:{place.name}")
            if item is None:  # no amsgrad
                continue
            flat = np.frombuffer(
                body[header.data_start + item.start : header.data_start + item.end], storage(item.dtype)
            )
            dtype = torch.float32 if narrow else place.tensor.dtype
            mine[array] = torch.empty_like(place.tensor, dtype=dtype, requires_grad=False)
            mine[array].copy_(torch.from_numpy(flat.reshape(item.tensor.shape)))
        state[place.tensor] = mine
    return Unpacked(told["step"], told["chain"], state)


def pack(places: Sequence[Place], state: Mapping[torch.Tensor, Any], settings: Mapping[str, Any]) -> memoryview:
    """Write the export of a session with the parameters as they are now and this state.

    Args:
        places: all parameters, as `_torch_layout.check` wants them.
        state: in torch's layout, checked by `check`.
        settings: the whole of them, with name and amsgrad.

    """
    dtype = "float64" if any(place.tensor.dtype == torch.float64 for place in places) else "float32"
    arrays = ("param", *MOMENTS, *((LARGEST,) if settings["amsgrad"] else ()))
    counts = {place.name: int(state.get(place.tensor, {}).get("step", 0)) for place in places}
    told = {
        "optimizer": dict(settings),
        "dtype": dtype,
        "state": {"step": max(counts.values()), "counts": counts},
    }
    tensors = [(f"{array}:{place.name}", dtype, tuple(place.tensor.shape)) for array in arrays for place in places]
    head = safetensors.write_header(tensors, {"adamd": json.dumps(told, allow_nan=False)})
    itemsize = storage(dtype).itemsize
    body = np.empty(len(head) + len(arrays) * itemsize * sum(place.tensor.numel() for place in places), np.uint8)
    body[: len(head)] = np.frombuffer(head, np.uint8)
    rest = torch.from_numpy(body[len(head) :].view(storage(dtype)))  # the header is padded, so this is aligned
    start = 0
    for array in arrays:
        for place in places:
            end = start + place.tensor.numel()
            mine = _parameter(place, state) if array == "param" else state.get(place.tensor, {}).get(array)
            _fill(rest[start:end].view(place.tensor.shape), mine)
            start = end
    return memoryview(body)


def _parameter(place: Place, state: Mapping[torch.Tensor, Any]) -> torch.Tensor:
    """Return a parameter's master, if the model has not been given another value since."""
    tensor = place.tensor.detach()
    master = state.get(place.tensor, {}).get(MASTER) if tensor.dtype in NARROW else None
    return tensor if master is None or not torch.equal(master.to(tensor), tensor) else master


def uncast(state: dict[Any, Any], groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Put back the float32 that `torch.optim.Optimizer.load_state_dict` has cast to a narrow parameter's dtype."""
    keys = chain.from_iterable(group["params"] for group in saved["param_groups"])
    tensors = chain.from_iterable(group["params"] for group in groups)
    for key, tensor in zip(keys, tensors, strict=True):
        if tensor.dtype in NARROW and key in saved["state"]:
            for name, value in saved["state"][key].items():
                if isinstance(value, torch.Tensor) and name != "step":
                    state[tensor][name] = value.to(tensor.device, torch.float32)


def _fill(target: torch.Tensor, source: torch.Tensor | None) -> None:
    if source is None:  # never updated
        target.zero_()
    else:
        target.copy_(source)


def check(places: Sequence[Place], state: Mapping[Any, Any], *, amsgrad: bool) -> None:
    """Check a loaded state against the parameters.

    Raises:
        InvalidState: an entry is missing, or of another shape.

    """
    wanted = (*MOMENTS, LARGEST) if amsgrad else MOMENTS
    for place in places:
        mine = state.get(place.tensor)
        if not mine:
            continue
        for array in ("step", *wanted):
            if array not in mine:
                hint = "; it was saved without amsgrad" if array == LARGEST else ""
                raise InvalidState(f"the state of {place} has no {array!r}{hint}; wanted Adam's, with step and moments")
        for array in (*wanted, *((MASTER,) if MASTER in mine else ())):
            if mine[array].shape != place.tensor.shape:
                raise InvalidState(
                    f"{array} of {place} has shape {list(mine[array].shape)}, the parameter {list(place.tensor.shape)}"
                )
        if not 0 <= float(mine["step"]) < 2**53 or float(mine["step"]) % 1:
            raise InvalidState(f"the step of {place} is {float(mine['step'])!r}; wanted a count")


def _count(count: int) -> torch.Tensor:
    """Return a count as torch keeps it: float32, float64 where that is the default dtype (or where it must be)."""
    wide = torch.get_default_dtype() == torch.float64 or count > 2**24
    return torch.tensor(float(count), dtype=torch.float64 if wide else torch.float32)
