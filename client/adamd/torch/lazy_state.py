"""``optimizer.state`` of an optimizer at a server: a real ``defaultdict``, read when somebody looks into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeAlias

import torch

Entry: TypeAlias = dict[str, Any]


class Held(defaultdict[Any, Any]):
    """A state in torch's layout, with an entry for each parameter from the first moment.

    Which entries there are is known; what is in them is read from the server when it is first asked for, and kept until
    the next step. As in torch, whoever writes into it changes the optimizer: `changed` tells it. Keys that are no
    tensors are the user's own (torch keeps them too), and stay.

    Args:
        tensors: returns the parameters, in the groups' order.
        read: returns the state that the server has.

    """

    def __init__(self, tensors: Callable[[], Iterable[torch.Tensor]], read: Callable[[], Mapping[Any, Entry]]) -> None:
        super().__init__(dict)
        self._tensors = tensors
        self._read = read
        self._here = False  # the entries have been read, or were put here
        self._written = False  # an entry was put here
        self._marks: dict[Any, Any] = {}  # what the entries were when they were read

    # -- for the optimizer

    def forget(self) -> None:
        """Drop what was read: a step has made it old."""
        for key in [key for key in super().__iter__() if isinstance(key, torch.Tensor)]:
            super().__delitem__(key)
        self._here, self._written, self._marks = False, False, {}

    def take(self, state: Mapping[Any, Any]) -> None:
        """Hold this state, in place of all that was here; it is no change until somebody writes into it."""
        super().clear()
        super().update(state)
        self._here, self._written, self._marks = True, False, self._marked()

    def changed(self) -> bool:
        """Say whether somebody has written to the state since it was read."""
        return self._here and (self._written or not _same(self._marks, self._marked()))

    def fill(self) -> None:
        """Read the state, where that has not been done."""
        if self._here:
            return
        found = self._read()
        super().update(found)
        self._here, self._marks = True, self._marked()

    def _marked(self) -> dict[Any, Any]:
        """Return what is other when a value is replaced, or a tensor is written to. It holds the values."""
        return {
            key: {name: (value, _version(value)) for name, value in entry.items()} if isinstance(entry, dict) else {}
            for key, entry in super().items()
            if isinstance(key, torch.Tensor) and entry != {}
        }

    # -- what needs no look at the server

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __iter__(self) -> Iterator[Any]:
        if not self._here:
            yield from self._tensors()
        yield from super().__iter__()

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        return not self._here and isinstance(key, torch.Tensor) and any(key is tensor for tensor in self._tensors())

    def keys(self) -> KeysView[Any]:  # type: ignore[override]  # a view all the same
        return KeysView(self)

    # -- what does

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, torch.Tensor):
            self.fill()
        return super().__getitem__(key)

    def __missing__(self, key: Any) -> Any:
        made: Entry = {}
        super().__setitem__(key, made)
        return made

    def get(self, key: Any, default: Any = None) -> Any:
        if isinstance(key, torch.Tensor):
            self.fill()
        return super().get(key, default)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        self.fill()
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        self.fill()
        return ValuesView(self)

    def __eq__(self, other: object) -> bool:
        self.fill()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self.fill()
        return super().__repr__()

    def copy(self) -> Any:
        return defaultdict(dict, self.items())

    def __copy__(self) -> Any:
        return self.copy()

    def __reduce__(self) -> Any:
        """Be copied and pickled as the plain mapping that it looks like."""
        return defaultdict, (dict,), None, None, iter(self.items())

    # -- what changes it

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, torch.Tensor):
            self.fill()  # `changed` compares: what is put back as it was is no change
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
        self._here = self._written = True
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


def _same(before: dict[Any, Any], now: dict[Any, Any]) -> bool:
    """Compare marks: the very same values under the same names, none written to."""
    if before.keys() != now.keys() or any(before[key].keys() != now[key].keys() for key in now):
        return False
    pairs = ((before[key][name], now[key][name]) for key in now for name in now[key])
    return all(old is new and had == has for (old, had), (new, has) in pairs)
