"""``optimizer.state`` of a remote optimizer: a ``defaultdict`` that is read from the server on first access."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeAlias

import torch

Entry: TypeAlias = dict[str, Any]


class LazyState(defaultdict[Any, Any]):
    """A state in torch's layout, with an entry for each parameter from the first moment.

    The keys are known without the server. The entries are read on first access, and kept until the next step. As in
    torch, writing to the state changes the optimizer: `changed` reports that. Keys that are no tensors are the user's
    own (torch keeps them too), and stay.

    Args:
        tensors: returns the parameters, in the groups' order.
        read: returns the state that the server has.

    """

    def __init__(self, tensors: Callable[[], Iterable[torch.Tensor]], read: Callable[[], Mapping[Any, Entry]]) -> None:
        super().__init__(dict)
        self._tensors = tensors
        self._read = read
        self._loaded = False  # the entries were read, or set by the user
        self._written = False  # the user set or removed an entry
        self._versions: dict[Any, Any] = {}  # the entries' values and tensor versions when they were read

    # -- for the optimizer

    def forget(self) -> None:
        """Drop the entries that were read: a step has made them old."""
        for key in [key for key in super().__iter__() if isinstance(key, torch.Tensor)]:
            super().__delitem__(key)
        self._loaded, self._written, self._versions = False, False, {}

    def replace(self, state: Mapping[Any, Any]) -> None:
        """Replace all entries by this state. That is no change in the sense of `changed`."""
        super().clear()
        super().update(state)
        self._loaded, self._written, self._versions = True, False, self._current_versions()

    def changed(self) -> bool:
        """Say whether somebody has written to the state since it was read."""
        return self._loaded and (self._written or not _same_versions(self._versions, self._current_versions()))

    def fill(self) -> None:
        """Read the state from the server, unless it is loaded."""
        if self._loaded:
            return
        state = self._read()
        super().update(state)
        self._loaded, self._versions = True, self._current_versions()

    def _current_versions(self) -> dict[Any, Any]:
        """Return each value and its tensor version: one of them changes when the value is replaced or written to."""
        return {
            key: {name: (value, _version(value)) for name, value in entry.items()} if isinstance(entry, dict) else {}
            for key, entry in super().items()
            if isinstance(key, torch.Tensor) and entry != {}
        }

    # -- access without the server

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __iter__(self) -> Iterator[Any]:
        if not self._loaded:
            yield from self._tensors()
        yield from super().__iter__()

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        return not self._loaded and isinstance(key, torch.Tensor) and any(key is tensor for tensor in self._tensors())

    def keys(self) -> KeysView[Any]:  # type: ignore[override]  # a view all the same
        return KeysView(self)

    # -- access that reads from the server

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, torch.Tensor):
            self.fill()
        return super().__getitem__(key)

    def __missing__(self, key: Any) -> Any:
        entry: Entry = {}
        super().__setitem__(key, entry)
        return entry

    def get(self, key: Any, default: Any = None) -> Any:
        if isinstance(key, torch.Tensor):
            self.fill()
        return super().get(key, default)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]  # a view all the same
        self.fill()
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]  # a view all the same
        self.fill()
        return ValuesView(self)

    def __eq__(self, other: object) -> bool:
        self.fill()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # Python's own way to say that it has no hash

    def __repr__(self) -> str:
        self.fill()
        return super().__repr__()

    def copy(self) -> Any:
        return defaultdict(dict, self.items())

    def __copy__(self) -> Any:
        return self.copy()

    def __reduce__(self) -> Any:
        """Copy and pickle as a plain ``defaultdict``."""
        return defaultdict, (dict,), None, None, iter(self.items())

    # -- changes

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, torch.Tensor):
            self.fill()  # so that `changed` can compare: setting the same value again is no change
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        if isinstance(key, torch.Tensor):
            self.fill()
        super().__delitem__(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if isinstance(key, torch.Tensor):
            self.fill()
        return super().pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        self.fill()
        return super().popitem()

    def clear(self) -> None:
        self._loaded = self._written = True
        super().clear()

    def update(self, *given: Any, **named: Any) -> None:
        for key, value in dict(*given, **named).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()


def _version(value: Any) -> Any:
    return value._version if isinstance(value, torch.Tensor) else None


def _same_versions(before: dict[Any, Any], now: dict[Any, Any]) -> bool:
    """Say whether the same values are under the same names, and none was written to."""
    if before.keys() != now.keys() or any(before[key].keys() != now[key].keys() for key in now):
        return False
    pairs = ((before[key][name], now[key][name]) for key in now for name in now[key])
    return all(old is new and old_version == new_version for (old, old_version), (new, new_version) in pairs)
