"""Layouts: names, shapes and sizes, checked before anything of that size exists."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd.errors import AdamdError, WrongLayout
from adamd.wire.layout import (
    MAX_ELEMENTS,
    MAX_EMPTY,
    MAX_NAME,
    MAX_NAMES,
    MAX_RANK,
    MAX_TENSORS,
    Tensor,
    checked,
    from_json,
    named_layout,
    shown,
    vector_layout,
)

NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=10)
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@given(st.dictionaries(NAMES, SHAPES, max_size=6))
def test_a_layout_goes_through_json_and_back(shapes):
    layout = named_layout(shapes)
    assert from_json(layout.to_json()) == layout
    assert list(layout.names) == sorted(shapes)
    assert layout.bounds[0] == 0 and layout.bounds[-1] == layout.size == sum(math.prod(s) for s in shapes.values())
    for name, shape in shapes.items():
        place = layout.index[name]
        assert layout.bounds[place + 1] - layout.bounds[place] == math.prod(shape)


@given(st.permutations(["a", "b", "c"]))
def test_a_layout_that_is_given_keeps_its_order(names):
    given_ = [{"name": name, "shape": [1]} for name in names]
    assert list(from_json(given_).names) == names


SIZES = st.integers(0, 3) | st.sampled_from([2**20, 2**26, 2**31, 2**52, 2**53, 2**53 + 1, 2**63, 2**64 + 2])


@given(st.lists(SIZES, max_size=34))
def test_what_is_accepted_is_a_shape_that_an_array_can_have(sizes):
    try:
        tensor = checked((Tensor("w", tuple(sizes)),)).tensors[0]
    except WrongLayout:
        assert (
            math.prod(size or 1 for size in sizes) > MAX_ELEMENTS
            or len(sizes) > MAX_RANK
            or (0 in sizes and math.prod(sizes[: sizes.index(0)]) > MAX_EMPTY)
        )
        return
    assert tensor.size <= MAX_ELEMENTS
    assert np.broadcast_to(np.float64(0), tensor.shape).size == tensor.size  # NumPy takes it
    if tensor.size == 0:
        assert np.empty(0).reshape(tensor.shape).shape == tensor.shape
        assert isinstance(np.empty(0).reshape(tensor.shape).tolist(), list)


@pytest.mark.parametrize(
    "shape",
    [
        (2**53, 2),
        (2**40, 2**40),
        (2**32, 2**32),
        (2**53, 2**53, 0),
        (0, 2**53, 2**53),
        (2**40, 0),
        (MAX_EMPTY + 1, 0),
        (-1,),
        (1.0,),
        (True,),
        ("1",),
        (None,),
        ([1],),
        (1,) * 33,
    ],
    ids=str,
)
def test_a_shape_that_is_none(shape):
    with pytest.raises(WrongLayout):
        checked((Tensor("w", shape),))


def test_the_bounds():
    assert checked((Tensor("w", (2**53,)),)).size == MAX_ELEMENTS
    assert vector_layout((MAX_EMPTY, 0)).size == 0
    assert vector_layout((0, 2**40)).size == 0
    with pytest.raises(WrongLayout, match="2\\^53"):
        checked((Tensor("v", (2**53,)), Tensor("w", (1,))))
    assert len(checked(tuple(Tensor(str(i), ()) for i in range(MAX_TENSORS))).tensors) == MAX_TENSORS
    with pytest.raises(WrongLayout, match="at most"):
        checked(tuple(Tensor(str(i), ()) for i in range(MAX_TENSORS + 1)))
    with pytest.raises(WrongLayout, match="at most"):
        from_json([7] * (MAX_TENSORS + 1))
    with pytest.raises(WrongLayout, match="together"):
        checked(tuple(Tensor(f"{i:0{MAX_NAME}}", ()) for i in range(MAX_NAMES // MAX_NAME + 1)))
    for tensors in ((), (Tensor("a", ()), Tensor("b", ()))):
        with pytest.raises(WrongLayout, match="vector"):
            checked(tensors, vector=True)


@pytest.mark.parametrize(
    "name", ["", "a\n", "\x00", "\ud800", "\u2028", "x" * 513, None, 7, ["a"], b"a"], ids=lambda n: repr(n)[:12]
)
def test_a_name_that_is_none(name):
    with pytest.raises(WrongLayout) as refused:
        checked((Tensor(name, ()),))
    assert len(refused.value.detail) < 300
    refused.value.detail.encode()  # half a character would not fit into the answer


def test_a_name_comes_once():
    with pytest.raises(WrongLayout, match="twice"):
        checked((Tensor("a", ()), Tensor("a", (1,))))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
LIKELY = st.fixed_dictionaries({"name": st.text(max_size=3) | JUNK, "shape": st.lists(SIZES, max_size=3) | JUNK})


@given(JUNK | st.lists(LIKELY | JUNK, max_size=3) | st.dictionaries(st.text(), JUNK), st.booleans())
def test_whatever_comes_it_is_a_layout_or_refused(raw, vector):
    try:
        layout = from_json(raw, vector=vector)
    except AdamdError:
        return
    assert layout.to_json() == raw


@given(JUNK | st.integers(10**80, 10**90) | st.text(min_size=200, max_size=300))
def test_what_came_is_shown_in_a_line(value):
    assert len(shown(value)) <= 100
