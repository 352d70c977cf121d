"""Leased buffers: used again only when nobody can see them, whoever looked last."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adamd.wire.buffers import BufferPool, when_gone

BIG = 100_000


def address(array):
    return array.__array_interface__["data"][0]


VIEWS = {
    "itself": lambda a: a,
    "a slice": lambda a: a[5:6],
    "another dtype": lambda a: a.view("<f4"),
    "a slice of another dtype of a slice": lambda a: a[8:][8:].view("<f4")[3:4],
    "a reshape": lambda a: a.reshape(2, -1),
    "a memoryview": memoryview,
    "a byte of a cast memoryview": lambda a: memoryview(a.view("<f4")).cast("B")[7:8],
    "an array over a memoryview": lambda a: np.frombuffer(memoryview(a), np.uint8, 4),
    "a reversed view": lambda a: a[::-1],
    "a read-only view": lambda a: np.asarray(memoryview(a).toreadonly()),
    "a closure": lambda a: lambda: a,
    "a cycle": lambda a: [a],
}


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS)
def test_no_view_of_a_lease_ever_sees_the_next_one(look):
    pool = BufferPool(1 << 20)
    first = pool.lease(BIG)
    place = address(first)
    view = look(first)
    del first
    assert pool.leased_bytes == BIG and pool.idle_bytes == 0
    second = pool.lease(BIG)
    assert address(second) != place
    del view
    assert pool.leased_bytes == BIG and pool.idle_bytes == BIG
    assert address(pool.lease(BIG)) == place  # now it is used again


def test_what_hangs_in_a_cycle_comes_back_with_the_collector():
    pool = BufferPool(1 << 20)
    ring = [pool.lease(BIG)]
    ring.append(ring)
    del ring
    gc.collect()
    assert pool.leased_bytes == 0 and pool.idle_bytes == BIG


def test_idle_memory_is_bounded_and_the_oldest_goes():
    pool = BufferPool(3 * BIG)
    leases = [pool.lease(BIG + i) for i in range(5)]
    leases.clear()
    assert pool.idle_bytes <= 3 * BIG and pool.leased_bytes == 0
    none = BufferPool(0)
    del leases
    none.lease(BIG)
    assert none.idle_bytes == 0 and none.leased_bytes == 0


def test_small_leases_are_fresh_and_a_lease_is_not_much_too_large():
    pool = BufferPool(1 << 20)
    pool.lease(10)
    assert pool.leased_bytes == pool.idle_bytes == 0
    pool.lease(4 * BIG)
    assert pool.lease(BIG).nbytes == BIG and pool.idle_bytes == 4 * BIG  # not from the fourfold one


@pytest.mark.parametrize("size", [10, BIG])
@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS)
def test_one_is_told_when_the_last_view_is_gone(look, size):
    pool, told = BufferPool(1 << 20), []
    array = pool.lease(size - size % 8 + 16).view("<f4")
    when_gone(array, lambda: told.append(1))
    view = look(array.view(np.uint8))
    del array
    assert not told
    del view
    assert told == [1]


class Leases(RuleBasedStateMachine):
    """Leases and views come and go; each lease is filled with a number of its own, and every view goes on seeing it."""

    def __init__(self):
        super().__init__()
        self.pool = BufferPool(4 * BIG)
        self.views = []
        self.count = 0

    @rule(size=st.integers(1, 3), kind=st.sampled_from(sorted(VIEWS)))
    def lease(self, size, kind):
        self.count += 1
        array = self.pool.lease(size * BIG)
        array[:] = self.count % 251
        self.views.append((self.count % 251, array[7:9], VIEWS[kind](array)))

    @rule(place=st.integers(0, 20))
    def let_go(self, place):
        if self.views:
            self.views.pop(place % len(self.views))

    @rule(place=st.integers(0, 20))
    def keep_a_view_only(self, place):
        if self.views:
            number, part, _ = self.views[place % len(self.views)]
            self.views[place % len(self.views)] = number, part, None

    @invariant()
    def every_view_sees_its_own(self):
        assert all((part == number).all() for number, part, _ in self.views)
        assert self.pool.idle_bytes <= 4 * BIG
        assert self.pool.leased_bytes >= BIG * len(self.views)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_many_threads_lease_and_let_go():
    pool, wrong = BufferPool(10 * BIG), []

    def work(number):
        for i in range(300):
            array = pool.lease(BIG + 8 * (i % 5))
            array[:64] = number
            view = memoryview(array)[:64]
            del array
            if bytes(view) != bytes([number]) * 64:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.leased_bytes == 0 and pool.idle_bytes <= 10 * BIG
