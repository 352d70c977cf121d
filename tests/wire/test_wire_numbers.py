"""Numbers in JSON: exact when written, strict when read, and small in memory."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adamd.errors import AdamdError, InvalidRequest, WrongLayout
from adamd.wire.layout import named_layout, vector_layout
from adamd.wire.numbers import PIECE, array_from_json, pieces_of_json

FINITE = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
}


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(list(FINITE)))
    shape = draw(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    return draw(arrays({"float32": "<f4", "float64": "<f8"}[dtype], shape, elements=FINITE[dtype])), dtype


def text_of(flat, layout):
    return "".join(pieces_of_json(flat, layout))


@given(tensors())
def test_every_bit_comes_back(given_):
    array, dtype = given_
    if 0 in array.shape and array.shape[0] != 0 and 0 in array.shape[1:-1]:
        return  # [[], []] says (2, 0) and no more
    text = text_of(array.reshape(-1), vector_layout(array.shape))
    back = array_from_json(json.loads(text), dtype, "x")
    assert back.tobytes() == array.tobytes()
    if 0 not in array.shape:
        assert back.shape == array.shape


@given(tensors())
def test_the_pieces_are_what_json_writes(given_):
    array, _ = given_
    parsed = json.loads(text_of(array.reshape(-1), vector_layout(array.shape)))
    assert parsed == array.tolist()


@pytest.mark.parametrize(
    "shape",
    [
        (PIECE,),
        (PIECE + 1,),
        (3 * PIECE + 7,),
        (2, PIECE),
        (3, PIECE + 1),
        (PIECE + 1, 1),
        (5, 1, PIECE - 1),
        (2, 3, 5, 700),
        (1,) * 6,
    ],
    ids=str,
)
def test_large_arrays_in_pieces(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pieces = list(pieces_of_json(array.reshape(-1), vector_layout(shape)))
    assert json.loads("".join(pieces)) == array.tolist()
    assert max(map(len, pieces)) < PIECE * 30


def test_named_tensors_are_an_object_in_layout_order():
    layout = named_layout({"b": (2,), 'a"\\ü': (), "c": (0,)})
    assert json.loads(text_of(np.float64([1, 2, 3]), layout)) == {'a"\\ü': 1.0, "b": [2.0, 3.0], "c": []}
    assert text_of(np.empty(0), named_layout({})) == "{}"


def test_a_float32_is_written_as_exactly_its_value():
    value = np.float32([0.1])
    assert text_of(value, vector_layout((1,))) == "[0.10000000149011612]"
    assert text_of(np.float64([0.1, -0.0]), vector_layout((2,))) == "[0.1, -0.0]"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_json_does_not_have_is_not_written(number):
    with pytest.raises(ValueError, match="JSON"):
        text_of(np.float64([number]), vector_layout((1,)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["float32", "float64"]), st.booleans())
def test_whatever_comes_it_is_an_array_or_refused(raw, dtype, finite):
    try:
        array = array_from_json(raw, dtype, "x", finite=finite)
    except AdamdError:
        return
    assert array.dtype == dtype
    if finite:
        assert np.isfinite(array).all()
    with np.errstate(over="ignore"):
        assert np.array_equal(array, np.array(raw, np.float64).astype(dtype), equal_nan=True)


@pytest.mark.parametrize("raw", [[True], [None], ["1"], [{}], True, None, "1", {}, [[1], [True]], [1, [2]]], ids=repr)
def test_what_is_no_number_is_refused(raw):
    with pytest.raises((InvalidRequest, WrongLayout)):
        array_from_json(raw, "float64", "x")


@pytest.mark.parametrize("raw", [[[1, 2], [3]], [[1], 2], [[1], []], [[[1]], [[1], [1]]], [1, [2]]], ids=repr)
def test_what_is_ragged_is_refused(raw):
    with pytest.raises((InvalidRequest, WrongLayout)):
        array_from_json(raw, "float64", "x")


def test_an_integer_beyond_every_double_is_an_infinity_to_those_who_judge():
    for sign in (1, -1):
        assert array_from_json([sign * 10**400], "float64", "x", finite=False)[0] == sign * math.inf
        with pytest.raises(InvalidRequest, match="element 0 .*too large"):
            array_from_json([sign * 10**400], "float64", "x")
    with pytest.raises(InvalidRequest, match="element 1 .*not a finite float32") as refused:
        array_from_json([1, 1e39], "float32", "x")
    assert refused.value.extra["index"] == 1


@pytest.mark.parametrize("depth", [33, 1000, 100_000])
def test_deep_nesting_is_refused(depth):
    raw = 1
    for _ in range(depth):
        raw = [raw]
    with pytest.raises(WrongLayout, match="deeper"):
        array_from_json(raw, "float64", "x")
    while isinstance(raw, list):  # let it go level by level
        raw = raw.pop()


def test_the_first_branch_does_not_decide_how_much_is_allocated():
    """A million times a million, says the first branch; the others are empty."""
    raw = [[0] * 100_000] + [[] for _ in range(100_000)]
    tracemalloc.start()
    with pytest.raises(WrongLayout, match="ragged"):
        array_from_json(raw, "float64", "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
