"""Names a torch optimizer's parameters for its session's layout, and refuses tensors that no session takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from adamd.errors import InvalidRequest, WrongDtype, WrongLayout

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
# Dtypes whose master, the session's parameter, is float32.
NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ParameterPlace:
    """One parameter, its name in the session's layout, and the index of its param group."""

    name: str
    group: int
    tensor: torch.Tensor

    def __str__(self) -> str:
        return f"parameter {self.name!r}"


def copy_of(value: Any) -> Any:
    """Return a copy of a tensor; any other value as it is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def check_ordered(params: Any) -> None:
    """Refuse parameters in a set: its order changes from run to run, and parameters would swap their state.

    Raises:
        TypeError: they are in a set.

    """
    if isinstance(params, set | frozenset | WeakSet):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets "
            "will change between runs, and layers would change places. Give a list, or model.named_parameters()"
        )


def places(groups: Sequence[dict[str, Any]]) -> tuple[ParameterPlace, ...]:
    """Return the parameters of all groups, sorted by name as the session's layout is.

    A name is the one that ``model.named_parameters()`` gave, else group.index, as in "0.3"; the index is padded with
    zeros, so that the names keep the parameters' order.

    Raises:
        WrongLayout: two parameters of one name.

    """
    by_name: dict[str, ParameterPlace] = {}
    for index, group in enumerate(groups):
        tensors = group["params"]
        width = len(str(max(len(tensors) - 1, 0)))
        names = group.get("param_names") or [f"{index}.{number:0{width}}" for number in range(len(tensors))]
        for name, tensor in zip(names, tensors, strict=True):
            if name in by_name:
                raise WrongLayout(
                    f"two parameters are named {name!r} (groups {by_name[name].group} and {index}); a session knows "
                    "its tensors by name: give each its own, as in "
                    "[(f'head.{n}', p) for n, p in head.named_parameters()]"
                )
            by_name[name] = ParameterPlace(name, index, tensor)
    return tuple(by_name[name] for name in sorted(by_name))


def check(places: Sequence[ParameterPlace]) -> str:
    """Return the session's dtype: "float64" where all parameters are that, else "float32".

    Raises:
        WrongDtype: a parameter is complex, or only some are float64.
        WrongLayout: parameters overlap in memory, have no memory yet, or are split over processes.

    """
    if not places:
        raise WrongLayout("the param groups have no parameters at all")
    for place in places:
        _check_kind(place)
    kinds = {place.tensor.dtype: place for place in places}
    if len(kinds) > 1 and torch.float64 in kinds:
        raise WrongDtype(
            f"{' and '.join(f'{place} is {kind}' for kind, place in kinds.items())}; a session is float64 or float32 "
            "as a whole. Convert the model (model.float()), or give each dtype an optimizer of its own"
        )
    _check_apart(places)
    return "float64" if torch.float64 in kinds else "float32"


def _check_kind(place: ParameterPlace) -> None:
    tensor = place.tensor
    if torch.nn.parameter.is_lazy(tensor):
        raise WrongLayout(f"{place} has no shape yet; run the model once on some input, then make the optimizer")
    if hasattr(tensor, "device_mesh"):
        raise WrongLayout(
            f"{place} is split over processes (DTensor); a session takes whole tensors, as DDP keeps them"
        )
    if tensor.is_complex():
        raise WrongDtype(f"{place} is {tensor.dtype}; train its real view instead: torch.view_as_real(x)")
    if tensor.dtype not in DTYPES:
        raise WrongDtype(
            f"{place} is {tensor.dtype}; float32, float64, bfloat16 and float16 parameters can be trained. Keep the "
            "model in one of these, and compute in the narrower dtype"
        )
    if tensor.layout is not torch.strided or tensor.is_meta:
        what = "on the meta device" if tensor.is_meta else f"{tensor.layout}"
        raise WrongLayout(f"{place} is {what}; a session takes dense tensors with memory")
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise WrongLayout(f"{place} is expanded: its elements share memory; use x.expand(…).clone()")


TAKE_SPARSE = "SGD", "Adagrad"  # optimizers of torch that take sparse gradients


def check_gradient(place: ParameterPlace, kind: str) -> None:
    """Raise InvalidRequest where a gradient is sparse."""
    gradient = place.tensor.grad
    if gradient.layout is not torch.strided:
        local = f"; torch.optim.{kind} takes it, a session does not" if kind in TAKE_SPARSE else ""
        raise InvalidRequest(
            f"{place} has a {gradient.layout} gradient{local}; {kind} at a server needs a dense one: leave sparse=True "
            "away from the embedding, or set p.grad = p.grad.to_dense() before the step"
        )


def _check_apart(places: Sequence[ParameterPlace]) -> None:
    """Refuse parameters that share elements: a session would update each shared element twice."""
    ranges = [(*_byte_range(place.tensor), place) for place in places if place.tensor.numel()]
    overlapping: list[tuple[int, ParameterPlace]] = []
    for start, end, place in sorted(ranges, key=lambda row: row[0]):
        overlapping = [(until, other) for until, other in overlapping if until > start]
        for _, other in overlapping:
            if _share(place.tensor, other.tensor):
                raise WrongLayout(
                    f"{other} and {place} share memory; give the optimizer each element once: tied weights are one "
                    "Parameter used twice"
                )
        overlapping.append((end, place))


def _byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a nonempty tensor's first byte and of its end. torch has no negative strides."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start: int = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _share(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Say whether two tensors whose address ranges overlap share an element; interleaved columns do not."""
    if first.device != second.device:  # addresses on two devices cannot be compared
        return False
    if first.is_contiguous() and second.is_contiguous():
        return True
    return bool(torch.isin(_addresses(first), _addresses(second)).any())


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    addresses = torch.tensor(tensor.data_ptr() // tensor.element_size())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        addresses = addresses.unsqueeze(-1) + torch.arange(size) * stride
    return addresses.reshape(-1)
