"""One GPU as a `Device`: states come to it, are updated in pieces through the ring, and leave when others need room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd_service.device.batch import ALIGNED, Get, Piece, Row
from adamd_service.device.residence import Residence, Residences
from adamd_service.device.ring import Ring
from adamd_service.device.runtime import DeviceLost, Runtime
from adamd_service.optim import Encoded, Lazy, Settings, State, Update
from adamd_service.optim.cuda_source import CudaKernel, cuda_kernel
from adamd_service.optim.kernel import Floats
from adamd_service.optim.rule import CONSTANTS, Rule
from adamd_service.optim.scalars import of_session
from adamd_service.optim.state import Run, counted, runs_of, source_of

MIB = 1024 * 1024
SLOTS = 4
CAPACITY = 8 * MIB  # of a slot each way: pinned, and on the device
LEAST = 256 * MIB  # a device with less is refused
SPARE = 64 * MIB  # for the driver, the kernels and other programs
LINE = 64  # elements: pieces begin at whole cache lines of every dtype


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel that the device can launch. order: for each of its arrays but g, the state's array."""

    kernel: CudaKernel
    function: Any
    arrays: tuple[str, ...]
    scalars: tuple[int, ...]  # places in `Scalars.typed`


class Gpu:
    """See `optim.device.Device`.

    Args:
        runtime: the calls of the device.
        limit: bytes that states may take of it; None: what is free, but for the ring and SPARE.
        lost: called where the device is lost, with the error; the process should end.
        slots, capacity: of the ring.

    """

    inline = False

    def __init__(
        self,
        runtime: Runtime,
        limit: int | None,
        lost: Callable[[DeviceLost], None],
        *,
        slots: int = SLOTS,
        capacity: int = CAPACITY,
    ) -> None:
        self.runtime = runtime
        self.described = runtime.name
        self.parallel = 256  # updates wait in the ring, and are taken together
        runtime.enter()
        self.ring = Ring(runtime, slots, capacity, lost)
        self.residences = Residences(runtime, self.ring, runtime.free() - SPARE if limit is None else limit)
        self._loaded: dict[tuple[Rule, np.dtype[Any]], Loaded] = {}
        self._loading = threading.Lock()

    def close(self) -> None:
        """End the threads and give the memory back."""
        self.ring.close()
        self.residences.close()

    def prepare(self, settings: Settings, dtype: np.dtype[Any]) -> None:
        """See `Device`."""
        for scalars in of_session(settings, dtype):
            self.loaded(scalars.rule, dtype)

    @contextmanager
    def ready(self, state: State) -> Iterator[None]:
        """See `Device`."""
        with self.residences.pinned(state):
            yield

    def fetch(self, state: State) -> None:
        """See `Device`."""
        self.residences.fetch(state)

    def apply(
        self,
        state: State,
        gradient: NDArray[Any] | Encoded,
        updates: Sequence[Update],
        bounds: Sequence[int],
        out: Floats | None,
    ) -> bool:
        """See `Device`."""
        source = source_of(gradient, state.params.dtype)
        runs = runs_of(state, source.size, updates, bounds, out)
        with self.residences.pinned(state) as home:
            home.stale = True
            if isinstance(source, Lazy):
                diverged = self.ring.run([piece for run in runs for piece in self._named(state, home, source, run)])
                self.ring.run(self._copied(state, home, out, 0, len(state.params)))
            else:
                pieces: list[Piece] = []
                done = 0
                for run in runs:
                    pieces += self._copied(state, home, out, done, run.start)
                    pieces += self._dense(state, home, source, run, out)
                    done = run.end
                diverged = self.ring.run([*pieces, *self._copied(state, home, out, done, len(state.params))])
        counted(state, runs)
        return diverged

    def loaded(self, rule: Rule, dtype: np.dtype[Any]) -> Loaded:
        """Return a rule's kernel, compiled and loaded when it is first needed."""
        with self._loading:
            found = self._loaded.get((rule, dtype))
            if found is None:
                kernel = cuda_kernel(rule.recurrence, dtype, rule.watched)
                places = {name: place for place, name in enumerate((*rule.scalars, *CONSTANTS))}
                found = self._loaded[rule, dtype] = Loaded(
                    kernel,
                    self.runtime.load(kernel),
                    tuple(name for name in kernel.arrays if name != "g"),
                    tuple(places[name] for name in kernel.scalars),
                )
            return found

    def _row(self, state: State, home: Residence, run: Run, start: int) -> dict[str, Any]:
        """What a row of `run` needs that begins at element `start` of the state."""
        scalars = run.update.scalars
        loaded = self.loaded(scalars.rule, state.params.dtype)
        names = {"p": "params", **dict(zip(scalars.rule.arrays, state.slots, strict=True))}
        ahead = start * state.params.itemsize
        return {
            "kernel": loaded.kernel,
            "function": loaded.function,
            "addresses": tuple(home.of(names[array]) + ahead for array in loaded.arrays),
            "scalars": tuple(scalars.typed[place] for place in loaded.scalars),
        }

    def _dense(self, state: State, home: Residence, source: Encoded, run: Run, out: Floats | None) -> Iterator[Row]:
        """Every element of the run."""
        width = self._width(state)
        for start in range(run.start, run.end, width):
            stop = min(start + width, run.end)
            yield Row(
                **self._row(state, home, run, start),
                size=stop - start,
                write=_written(source, start + run.source - run.start, stop + run.source - run.start),
                out=None if out is None else out[start:stop],
            )

    def _named(self, state: State, home: Residence, source: Lazy, run: Run) -> Iterator[Row]:
        """Only the elements that a sparse-lazy gradient names."""
        first, last = source.named(run.start, run.end)
        width = self._width(state) // 2  # an index of 4 bytes comes with each
        for start in range(first, last, width):
            index, values = source.taken(start, min(start + width, last))
            yield Row(
                **self._row(state, home, run, 0),
                size=len(values),
                write=_copied_from(values),
                index=np.ascontiguousarray(index),
            )

    def _copied(self, state: State, home: Residence, out: Floats | None, start: int, stop: int) -> list[Get]:
        """Parameters that the answer has although no update touches them."""
        if out is None:
            return []
        width = self._width(state)
        itemsize = state.params.itemsize
        return [
            Get(out[at : min(at + width, stop)], home.of("params") + at * itemsize) for at in range(start, stop, width)
        ]

    def _width(self, state: State) -> int:
        """How many elements fill a slot, beside their row."""
        return (self.ring.capacity - 16 * ALIGNED) // state.params.itemsize // LINE * LINE


def _written(source: Encoded, start: int, stop: int) -> Callable[[Floats], None]:
    """Return what writes elements start..stop-1 of a gradient, widened, into pinned memory."""

    def write(into: Floats) -> None:
        part = source.part(start, stop, into)
        if part.ctypes.data != into.ctypes.data:  # a view of the body as it came
            into[:] = part

    return write


def _copied_from(values: Floats) -> Callable[[Floats], None]:
    def write(into: Floats) -> None:
        into[:] = values

    return write
