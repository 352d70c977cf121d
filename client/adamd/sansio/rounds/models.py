"""Models: state dicts, with counters and tensors that stay at home, to a session's arrays and back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from adamd.errors import InvalidRequest, WrongDtype
from adamd.wire.dtypes import Array
from adamd.wire.layout import Layout
from adamd.wire.patterns import Places, places

ROLES = ("averaged", "carry", "private")  # lists of names and patterns in the settings
STATISTICS = ("running_mean", "running_var")  # as torch.nn's batch norms call them
EXACT = {"float32": 2**24, "float64": 2**53}  # up to which every whole number is one of the dtype


def counters(values: Any) -> tuple[str, ...]:
    """Return the names of the tensors of whole numbers, as num_batches_tracked."""
    if not isinstance(values, Mapping):
        return ()
    return tuple(name for name, value in values.items() if _is_whole(value))


def statistics(values: Any) -> tuple[str, ...]:
    """Return the names of a batch norm's running statistics."""
    if not isinstance(values, Mapping):
        return ()
    return tuple(str(name) for name in values if str(name).rpartition(".")[2] in STATISTICS)


def in_floats(values: Any, dtype: str | None) -> Any:
    """Return the values with tensors of whole numbers as floats of ``dtype`` (None: float32). The others stay.

    Raises:
        WrongDtype: a number is too large to be exact.

    """
    if not isinstance(values, Mapping):
        return values
    target = dtype or "float32"
    return {name: _floats(name, value, target) if _is_whole(value) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Roles:
    """Which tensors are not simply stepped, by the settings of a session's rounds."""

    places: Places

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Read the settings. A tensor that two of their lists match belongs to the first, as at the server."""
        return cls(places([settings.get(name) or () for name in ROLES]))

    def is_carried(self, name: str) -> bool:
        """Say whether it takes the clients' maximum: a counter."""
        return self.places.of(name) == ROLES.index("carry")

    def is_private(self, name: Any) -> bool:
        """Say whether it never leaves a client."""
        return isinstance(name, str) and self.places.of(name) == ROLES.index("private")

    def shared(self, values: Any) -> Any:
        """Return the values without those that are private."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if not self.is_private(name)}

    def shared_layout(self, layout: Layout) -> Layout:
        """Return the layout of what leaves a client."""
        kept = tuple(tensor for tensor in layout.tensors if not self.is_private(tensor.name))
        return layout if len(kept) == len(layout.tensors) else Layout(kept)


def state_dict(parameters: Any, roles: Roles) -> dict[str, Any]:
    """Return arrays as torch tensors that share their memory; counters as int64, a copy.

    Raises:
        InvalidRequest: the session is one array, and no dict.
        ModuleNotFoundError: torch is not installed.

    """
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("this session is one plain array, and has no names for a state dict; use its parameters")
    torch = _torch()
    return {
        name: torch.from_numpy(array.astype(np.int64) if roles.is_carried(name) else array)
        for name, array in parameters.items()
    }


def _torch() -> Any:
    try:
        return importlib.import_module("torch")  # only who asks for its tensors needs it
    except ModuleNotFoundError as error:
        message = "a state dict is of torch's tensors: pip install 'adamd[torch]'; parameters are NumPy arrays"
        raise ModuleNotFoundError(message, name="torch") from error


def _is_whole(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "iu"
    kind = str(getattr(value, "dtype", ""))
    return hasattr(value, "detach") and kind.startswith(("torch.int", "torch.uint"))


def _floats(name: str, value: Any, dtype: str) -> Array:
    whole = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    largest = max(abs(int(whole.min())), abs(int(whole.max()))) if whole.size else 0
    if largest > EXACT[dtype]:
        raise WrongDtype(
            f"{name!r} has {largest}, which {dtype} does not hold exactly; dtype='float64' does up to 2^53"
        )
    return whole.astype(dtype)
