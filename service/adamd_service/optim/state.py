"""A session's state, and the one function that changes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adamd_service.optim.encoded import SLICE, Encoded, Lazy, Raw
from adamd_service.optim.kernel import Block, Floats, Kernel
from adamd_service.optim.scalars import Update, typed


@dataclass(slots=True, eq=False)
class State:
    """Flat arrays of one length and one dtype (float32 or float64), in layout order, and each tensor's own count of
    updates.

    max_exp_avg_sq is None without AMSGrad. The arrays belong to the state: `apply` changes them in place.
    """

    params: Floats
    exp_avg: Floats
    exp_avg_sq: Floats
    max_exp_avg_sq: Floats | None
    counts: list[int]

    @classmethod
    def fresh(cls, parameters: Floats, tensor_count: int, amsgrad: bool) -> Self:
        """Step 0: a copy of the parameters (flat, float32 or float64), zero moments, zero counts."""
        return cls(
            params=np.array(parameters, order="C"),
            exp_avg=np.zeros(parameters.shape, parameters.dtype),
            exp_avg_sq=np.zeros(parameters.shape, parameters.dtype),
            max_exp_avg_sq=np.zeros(parameters.shape, parameters.dtype) if amsgrad else None,
            counts=[0] * tensor_count,
        )

    @property
    def arrays(self) -> dict[str, Floats]:
        """The arrays that there are, by name."""
        every = {
            "params": self.params,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "max_exp_avg_sq": self.max_exp_avg_sq,
        }
        return {name: array for name, array in every.items() if array is not None}

    @property
    def nbytes(self) -> int:
        """The arrays' bytes, and 8 for each count."""
        return sum(array.nbytes for array in self.arrays.values()) + 8 * len(self.counts)

    def copy(self) -> Self:
        """A state that shares nothing with this one."""
        peak = None if self.max_exp_avg_sq is None else self.max_exp_avg_sq.copy()
        return type(self)(self.params.copy(), self.exp_avg.copy(), self.exp_avg_sq.copy(), peak, list(self.counts))


@dataclass(frozen=True, slots=True)
class _Run:
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
    source = Raw.of(gradient, state.params.dtype) if isinstance(gradient, np.ndarray) else gradient
    runs = _runs(state, source.size, updates, bounds, out)
    if isinstance(source, Lazy):
        diverged = _apply_named(state, source, runs, kernel, slice_size)
        if out is not None:
            out[:] = state.params
    else:
        diverged = _apply_all(state, source, runs, out, kernel, slice_size)
    for run in runs:
        for tensor in range(run.update.first, run.update.last):
            state.counts[tensor] += 1
    return diverged


def _apply_all(
    state: State, source: Encoded, runs: Sequence[_Run], out: Floats | None, kernel: Kernel, slice_size: int
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


def _apply_named(state: State, source: Lazy, runs: Sequence[_Run], kernel: Kernel, slice_size: int) -> bool:
    """Only named elements take their step: they are gathered, the same kernel runs on them, they are put back."""
    diverged = False
    for run in runs:
        first, last = source.named(run.start, run.end)
        for start in range(first, last, slice_size):
            where, gradient = source.taken(start, min(start + slice_size, last))
            peak = state.max_exp_avg_sq
            block = Block(
                p=state.params[where],
                g=gradient,
                m=state.exp_avg[where],
                v=state.exp_avg_sq[where],
                v_max=None if peak is None else peak[where],
                out=None,
            )
            diverged |= kernel(block, run.update.scalars)
            state.params[where], state.exp_avg[where], state.exp_avg_sq[where] = block.p, block.m, block.v
            if peak is not None:
                peak[where] = block.v_max
    return diverged


def check_state(state: State) -> None:
    """Raise ValueError, naming the array and the index, for NaN or infinity anywhere, a negative v, v_max or count, or
    arrays that do not match.
    """
    for name, array in state.arrays.items():
        if array.ndim != 1 or array.shape != state.params.shape or array.dtype != state.params.dtype:
            raise ValueError(f"{name} is {_kind(array)}; params is {_kind(state.params)}, wanted the same")
        _check_values(name, array, signed=name in ("params", "exp_avg"))
    if state.params.dtype not in (np.float32, np.float64):
        raise ValueError(f"params is {state.params.dtype}; wanted float32 or float64")
    for tensor, count in enumerate(state.counts):
        if type(count) is not int or count < 0:
            raise ValueError(f"counts[{tensor}] is {count!r}; wanted a whole number, 0 or more")


def _runs(
    state: State, length: int, updates: Sequence[Update], bounds: Sequence[int], out: Floats | None
) -> tuple[_Run, ...]:
    """Where each update lies, once everything is known to fit."""
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
    spans = list(_spans(updates, bounds, dtype))
    covered = sum(end - start for _, start, end in spans)
    if length not in (size, covered):
        raise ValueError(
            f"a gradient of {length} elements; wanted {size} for the layout or {covered} for the tensors updated"
        )
    runs: list[_Run] = []
    source = 0
    for update, start, end in spans:
        runs.append(_Run(update, start, end, start if length == size else source))
        source += end - start
    return tuple(runs)


def _spans(updates: Sequence[Update], bounds: Sequence[int], dtype: np.dtype[Any]) -> Iterator[tuple[Update, int, int]]:
    last = 0
    for update in updates:
        if not last <= update.first < update.last < len(bounds):
            raise ValueError(f"an update of tensors {update.first}..{update.last} after {last}, of {len(bounds) - 1}")
        last = update.last
        typed(update.scalars, dtype)  # raises for scalars of another dtype, here and not half way through
        yield update, bounds[update.first], bounds[update.last]


def _block(state: State, here: slice, gradient: Floats, out: Floats | None) -> Block:
    return Block(
        p=state.params[here],
        g=gradient,
        m=state.exp_avg[here],
        v=state.exp_avg_sq[here],
        v_max=None if state.max_exp_avg_sq is None else state.max_exp_avg_sq[here],
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
