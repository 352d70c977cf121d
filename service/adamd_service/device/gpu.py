"""One GPU as a `Device`.

States come to it, are updated in pieces through the ring, and leave when others need room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import Floats
from adamd_service.device.batch import ALIGNED, Get, Piece, Row
from adamd_service.device.residence import Residence, Residences
from adamd_service.device.ring import Ring
from adamd_service.device.runtime import DeviceLost, Runtime
from adamd_service.optim import Encoded, Lazy, Settings, State, Update
from adamd_service.optim.kernels.cuda_source import CudaKernel, cuda_kernel
from adamd_service.optim.recurrence.rule import CONSTANTS, Rule
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


class Step(NamedTuple):
    """What `Device.apply` takes."""

    state: State
    gradient: NDArray[Any] | Encoded
    updates: Sequence[Update]
    bounds: Sequence[int]
    out: Floats | None


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
        return self.apply_all([Step(state, gradient, updates, bounds, out)])[0]

    def apply_all(self, steps: Sequence[Step]) -> list[bool]:
        """Take a step of each of many states, all of which have to fit on the device; says for each what `apply` does.

        What does not fit together is refused before anything is changed.
        """
        planned: list[tuple[Step, tuple[Run, ...], list[Piece]]] = []
        after: list[Piece] = []
        with ExitStack() as pins:
            homes = []
            for step in steps:
                source = source_of(step.gradient, step.state.params.dtype)
                runs = runs_of(step.state, source.size, step.updates, step.bounds, step.out)
                homes.append(pins.enter_context(self.residences.pinned(step.state)))
                if isinstance(source, Lazy):
                    pieces = [piece for run in runs for piece in self._named(step, homes[-1], source, run)]
                    after += self._copied(step, homes[-1], 0, len(step.state.params))
                else:
                    pieces = list(self._whole(step, homes[-1], source, runs))
                planned.append((step, runs, pieces))
            for home in homes:
                home.stale = True
            self.ring.run([piece for _, _, pieces in planned for piece in pieces])
            self.ring.run(after)
        for step, runs, _ in planned:
            counted(step.state, runs)
        return [any(piece.diverged for piece in pieces) for _, _, pieces in planned]

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

    def _whole(self, step: Step, home: Residence, source: Encoded, runs: Sequence[Run]) -> Iterator[Piece]:
        """Every element of the runs, and, for the answer, what lies between them."""
        done = 0
        for run in runs:
            yield from self._copied(step, home, done, run.start)
            yield from self._dense(step, home, source, run)
            done = run.end
        yield from self._copied(step, home, done, len(step.state.params))

    def _dense(self, step: Step, home: Residence, source: Encoded, run: Run) -> Iterator[Row]:
        width = self._width(step.state)
        for start in range(run.start, run.end, width):
            stop = min(start + width, run.end)
            yield Row(
                **self._row(step.state, home, run, start),
                size=stop - start,
                write=_written(source, start + run.source - run.start, stop + run.source - run.start),
                out=None if step.out is None else step.out[start:stop],
            )

    def _named(self, step: Step, home: Residence, source: Lazy, run: Run) -> Iterator[Piece]:
        """Only the elements that a sparse-lazy gradient names."""
        first, last = source.named(run.start, run.end)
        width = self._width(step.state) // 2  # an index of 4 bytes comes with each
        for start in range(first, last, width):
            index, values = source.taken(start, min(start + width, last))
            yield Row(
                **self._row(step.state, home, run, 0),
                size=len(values),
                write=_copied_from(values),
                index=np.ascontiguousarray(index),
            )

    def _copied(self, step: Step, home: Residence, start: int, stop: int) -> Iterator[Get]:
        """Parameters that the answer has although no update touches them."""
        if step.out is None:
            return
        width, itemsize = self._width(step.state), step.out.itemsize
        for at in range(start, stop, width):
            yield Get(step.out[at : min(at + width, stop)], home.of("params") + at * itemsize)

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
