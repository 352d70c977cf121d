"""Rounding answers: the fast loops give the bits of `adamd.wire.dtypes.narrow`, and count what became infinite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd.wire import dtypes
from adamd.wire.dtypes import storage, widen
from adamd_service.optim import narrow

UPPER = np.arange(1 << 16, dtype=np.uint32) << 16


def both(values, dtype):
    fast, plain = (np.empty(len(values), storage(dtype)) for _ in range(2))
    overflowed = narrow(values, dtype, fast)
    dtypes.narrow(values, dtype, plain)
    back = [widen(array, dtype, "float64") for array in (fast, plain)]
    nan = np.isnan(values)
    assert np.isnan(back[0][nan]).all()
    assert fast[~nan].tobytes() == plain[~nan].tobytes()
    assert overflowed == np.count_nonzero(np.isinf(back[1]) & np.isfinite(values))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_upper_half_and_what_lies_on_and_beside_its_ties(dtype):
    """16 bits fully, and the lower ones where rounding turns: around 2^12 (float16) and 2^15 (bfloat16)."""
    for lower in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        both((UPPER | np.uint32(lower)).view(np.float32), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sample_of_every_exponent(dtype):
    both(np.arange(0, 2**32, 1999, dtype=np.uint64).astype(np.uint32).view(np.float32), dtype)


@given(st.lists(st.floats(width=32), max_size=50), st.sampled_from(["float16", "bfloat16"]))
def test_any_floats(values, dtype):
    both(np.array(values, np.float32), dtype)


@given(st.lists(st.floats(), max_size=50), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_any_doubles(values, dtype):
    both(np.array(values, np.float64), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_fortieth_of_all_float32(dtype):
    step = 41 << 22
    for start in range(0, 2**32, step):
        both(np.arange(start, min(start + step, 2**32), 41, dtype=np.uint64).astype(np.uint32).view(np.float32), dtype)
