"""Dtypes: widening is exact, and bfloat16 is what a reference of plain integers says."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd.errors import WrongDtype
from adamd.wire.dtypes import ITEMSIZE, SESSION_DTYPES, WIDENS, check_widens, narrow_bfloat16, storage, widen

EVERY_16 = np.arange(1 << 16, dtype=np.uint16)


def bfloat_value(bits):
    """A bfloat16 by its definition: sign, 8 bits of exponent, 7 of fraction."""
    sign, exponent, fraction = -1.0 if bits >> 15 else 1.0, bits >> 7 & 0xFF, bits & 0x7F
    if exponent == 0xFF:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0**-133
    return sign * (128 + fraction) * 2.0 ** (exponent - 134)


@pytest.mark.parametrize("into", SESSION_DTYPES)
def test_every_bfloat16_has_the_value_of_its_definition(into):
    wide = widen(EVERY_16, "bfloat16", into)
    wanted = np.array([bfloat_value(int(bits)) for bits in EVERY_16])
    with np.errstate(invalid="ignore"):
        assert np.array_equal(wide.astype(np.float64), wanted, equal_nan=True)
    assert np.array_equal(np.signbit(wide), EVERY_16 >> 15 == 1)  # -0 too


@pytest.mark.parametrize("into", SESSION_DTYPES)
def test_every_float16_widens_exactly(into):
    half = EVERY_16.view(np.float16)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(widen(half, "float16", into).astype(np.float64), half.astype(np.float64), equal_nan=True)


def test_every_bfloat16_comes_back_from_its_float32():
    wide = widen(EVERY_16, "bfloat16", "float32")
    back = narrow_bfloat16(wide)
    finite = ~np.isnan(wide)
    assert np.array_equal(back[finite], EVERY_16[finite])
    assert np.isnan(widen(back[~finite], "bfloat16", "float32")).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_narrowing_takes_the_nearest_and_the_even_one_at_a_tie(value):
    bits = int(narrow_bfloat16(np.float32([value]))[0])
    got = bfloat_value(bits)
    (raw,) = struct.unpack("<I", struct.pack("<f", value))
    below, above = raw >> 16, (raw >> 16) + 1
    low, high = bfloat_value(below), bfloat_value(above)
    if math.isinf(high):
        high = math.copysign(2.0**128, high)  # where rounding to infinity begins
    nearest = below if abs(value - low) < abs(value - high) else above
    if abs(value - low) == abs(value - high):
        nearest = below if below % 2 == 0 else above
    assert bits == nearest, (value, got)


@pytest.mark.parametrize("session", SESSION_DTYPES)
@pytest.mark.parametrize("dtype", [*ITEMSIZE, "int32", "", "FLOAT32"])
def test_what_a_session_takes(session, dtype):
    if dtype in WIDENS[session]:
        check_widens(dtype, session)
        assert storage(dtype).itemsize == ITEMSIZE[dtype] <= ITEMSIZE[session]
        out = np.empty(2, storage(session))
        assert widen(np.ones(2, storage(dtype)), dtype, session, out) is out
    else:
        with pytest.raises(WrongDtype):
            check_widens(dtype, session)


def test_everything_is_little_endian():
    assert all(storage(dtype).newbyteorder("<") == storage(dtype) for dtype in ITEMSIZE)
