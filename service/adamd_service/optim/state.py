"""A session's state, and the one function that changes it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import SLICE, Floats
from adamd_service.optim.family import Optimizer
from adamd_service.optim.gradients.encoded import Encoded, Lazy, Raw
from adamd_service.optim.kernels.protocol import Block, Kernel
from adamd_service.optim.recurrence.wrapping import BEGINS, BOUNDS
from adamd_service.optim.scalars import Update
from adamd_service.optim.settings import Settings

BEST = "best"  # the array's name in snapshots and exports


@dataclass(slots=True, eq=False, weakref_slot=True)
class State:
    """Flat arrays of one length and one dtype (float32 or float64), in layout order, and each tensor's own count of
    updates.

    slots: the optimizer's state arrays, by torch's names, in the order of `Settings.arrays`. carried: by tensor, what
    the optimizer carries along, in `Optimizer.carried`'s order; None where it carries nothing. best: the parameters of
    the lowest loss, where the session keeps them; no update looks at them. The arrays belong to the state: `apply`
    changes them in place.
    """

    optimizer: Optimizer
    params: Floats
    slots: dict[str, Floats]
    counts: list[int]
    carried: list[tuple[float, ...]] | None
    best: Floats | None = None

    @classmethod
    def fresh(cls, parameters: Floats, tensor_count: int, settings: Settings) -> Self:
        """Step 0: a copy of the parameters (flat, float32 or float64), arrays as the optimizer begins, zero counts."""
        first = tuple(settings.optimizer.carried.values())
        return cls(
            optimizer=settings.optimizer,
            params=np.array(parameters, order="C"),
            slots={name: _begun(parameters, settings.begin(name)) for name in settings.arrays},
            counts=[0] * tensor_count,
            carried=[first] * tensor_count if first else None,
            best=np.array(parameters, order="C") if settings.keep_best else None,
        )

    @property
    def arrays(self) -> dict[str, Floats]:
        """The arrays that updates read and change, by name; the parameters first."""
        return {"params": self.params, **self.slots}

    @property
    def kept(self) -> dict[str, Floats]:
        """All arrays that there are, by name: those, and the best parameters."""
        return self.arrays if self.best is None else {**self.arrays, BEST: self.best}

    def take_best(self) -> None:
        """Make the parameters, as they are now, the best ones."""
        assert self.best is not None
        np.copyto(self.best, self.params)

    @property
    def nbytes(self) -> int:
        """The arrays' bytes, and 8 for each count and each number carried."""
        numbers = 1 + len(self.optimizer.carried)
        return sum(array.nbytes for array in self.kept.values()) + 8 * numbers * len(self.counts)

    @property
    def numbers(self) -> dict[str, tuple[float, ...]]:
        """What the tensors carry, in layout order, by the optimizer's names; empty where it carries nothing."""
        carried = self.carried or ()
        return {name: tuple(one[i] for one in carried) for i, name in enumerate(self.optimizer.carried)}

    def carry(self, numbers: Mapping[str, Sequence[float]]) -> None:
        """Take over what another state's tensors carried, `numbers` of it.

        Raises ValueError where they are not this optimizer's, or not one for each tensor.
        """
        names = self.optimizer.carried
        if set(numbers) != set(names) or any(len(values) != len(self.counts) for values in numbers.values()):
            raise ValueError(f"wanted {', '.join(names) or 'nothing'}, one number for each tensor")
        if names:
            self.carried = list(zip(*(map(float, numbers[name]) for name in names), strict=True))

    def copy(self, clone: Callable[[Floats], Floats] = np.copy) -> Self:
        """A state that shares nothing with this one; `clone` copies an array."""
        slots = {name: clone(array) for name, array in self.slots.items()}
        carried = None if self.carried is None else list(self.carried)
        best = None if self.best is None else clone(self.best)
        return type(self)(self.optimizer, clone(self.params), slots, list(self.counts), carried, best)


def _begun(parameters: Floats, first: str | float) -> Floats:
    if isinstance(first, str):  # "params"
        return np.array(parameters, order="C")
    if first == 0.0:  # the operating system's zero pages
        return np.zeros(parameters.shape, parameters.dtype)
    return np.full(parameters.shape, first, parameters.dtype)


@dataclass(frozen=True, slots=True)
class Run:
    """Where one update lies: elements start..end of the state, from `source` on in the gradient."""

    update: Update
    start: int
    end: int
    source: int


