"""Arrays in and out, without a server."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adamd.errors import InvalidRequest, WrongDtype, WrongLayout
from adamd.sansio import arrays
from adamd.wire.layout import named_layout, vector_layout

PAIR = named_layout({"w": (3, 2), "b": (2,)})


def pair(dtype="f4"):
    return {"w": np.arange(6, dtype=dtype).reshape(3, 2), "b": np.arange(2, dtype=dtype)}


def test_parameters_are_sorted_by_name_and_the_dtype_is_the_narrowest_that_takes_all():
    given_ = arrays.parameters({"w": np.zeros((2, 1), "f2"), "b": np.zeros((), "f4")})
    assert (given_.layout.names, given_.dtype) == (("b", "w"), "float32")
    assert [item.array.shape for item in given_.parts] == [(), (2, 1)]
    assert arrays.parameters({"a": np.zeros(1, "f4"), "b": np.zeros(1)}).dtype == "float64"
    assert arrays.parameters(np.zeros(1, "f4"), "float64").dtype == "float64"
    assert arrays.parameters([1, 2]).dtype == "float64"


@pytest.mark.parametrize(
    ("values", "dtype", "error", "said"),
    [
        (np.zeros(2), "float32", WrongDtype, "Convert"),
        (np.zeros(2, "i4"), None, WrongDtype, "int32.*Convert"),
        (np.zeros(2, "c8"), None, WrongDtype, "complex64"),
        (None, None, InvalidRequest, "is None; wanted an array"),
        (np.zeros(2, "f4"), "float16", WrongDtype, "'float32' or 'float64'"),
        ({}, None, WrongLayout, "no tensors"),
        ({1: np.zeros(2)}, None, WrongLayout, "strings"),
        ([[1.0], [1.0, 2.0]], None, WrongLayout, "no array"),
        ({"a\n": np.zeros(2)}, None, WrongLayout, "unprintable"),
    ],
)
def test_parameters_that_no_session_takes(values, dtype, error, said):
    with pytest.raises(error, match=said):
        arrays.parameters(values, dtype)


@given(hnp.arrays(hnp.floating_dtypes(sizes=(16, 32, 64), endianness="="), hnp.array_shapes(min_dims=0, min_side=0)))
def test_any_memory_order_travels_as_little_endian_rows(array):
    for form in (array, np.asarray(array, order="F"), array.astype(array.dtype.newbyteorder(">"))):
        sent = arrays.part("x", form, "x")
        assert bytes(arrays.raw_bytes(sent.array)) == array.tobytes()
        assert sent.array.shape == array.shape


def test_a_contiguous_array_is_not_copied():
    array = np.zeros((4, 4), "f4")
    assert np.shares_memory(arrays.part("x", array, "x").array, array)


def test_anything_with_dunder_array_is_an_array():
    class Other:
        dtype = "its own"

        def __array__(self, dtype=None, copy=None):
            return np.ones(3, "f4")

    assert arrays.part("x", Other(), "x").dtype == "float32"


@pytest.mark.parametrize(
    ("gradient", "error", "said"),
    [
        ({"w": np.zeros((2, 3), "f4")}, WrongLayout, r"gradient 'w' has shape \[2, 3\].*\[3, 2\]"),
        ({"x": np.zeros(2, "f4")}, WrongLayout, "no tensor 'x'; it has b, w"),
        ({"w": np.zeros((3, 2))}, WrongDtype, "float64 gradient 'w'.*Convert"),
        ({"w": None}, WrongLayout, "no step"),
        ({}, WrongLayout, "no step"),
        (np.zeros(8, "f4"), WrongLayout, "dict of arrays"),
    ],
)
def test_gradients_that_do_not_fit(gradient, error, said):
    with pytest.raises(error, match=said):
        arrays.matching(gradient, PAIR, "float32", "gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("numbers", [[0.1, 1], (0.1, 1), [2**70, -3], [float("nan"), float("inf")]])
def test_pythons_own_numbers_take_the_sessions_dtype(numbers, dtype):
    (item,) = arrays.matching(numbers, vector_layout((2,)), dtype, "gradient")
    assert item.dtype == dtype
    np.testing.assert_array_equal(item.array, np.array([float(number) for number in numbers]).astype(dtype))
    (row,) = arrays.matching({"w": [[1, 2.5], (3, 4), [5, 6]]}, PAIR, dtype, "gradient")
    assert (row.dtype, row.array[0].tolist()) == (dtype, [1.0, 2.5])
    (one,) = arrays.matching(0.5, vector_layout(()), dtype, "gradient")
    assert (one.dtype, one.array.shape) == (dtype, ())
    assert arrays.parameters(numbers, dtype).parts[0].dtype == dtype


@pytest.mark.parametrize("value", [[np.float64(1), 2.0], [np.zeros(1), np.zeros(1)], np.float64(1), range(2), [True]])
def test_what_has_a_dtype_keeps_it_in_a_list_too(value):
    layout = vector_layout(np.shape(value))
    with pytest.raises(WrongDtype):
        arrays.matching(value, layout, "float32", "gradient")


@pytest.mark.parametrize("value", [1e39, -(10**39), 3.5e38])
def test_a_number_that_a_dtype_does_not_hold_is_refused_and_not_infinity(value):
    with pytest.raises(InvalidRequest, match=r"at \[1\]: -?\d\S+, which no float32 holds") as caught:
        arrays.parameters([0.0, value], "float32")
    assert caught.value.extra["place"] == [1]
    assert arrays.parameters([0.0, value], "float64").parts[0].array[1] == value


def test_a_whole_number_beyond_every_dtype_is_refused():
    with pytest.raises(InvalidRequest, match="no float64 holds"):
        arrays.parameters([0, 10**400])


def test_tensors_may_be_left_out_and_come_in_layout_order():
    assert [p.name for p in arrays.matching(pair(), PAIR, "float32", "gradient")] == ["b", "w"]
    assert [p.name for p in arrays.matching({"w": pair()["w"], "b": None}, PAIR, "float32", "g")] == ["w"]
    with pytest.raises(WrongLayout, match="one array"):
        arrays.matching(pair(), vector_layout((8,)), "float32", "gradient")


@given(st.booleans(), st.booleans())
def test_an_answer_lands_in_fresh_memory_or_in_the_callers(vector, given_out):
    layout = vector_layout((2, 4)) if vector else PAIR
    out = (np.empty((2, 4), "f4") if vector else pair()) if given_out else None
    land = arrays.landing(layout, "float32", out)
    body = np.arange(8, dtype="f4").tobytes()
    here = 0
    for view in land.buffers:
        view[:] = body[here : here + view.nbytes]
        here += view.nbytes
    result = land.finish()
    assert result is out or not given_out
    flat = result.reshape(-1) if vector else np.concatenate([result["b"], result["w"].reshape(-1)])
    assert flat.tobytes() == body


def test_memory_that_is_being_sent_is_not_written_before_the_answer_is_whole():
    gradient = pair()
    parts = arrays.matching(gradient, PAIR, "float32", "gradient")
    land = arrays.landing(PAIR, "float32", gradient, parts)
    before = gradient["w"].copy()
    for view in land.buffers:
        view[:] = b"\x01" * view.nbytes
    assert (gradient["w"] == before).all()
    assert land.finish() is gradient
    assert not (gradient["w"] == before).any()
    assert arrays.landing(PAIR, "float32", pair(), parts).copies == ()


def test_views_of_a_flat_vector_travel_as_one_piece():
    layout = named_layout({"a": (3,), "b": (), "c": (2, 0), "d": (2, 2)})
    flat = np.arange(8, dtype="f4")
    views = list(arrays.split(flat, layout).values())
    assert [bytes(piece) for piece in arrays.pieces(views)] == [flat.tobytes()]
    assert [piece.nbytes for piece in arrays.pieces([views[0], views[3], views[1], views[0]])] == [12, 16, 4, 12]
    apart = [view.copy() for view in views]
    assert b"".join(arrays.pieces(apart)) == flat.tobytes()
    assert arrays.pieces([]) == arrays.pieces([views[2]]) == ()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 6)), max_size=12))
def test_overlap_is_found_between_any_two_of_many(spans):
    memory = np.zeros(40, "f4")
    targets = [memory[start : start + size] for written, start, size in spans if written]
    sent = [memory[start : start + size] for written, start, size in spans if not written]
    parts = tuple(arrays.TensorPart("x", "float32", array) for array in sent)
    assert arrays._overlap(targets, parts) == any(np.shares_memory(a, b) for a in targets for b in sent)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ({"w": np.zeros((3, 2), "f4")}, WrongLayout),
        (pair("f8"), WrongDtype),
        (pair() | {"b": np.zeros(3, "f4")}, WrongLayout),
        (pair() | {"w": np.zeros((3, 2), "f4", order="F")}, WrongLayout),
        (pair() | {"b": np.broadcast_to(np.float32(0), (2,))}, WrongLayout),
        (np.zeros(8, "f4"), WrongLayout),
    ],
)
def test_memory_that_an_answer_cannot_land_in(out, error):
    with pytest.raises(error, match="out"):
        arrays.landing(PAIR, "float32", out)
