"""A mean whose norms decide nothing reads each contribution once; whatever is read, is first read in order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made import F32, hard, settings

from adamd.wire.dtypes import SLICE
from adamd_service.aggregation import ArrayValues, Contribution, aggregate_round
from adamd_service.aggregation.lanes import Lanes, Turns

SIZE = 11 * SLICE + 5


class Watched:
    """Values that note how they are read; ``bad`` raises at an element."""

    def __init__(self, seed, bad=None):
        self.array = hard(SIZE, F32, seed)
        self.bad = bad
        self.spans = []
        self._alone = threading.Lock()

    def read(self, start, stop, into):
        first = not self.spans or self.spans[-1][1] < SIZE
        assert not first or self._alone.acquire(blocking=False), "two threads at once"
        try:
            self.spans.append((start, stop))
            if self.bad is not None and start >= self.bad:
                raise OSError("no more")
            return ArrayValues(self.array).read(start, stop, into)
        finally:
            if first:
                self._alone.release()

    def in_order(self, passes):
        once = [(start, min(start + SLICE, SIZE)) for start in range(0, SIZE, SLICE)]
        return self.spans[: len(once)] == once and len(self.spans) == passes * len(once)


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_a_plain_mean_reads_everything_once(lanes):
    values, out, told = [Watched(seed) for seed in range(4)], np.empty(SIZE, F32), []

    def seen():
        assert all(one.in_order(1) for one in values)
        told.append("seen")

    def written(stop):
        told.append((stop, out[:stop].tobytes()))

    sent = [Contribution(f"c{place}", one, 1.0 + place) for place, one in enumerate(values)]
    with ThreadPoolExecutor(4) as threads:
        aggregate_round(sent, settings(4), out, threads=threads, lanes=lanes, seen=seen, written=written)
    assert all(one.in_order(1) for one in values)
    stops = [min(start + SLICE, SIZE) for start in range(0, SIZE, SLICE)]
    assert told == [*((stop, out[:stop].tobytes()) for stop in stops), "seen"]


@pytest.mark.parametrize("how", [{"clip_norm": 1.0}, {"norm_filter": 3}, {"aggregate": "median"}])
def test_what_needs_norms_is_told_when_everything_was_seen(how):
    values, out = [Watched(seed) for seed in range(4)], np.full(SIZE, 7, F32)

    class Refused(Exception):
        pass

    def seen():
        assert all(one.in_order(1) for one in values)
        raise Refused

    sent = [Contribution(f"c{place}", one) for place, one in enumerate(values)]
    with pytest.raises(Refused), ThreadPoolExecutor(2) as threads:
        aggregate_round(sent, settings(4, **how), out, threads=threads, lanes=2, seen=seen)
    assert (out == 7).all()


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_an_error_ends_all_threads(lanes, place):
    values = [Watched(seed, bad=5 * SLICE if seed == place else None) for seed in range(4)]
    sent = [Contribution(f"c{number}", one) for number, one in enumerate(values)]
    with pytest.raises(OSError, match="no more"), ThreadPoolExecutor(4) as threads:
        aggregate_round(sent, settings(4), np.empty(SIZE, F32), threads=threads, lanes=lanes)


def test_turns_are_in_order_however_late_a_part_is():
    """The first part begins last, and each later one waits for it."""
    turns, late, used = Turns(3, 4), threading.Barrier(4), [list[int]() for _ in range(3)]

    def begin():
        def work(part):
            if part < 4:
                late.wait(20)
            with turns.part():
                for thing in range(3):
                    turns.wait(thing, part)
                    used[thing].append(part)
                    turns.done(thing, part)

        return work

    with ThreadPoolExecutor(3) as threads:
        Lanes(threads, 4).each(50, begin)
    assert used == [list(range(50))] * 3