def apply(
    state: State,
    gradient: NDArray[Any] | Encoded,
    updates: Sequence[Update],
    bounds: Sequence[int],
    out: Floats | None,
    kernel: Kernel,
    *,
    slice_size: int = SLICE,
) -> bool:
    """Apply one step's updates in place and count them; True where a touched parameter or second moment is now NaN or
    infinite.

    gradient: checked; flat, float16, bfloat16 (as uint16), float32 or float64, no wider than the session, or `encoded`;
    either as long as the layout, or the updated tensors only, joined in layout order. bounds: the tensors' element
    offsets, one more than there are tensors. out: receives ALL parameters after the step (session dtype, flat,
    contiguous, overlapping nothing), None to skip it.
    Raises ValueError, before anything is changed, where these do not fit together. An error from the kernel leaves the
    state half done: drop it.
    """
    source = source_of(gradient, state.params.dtype)
    runs = runs_of(state, source.size, updates, bounds, out)
    if isinstance(source, Lazy):
        diverged = _apply_named(state, source, runs, kernel, slice_size)
        if out is not None:
            out[:] = state.params
    else:
        diverged = _apply_all(state, source, runs, out, kernel, slice_size)
    counted(state, runs)
    return diverged


def assign(state: State, values: Floats, tensors: Sequence[int], bounds: Sequence[int]) -> None:
    """Set the parameters of some tensors, and what began as a copy of them, without a step. No update is counted.

    values: of these tensors, joined in layout order, in the session's dtype. bounds: as in `apply`.
    Raises ValueError, before anything is changed, where these do not fit together.
    """
    sizes = [bounds[tensor + 1] - bounds[tensor] for tensor in tensors]
    if values.dtype != state.params.dtype or len(values) != sum(sizes):
        raise ValueError(f"{_kind(values)} for tensors of {sum(sizes)} elements in {state.params.dtype}")
    begins = {**state.optimizer.begins, **BEGINS}
    copies = [array for name, array in state.slots.items() if begins.get(name) == "params"]
    begin = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        here = values[begin : begin + size]
        for array in (state.params, *copies):
            array[bounds[tensor] : bounds[tensor + 1]] = here
        begin += size


def source_of(gradient: NDArray[Any] | Encoded, dtype: np.dtype[Any]) -> Encoded:
    """A gradient as `apply` takes it, for a session of `dtype`. Raises ValueError where it does not widen into it."""
    return Raw.of(gradient, dtype) if isinstance(gradient, np.ndarray) else gradient


def counted(state: State, runs: Sequence[Run]) -> None:
    """Count the updates that were made, and keep what the tensors now carry."""
    for run in runs:
        for tensor in range(run.update.first, run.update.last):
            state.counts[tensor] += 1
            if state.carried is not None:
                state.carried[tensor] = run.update.carried


def _apply_all(
    state: State, source: Encoded, runs: Sequence[Run], out: Floats | None, kernel: Kernel, slice_size: int
) -> bool:
    """Every element of the updated tensors takes its step."""
    widened = np.empty(0 if source.exact else min(slice_size, source.size), state.params.dtype)
    diverged = False
    done = 0
    for run in runs:
        if out is not None:
            out[done : run.start] = state.params[done : run.start]
        done = run.end
        # Only widening needs slices; without it one call covers the run. Every element is computed by itself, so the
        # bits are the same.
        width = max(1, run.end - run.start) if source.exact else slice_size
        for start in range(run.start, run.end, width):
            here = slice(start, min(start + width, run.end))
            ahead = run.source - run.start
            part = source.part(here.start + ahead, here.stop + ahead, widened)
            diverged |= kernel(_block(state, here, part, out), run.update.scalars)
    if out is not None:
        out[done:] = state.params[done:]
    return diverged


def _apply_named(state: State, source: Lazy, runs: Sequence[Run], kernel: Kernel, slice_size: int) -> bool:
    """Only named elements take their step: they are gathered, the same kernel runs on them, they are put back."""
    diverged = False
    for run in runs:
        first, last = source.named(run.start, run.end)
        for start in range(first, last, slice_size):
            where, gradient = source.taken(start, min(start + slice_size, last))
            arrays = tuple(array[where] for array in state.slots.values())
            block = Block(state.params[where], gradient, arrays, None)
            diverged |= kernel(block, run.update.scalars)
            state.params[where] = block.p
            for array, changed in zip(state.slots.values(), arrays, strict=True):
                array[where] = changed
    return diverged


