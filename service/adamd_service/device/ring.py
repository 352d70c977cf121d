"""A ring of slots, so that upload, update and download of different pieces overlap.

A slot is a stream, a thread, and a piece of pinned memory each way with as much on the device. Its thread takes as many
pieces as fit, of whichever sessions wait: a large session's updates are cut into pieces that fill a slot each, and many
small sessions share one upload, one launch and one download. While one slot's thread copies out of pinned memory,
another's kernel runs. What one session asks for is spread over all of them, since every element is updated by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adamd_service.device.batch import Batch, Piece, Slot
from adamd_service.device.runtime import DeviceLost, Runtime


@dataclass(slots=True)
class Room:
    """A slot's memory, given out from the front. ``up`` and ``down`` are what is taken of it each way."""

    capacity: int
    up: int = 0
    down: int = 0

    def fits(self, piece: Piece) -> bool:
        """Say whether it has room for the piece."""
        return self.up + piece.up <= self.capacity and self.down + piece.down <= self.capacity


BLOCKS = 8  # of a launch, for each multiprocessor: as many as it holds at once


@dataclass(slots=True, eq=False)
class Job:
    """What one caller waits for: its pieces, how many are not done, and whether one of them told of a divergence."""

    pieces: deque[Piece]
    left: int = 0
    diverged: bool = False
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Ring:
    """The slots of one device, and the queue before them. Used from any thread.

    Args:
        runtime: the device.
        slots: how many; each takes ``capacity`` bytes of pinned memory both ways, and of the device's.
        lost: called with the error, once, where the device is lost.

    """

    def __init__(self, runtime: Runtime, slots: int, capacity: int, lost: Callable[[DeviceLost], None]) -> None:
        self.capacity = capacity
        self._runtime = runtime
        self._lost = lost
        self._jobs: deque[Job] = deque()
        self._waiting = threading.Condition()
        self._closed: BaseException | None = None
        self._slots = [self._slot() for _ in range(slots)]
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"adamd-device-{number}", daemon=True)
            for number, slot in enumerate(self._slots)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, pieces: Sequence[Piece]) -> bool:
        """Have the pieces done, in any order, and wait; returns whether one of them diverged.

        Raises:
            DeviceLost: the device is lost.

        """
        if not pieces:
            return False
        job = Job(deque(pieces), len(pieces))
        with self._waiting:
            if self._closed is not None:
                raise self._closed
            self._jobs.append(job)
            self._waiting.notify_all()
        job.over.wait()
        if job.error is not None:
            raise job.error
        return job.diverged

    def close(self) -> None:
        """End the threads, after what they are at, and give the memory back."""
        self._end(RuntimeError("the device is closed"))
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            self._runtime.release(slot.up)
            self._runtime.release(slot.down)
        self._slots = []

    def _slot(self) -> Slot:
        runtime, capacity = self._runtime, self.capacity
        runtime.enter()
        return Slot(
            runtime.stream(),
            runtime.pinned(capacity),
            runtime.pinned(capacity),
            runtime.allocate(capacity),
            runtime.allocate(capacity),
            BLOCKS * runtime.processors,
        )

    def _serve(self, slot: Slot) -> None:
        self._runtime.enter()
        while self._serve_one(slot):
            pass

    def _serve_one(self, slot: Slot) -> bool:
        """Take a batch through the slot; False where the ring is closed. Nothing of the batch is kept: an answer's
        buffer is used again when nobody holds it any more.
        """
        batch = self._take()
        if not batch:
            return False
        error: BaseException | None = None
        try:
            work = Batch(slot, [piece for _, piece in batch])
            try:
                work.queue()
            finally:
                slot.stream.wait()  # also where that failed: what is queued uses the slot's memory
            work.collect()
        except BaseException as caught:  # the callers get it; this thread serves others
            error = caught
        self._done(batch, error)
        if isinstance(error, DeviceLost):
            self._end(error)
        return True

    def _take(self) -> list[tuple[Job, Piece]]:
        """As many pieces as fit, one of each job in turn, so that a large session does not keep small ones waiting."""
        room = Room(self.capacity)
        taken: list[tuple[Job, Piece]] = []
        with self._waiting:
            while not self._jobs and self._closed is None:
                self._waiting.wait()
            while self._jobs:
                job = self._jobs[0]
                piece = job.pieces[0]
                if taken and not room.fits(piece):
                    break
                room.up, room.down = room.up + piece.up, room.down + piece.down
                taken.append((job, job.pieces.popleft()))
                self._jobs.popleft()
                if job.pieces:
                    self._jobs.append(job)
        return taken

    def _done(self, batch: Sequence[tuple[Job, Piece]], error: BaseException | None) -> None:
        with self._waiting:
            for job, piece in batch:
                job.left -= 1
                job.diverged = job.diverged or piece.diverged
                if error is not None and job.error is None:
                    job.error = error
                    if job.pieces:  # what has not begun need not begin
                        job.left -= len(job.pieces)
                        job.pieces.clear()
                        self._jobs.remove(job)
                if job.left == 0:
                    job.over.set()

    def _end(self, reason: BaseException) -> None:
        """Refuse what comes, and fail what waits."""
        with self._waiting:
            first, self._closed = self._closed is None, self._closed or reason
            for job in self._jobs:
                job.error = job.error or reason
                job.left -= len(job.pieces)
                job.pieces.clear()
                if job.left == 0:
                    job.over.set()
            self._jobs.clear()
            self._waiting.notify_all()
        if first and isinstance(reason, DeviceLost):
            self._lost(reason)
