"""Encodings: exact where exact is promised, within the bound that is stated where it is not."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.errors import BadGradient, InvalidRequest, WrongDtype, WrongLength
from adamd.wire import encodings
from adamd.wire.dtypes import narrow, storage, widen
from adamd.wire.encodings import BLOCK, INT8, LAZY, RAW, SPARSE

TINY = float(np.finfo(np.float32).smallest_normal)
SIZES = [0, 1, 2, 255, 256, 257, 511, 512, 513, 70_001]


def decoded(body, size, dtype=np.float32):
    out = np.empty(size, dtype)
    encodings.decode_int8(*encodings.int8_parts(body, size), 0, out)
    return out


def exact_bound(scale):
    return scale * (0.5 + 2.0**-16) if scale else 127 * TINY


def assert_within_bound(values, body):
    scales, quantized = encodings.int8_parts(body, len(values))
    got = decoded(body, len(values)).astype(np.float64)
    assert np.isfinite(scales).all() and not np.signbit(scales).any()
    assert not ((scales > 0) & (scales < TINY)).any() and (quantized > -128).all()
    bounds = np.repeat([exact_bound(float(scale)) for scale in scales], BLOCK)[: len(values)]
    assert (np.abs(got - values.astype(np.float64)) <= bounds).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_int8_is_within_its_bound_at_every_length(size, dtype):
    rng = np.random.default_rng(size)
    values = (rng.standard_normal(size) * np.exp2(rng.integers(-140, 60, size))).astype(dtype)
    body = encodings.encode_int8(values)
    assert body.nbytes == encodings.most(INT8, size, "float32") == -(-size // 256) * 4 + size
    assert_within_bound(values, body)


finite = st.floats(-(2.0**127), 2.0**127, width=32)  # beyond, a product may round to infinity, which a session refuses


@settings(max_examples=300, deadline=None)
@given(st.lists(finite, min_size=1, max_size=600), st.sampled_from([1.0, 2.0**-120, 2.0**-20]))
def test_int8_is_within_its_bound_for_any_numbers(given, factor):
    with np.errstate(under="ignore"):
        values = np.array(given, np.float32) * np.float32(factor)
    assert_within_bound(values, encodings.encode_int8(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=600), st.floats(TINY, 2.0**100, width=32))
def test_int8_of_what_it_can_say_is_exact(levels, scale):
    """A whole multiple of a scale, with 127 of it in each block, comes back bit for bit."""
    values = np.float32(scale) * np.array(levels, np.float32)
    values[::BLOCK] = np.float32(scale) * np.float32(127)
    scales = encodings.int8_parts(encodings.encode_int8(values), len(values))[0]
    if (scales == np.float32(scale)).all():  # the division by 127 may round to a neighbour
        assert decoded(encodings.encode_int8(values), len(values)).tobytes() == (values + 0.0).tobytes()


def test_a_block_of_zeros_of_either_sign_has_the_scale_zero():
    values = np.array([-0.0] * 300 + [0.0] * 300, np.float32)
    body = encodings.encode_int8(values)
    assert body.tobytes() == bytes(len(body))


def test_what_is_too_small_for_a_normal_scale_becomes_zero():
    for largest, scale in ((127 * TINY, TINY), (np.nextafter(np.float32(127 * TINY), np.float32(0)), None), (1e-45, 0)):
        body = encodings.encode_int8(np.array([largest, -largest / 3], np.float32))
        found = float(encodings.int8_parts(body, 2)[0][0])
        assert found in ((0.0, TINY) if scale is None else (scale,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 255, 256, 69_999])
def test_int8_of_what_is_not_finite_is_refused_at_its_index(value, where):
    values = np.ones(70_000, np.float32)
    values[where] = value
    with pytest.raises(BadGradient) as told:
        encodings.encode_int8(values)
    assert told.value.extra["index"] == where


def test_int8_of_a_float64_beyond_float32_is_refused_and_not_saturated():
    with pytest.raises(BadGradient) as told:
        encodings.encode_int8(np.array([1.0, 2.0, -1e60]))
    assert told.value.extra["index"] == 2
    with pytest.raises(BadGradient):  # a scale would hold it, the product not
        encodings.encode_int8(np.array([1e38, -3e39, 4e40]))
    assert_within_bound(np.array([1e38, -3e38, 1.0]), encodings.encode_int8(np.array([1e38, -3e38, 1.0])))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1500), st.integers(0, 2**32 - 1), st.data())
def test_any_part_decodes_to_the_same_bits(size, seed, data):
    rng = np.random.default_rng(seed)
    body = np.concatenate(
        [rng.random(-(-size // 256)).astype("<f4").view(np.uint8), rng.integers(0, 256, size, np.uint8)]
    )
    whole = decoded(body, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    for dtype in (np.float32, np.float64):
        part = np.empty(stop - start, dtype)
        encodings.decode_int8(*encodings.int8_parts(body, size), start, part)
        assert part.tobytes() == whole[start:stop].astype(dtype).tobytes()


def test_every_product_is_one_float32_multiplication_widened():
    """Against whole numbers: scale * q has 31 bits; float64 holds it exactly, float32 rounds it once."""
    scales = np.random.default_rng(3).random(200).astype(np.float32)
    body = np.concatenate([scales.view(np.uint8), np.tile(np.arange(256, dtype=np.uint8), 200)])
    q = np.tile(np.arange(256, dtype=np.uint8).view(np.int8), 200)
    exact = np.repeat(scales, 256).astype(np.float64) * q
    once = exact.astype(np.float32)
    assert (once != exact).any()
    assert decoded(body, len(q)).tobytes() == once.tobytes()
    assert decoded(body, len(q), np.float64).tobytes() == once.astype(np.float64).tobytes()


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 2**32 - 2), max_size=50), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_sparse_comes_back_exactly(places, dtype):
    indices = np.array(sorted(places), np.int64)
    values = (
        np.random.default_rng(len(places))
        .integers(0, 256, len(places) * storage(dtype).itemsize, np.uint8)
        .view(storage(dtype))
    )
    body = encodings.encode_sparse(indices, values)
    found, back = encodings.sparse_parts(body, dtype)
    assert found.tolist() == indices.tolist() and back.tobytes() == values.tobytes()
    encodings.check_length(SPARSE, body.nbytes, 2**32 - 1, dtype)


def test_the_largest_are_chosen_in_order_without_zeros():
    values = np.array([0, -5, 1, 0, 3, -0.0, 2], np.float32)
    assert encodings.largest(values, 2).tolist() == [1, 4]
    assert encodings.largest(values, 6).tolist() == [1, 2, 4, 6]
    assert encodings.largest(values, 99).tolist() == [1, 2, 4, 6]
    assert encodings.largest(np.zeros(5, np.float32), 2).tolist() == []


@pytest.mark.parametrize(
    ("encoding", "size", "dtype", "good", "bad"),
    [
        (RAW, 10, "float16", [20], [0, 19, 21, 40]),
        (INT8, 10, "float32", [14], [0, 10, 13, 15]),
        (INT8, 257, "float32", [265], [264, 266, 257]),
        (INT8, 0, "float32", [0], [1, 4]),
        (SPARSE, 10, "float32", [0, 8, 80], [4, 7, 9, 88]),
        (LAZY, 10, "float64", [0, 12, 120], [8, 132, 13]),
        (SPARSE, 10, "bfloat16", [6, 60], [4, 66]),
    ],
)
def test_lengths(encoding, size, dtype, good, bad):
    for nbytes in good:
        encodings.check_length(encoding, nbytes, size, dtype)
    for nbytes in bad:
        with pytest.raises(WrongLength, match=str(nbytes)):
            encodings.check_length(encoding, nbytes, size, dtype)


def test_indices_of_four_bytes_are_enough_or_it_is_said():
    assert encodings.most(SPARSE, 2**32 - 1, "float32") == 8 * (2**32 - 1)
    with pytest.raises(InvalidRequest, match=r"2\^32"):
        encodings.most(SPARSE, 2**32, "float32")


def test_a_body_in_int8_is_float32():
    assert encodings.body_dtype(INT8, None, "float64") == encodings.body_dtype(INT8, "float32", "float64") == "float32"
    assert encodings.body_dtype(SPARSE, None, "float64") == "float64"
    for encoding, dtype in ((INT8, "float64"), (INT8, "float16"), (RAW, "float64"), (SPARSE, "float64")):
        with pytest.raises(WrongDtype):
            encodings.body_dtype(encoding, dtype, "float32")


# -- answers that are rounded


def neighbours(dtype):
    """Every finite value of a 16-bit dtype, ascending, as exact fractions with its bits."""
    bits = np.arange(1 << 15, dtype=np.uint16)
    wide = widen(bits.view(storage(dtype)), dtype, "float64")
    kept = np.isfinite(wide)
    return wide[kept], bits[kept]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_narrowing_takes_the_nearest_once_and_the_even_one_at_a_tie(dtype, source):
    values, bits = neighbours(dtype)
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(values) - 1, 4000)
    low, high = values[places], values[places + 1]
    tie = low + (high - low) / 2
    # At the tie, and a hair beside it: float64's own hair is lost where float32 comes in between.
    with np.errstate(over="ignore", under="ignore"):
        given = np.concatenate([np.nextafter(tie, 0), tie, np.nextafter(tie, np.inf), low]).astype(source)
    out = np.empty(len(given), storage(dtype))
    narrow(given, dtype, out)
    for value, got in zip(given.tolist(), out.view(np.uint16).tolist(), strict=True):
        place = int(np.searchsorted(values, value, "right")) - 1
        below, above = Fraction(values[place]), Fraction(values[min(place + 1, len(values) - 1)])
        down, up = Fraction(value) - below, above - Fraction(value)
        wanted = bits[place] if down < up or (down == up and bits[place] % 2 == 0) else bits[place + 1]
        assert got == wanted, (value, got, wanted)
    narrow(-given, dtype, out)
    assert (out.view(np.uint16) & 0x8000).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrowing_overflows_to_infinity_where_ieee_does(dtype):
    largest = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float(np.finfo(np.float32).max)}
    step = {"float16": 32.0, "bfloat16": 2.0**120, "float32": 2.0**104}[dtype]
    limit = largest[dtype] + step / 2
    given = np.array([largest[dtype], np.nextafter(limit, 0), limit, 1e300, np.inf, np.nan, -1e300, -0.0])
    out = np.empty(len(given), storage(dtype))
    narrow(given, dtype, out)
    back = widen(out, dtype, "float64")
    assert back[:2].tolist() == [largest[dtype]] * 2
    assert back[2:5].tolist() == [np.inf] * 3 and np.isnan(back[5]) and back[6] == -np.inf
    assert back[7] == 0 and np.signbit(back[7])


@settings(max_examples=300, deadline=None)
@given(st.floats(-60000, 60000))
def test_half_a_unit_in_the_last_place_is_the_most(value):
    for dtype, unit, normal in (("float16", 2.0**-11, 2.0**-14), ("bfloat16", 2.0**-8, TINY)):
        out = np.empty(1, storage(dtype))
        narrow(np.array([value]), dtype, out)
        error = abs(float(widen(out, dtype, "float64")[0]) - value)
        assert error <= unit * max(abs(value), normal)