def check_state(state: State) -> None:
    """Raise ValueError, naming the array and the index, for NaN or infinity anywhere, a number below 0 in an array that
    the optimizer keeps non-negative, a negative count, or arrays that do not match.
    """
    for name, array in state.kept.items():
        if array.ndim != 1 or array.shape != state.params.shape or array.dtype != state.params.dtype:
            raise ValueError(f"{name} is {_kind(array)}; params is {_kind(state.params)}, wanted the same")
        if name not in BOUNDS:  # which may be infinite: `check_bounds` looks at them
            _check_values(name, array, signed=name not in state.optimizer.nonnegative)
    if state.params.dtype not in (np.float32, np.float64):
        raise ValueError(f"params is {state.params.dtype}; wanted float32 or float64")
    for tensor, count in enumerate(state.counts):
        if type(count) is not int or count < 0:
            raise ValueError(f"counts[{tensor}] is {count!r}; wanted a whole number, 0 or more")
    for tensor, carried in enumerate(state.carried or ()):
        if not all(math.isfinite(number) and number >= 0.0 for number in carried):  # products and sums of weights
            raise ValueError(f"carried[{tensor}] is {carried}; wanted finite numbers, 0 or more")


def runs_of(
    state: State, length: int, updates: Sequence[Update], bounds: Sequence[int], out: Floats | None
) -> tuple[Run, ...]:
    """Where each update lies, once everything is known to fit; see `apply`."""
    size, dtype = len(state.params), state.params.dtype
    if (
        len(bounds) != len(state.counts) + 1
        or bounds[0] != 0
        or bounds[-1] != size
        or any(start > end for start, end in pairwise(bounds))
    ):
        raise ValueError(
            f"bounds of {len(bounds) - 1} tensors; wanted {len(state.counts)} that cover {size} elements in order"
        )
    if out is not None and (
        out.dtype != dtype or out.shape != (size,) or not out.flags.c_contiguous or not out.flags.writeable
    ):
        raise ValueError(f"out is {_kind(out)}; wanted contiguous, writable {dtype}[{size}]")
    spans = list(_spans(state, updates, bounds))
    covered = sum(end - start for _, start, end in spans)
    if length not in (size, covered):
        raise ValueError(
            f"a gradient of {length} elements; wanted {size} for the layout or {covered} for the tensors updated"
        )
    runs: list[Run] = []
    source = 0
    for update, start, end in spans:
        runs.append(Run(update, start, end, start if length == size else source))
        source += end - start
    return tuple(runs)


def _spans(state: State, updates: Sequence[Update], bounds: Sequence[int]) -> Iterator[tuple[Update, int, int]]:
    dtype = state.params.dtype
    last = 0
    for update in updates:
        if not last <= update.first < update.last < len(bounds):
            raise ValueError(f"an update of tensors {update.first}..{update.last} after {last}, of {len(bounds) - 1}")
        last = update.last
        if update.scalars.dtype != dtype:
            raise ValueError(f"scalars that are not rounded to {dtype}: they are for {update.scalars.dtype}")
        rule = update.scalars.rule
        if rule.optimizer is not state.optimizer or len(rule.arrays) != len(state.slots):
            raise ValueError(f"an update by {rule.optimizer.name} with {', '.join(rule.arrays)} of another state")
        yield update, bounds[update.first], bounds[update.last]


def _block(state: State, here: slice, gradient: Floats, out: Floats | None) -> Block:
    return Block(
        p=state.params[here],
        g=gradient,
        arrays=tuple(array[here] for array in state.slots.values()),
        out=None if out is None else out[here],
    )


def _kind(array: Floats) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _check_values(name: str, array: Floats, *, signed: bool) -> None:
    for start in range(0, len(array), SLICE):
        part = array[start : start + SLICE]
        bad = ~np.isfinite(part) if signed else ~(np.isfinite(part) & (part >= 0))
        if bad.any():
            index = int(bad.argmax())
            wanted = "a finite number" if signed else "a finite number, 0 or more"
            raise ValueError(f"{name}[{start + index}] is {part[index]}; wanted {wanted}")
