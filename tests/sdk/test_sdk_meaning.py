"""What an array-like says beside its numbers is never dropped in silence."""

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from adamd.errors import InvalidRequest, InvalidSettings, WrongDtype, WrongLayout
from adamd.sansio import array_checks, arrays
from adamd.sansio.gradient_encoding import Encoder, Sparse
from adamd.sansio.tracking import settings_document
from adamd.wire.layout import vector_layout

MASKED = np.ma.masked_array(np.float32([1, 999]), mask=[False, True])


class Tagged(np.ndarray):
    """A subclass of NumPy's array that can have more to say."""


def tagged(**said):
    made = np.zeros(2, "f4").view(Tagged)
    vars(made).update(said)
    return made


class ArrayLike:
    """Something of another library: NumPy reads its numbers, and nothing else of it."""

    def __init__(self, **said):
        vars(self).update(said)

    def __array__(self, dtype=None, copy=None):
        return np.zeros(2, "f4")


RANGE = range(2)
KINDS = [
    (MASKED, InvalidRequest, r"1 masked.*filled\(0\)"),
    (tagged(unit="m"), InvalidRequest, "unit m"),
    (tagged(info={"batch": 3}), InvalidRequest, r"\(info\).*numpy\.asarray"),
    (ArrayLike(iloc=None, index=["b", "a"]), WrongLayout, r"labels.*x\.to_numpy\(\)"),
    (ArrayLike(iloc=None, index=RANGE, columns=["b", "a"]), WrongLayout, "labels"),
    (ArrayLike(dims=("x",), values=None), WrongLayout, r"named dimensions.*x\.values"),
    (ArrayLike(columns=["a"], to_numpy=None), WrongLayout, "named columns"),
    (ArrayLike(magnitude=1, units="metre"), InvalidRequest, "unit metre"),
    (scipy.sparse.csr_matrix(np.eye(2)), InvalidRequest, r"sparse: give x\.toarray\(\).*adamd\.Sparse"),
    (SimpleNamespace(dense_shape=(2,), indices=[0], values=[1.0]), InvalidRequest, "sparse"),
    (SimpleNamespace(shape=(2,), dtype=np.dtype("f4")), InvalidRequest, "shape without numbers"),
    (None, InvalidRequest, "is None"),
    ("1.5", WrongDtype, r"is str.*float\(x\)"),
    (b"\0\0\x80?", WrongDtype, "bytes.*frombuffer"),
    (bytearray(8), WrongDtype, "frombuffer"),
    (memoryview(bytes(8)), WrongDtype, "frombuffer"),
    ({1.0, 2.0}, WrongLayout, "no order"),
    ({"a": 1.0}.values(), WrongLayout, r"list\(x\)"),
    ((float(i) for i in range(2)), WrongLayout, r"list\(x\)"),
    (np.zeros(2, "c8"), WrongDtype, r"complex64.*numpy\.stack"),
    ([1j, 2.0], WrongDtype, "complex128"),
    ([MASKED, MASKED], InvalidRequest, "a part of it, has 1 masked"),
    ([1.0, np.ma.masked], InvalidRequest, "masked"),
    (np.zeros((), "i8"), WrongDtype, "num_batches_tracked.*leave it out"),
    (np.zeros(2, bool), WrongDtype, "bool"),
    (np.array(["a", "b"]), WrongDtype, "text"),
    (np.zeros(2, "M8[s]"), WrongDtype, "time"),
    (np.zeros(2, "m8[s]"), WrongDtype, "time"),
    (np.zeros(2, [("a", "f4"), ("b", "f4")]), WrongDtype, "fields a, b; give a dict"),
    (np.array([Decimal(1), Fraction(1, 2)], object), WrongDtype, "element 0 is a Decimal"),
    ([1.0, None], WrongDtype, "element 1 is a NoneType.*has to be a number"),
    ([[1.0], [1.0, 2.0]], WrongLayout, "different lengths"),
    (np.array([[1.0], [1.0, 2.0]], object), WrongDtype, "rectangular"),
    (object(), WrongDtype, "a object, which is no array"),
    (np.zeros(2, np.longdouble), WrongDtype, r"Convert it: numpy\.asarray\(x, 'float64'\)"),
]


@pytest.mark.parametrize(("value", "error", "said"), KINDS, ids=[said[:24] for _, _, said in KINDS])
def test_what_a_conversion_would_drop_is_refused_with_what_to_do(value, error, said):
    with pytest.raises(error, match=said):
        arrays.parameters({"w": value})
    if value is not None:  # that leaves a tensor out
        with pytest.raises(error, match=said):
            arrays.matching({"w": value}, arrays.parameters({"w": np.zeros(2)}).layout, "float64", "gradient")


@pytest.mark.parametrize(
    "value",
    [
        np.ma.masked_array(np.zeros(2, "f4")),  # nothing is masked
        np.asmatrix(np.zeros((1, 2), "f4")),
        tagged(),
        ArrayLike(iloc=None, index=RANGE),  # labels that are the places
        memoryview(np.zeros(2, "f4")),
        np.zeros(2, "f4")[::-1],
    ],
)
def test_what_loses_nothing_is_taken(value):
    assert arrays.parameters(value).parts[0].dtype == "float32"


def test_the_words_of_another_library_that_gives_no_array_are_told_in_one_line():
    class Tracer:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("a\nb")

    class OnGpu(Tracer):
        __cuda_array_interface__ = None

    class Closed:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("is closed\nfor good")

    for value, said in ((Tracer(), "outside of jit"), (OnGpu(), r"x\.get\(\)"), (Closed(), "is closed for good")):
        with pytest.raises(InvalidRequest, match=said):
            arrays.parameters(value)


def test_memory_to_write_into_and_places_are_not_masked_either():
    layout = vector_layout((2,))
    with pytest.raises(InvalidRequest, match="masked"):
        arrays.landing(layout, "float32", MASKED)
    places = np.ma.masked_array([0, 1], mask=[False, True])
    with pytest.raises(InvalidRequest, match="masked"):
        Encoder().write(Sparse(places, np.zeros(2, "f4")), layout, "float32")
    with pytest.raises(InvalidSettings, match="masked"):
        settings_document({"lower": MASKED})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.3", "is str"),
        (None, "is NoneType"),
        (1j, "complex"),
        (np.complex64(1 + 2j), "complex"),
        (np.ma.masked, "masked"),
        (MASKED[:2], "masked"),
        (np.zeros(2), "has 2 elements.*mean"),
        (np.zeros(0), "has 0 elements"),
        (tagged(unit="m"), "unit m"),
        (object(), "is object; wanted a number"),
        ([0.3], "is list; wanted a number"),
    ],
)
def test_a_metric_is_one_real_number(value, said):
    with pytest.raises(InvalidRequest, match=said):
        array_checks.number("loss", value)


@pytest.mark.filterwarnings("error")
def test_numbers_of_every_kind_are_metrics():
    for value in (0.5, np.float32(0.5), np.array(0.5), np.array([[0.5]]), Fraction(1, 2), Decimal("0.5")):
        assert array_checks.number("loss", value) == 0.5
    assert array_checks.number("loss", True) == 1
    for value in (math.nan, math.inf, np.float32("nan"), 10**400, 2.0**1023):
        assert array_checks.number("loss", value) is None


@pytest.mark.torch
@pytest.mark.filterwarnings("error")
def test_tensors_come_whole_or_not_at_all():
    import torch

    ones = torch.ones(2, requires_grad=True)
    assert arrays.part("x", ones, "x").array.tolist() == [1, 1]
    assert array_checks.number("loss", ones.sum()) == 2
    assert arrays.part("x", torch.tensor([1 + 2j, 1]).conj().imag, "x").array.tolist() == [-2, 0]
    for value, error, said in (
        (torch.eye(2).to_sparse(), InvalidRequest, r"sparse: give x\.to_dense\(\)"),
        (torch.zeros(2, device="meta"), InvalidRequest, "meta"),
        (torch.tensor(3), WrongDtype, "num_batches_tracked"),
        (torch.zeros(2, dtype=torch.complex64).conj(), InvalidRequest, "conjugate"),
        (torch.zeros(2, dtype=torch.bool), WrongDtype, "bool"),
        (torch.zeros(2).to(torch.float8_e4m3fn), InvalidRequest, "no array of numbers"),
    ):
        with pytest.raises(error, match=said):
            arrays.parameters(value)
    with pytest.raises(InvalidRequest, match="complex"):
        array_checks.number("loss", torch.tensor(1j))
    with pytest.raises(InvalidRequest, match="has 2 elements"):
        array_checks.number("loss", ones)


@pytest.mark.jax
def test_what_jax_gives_comes_whole_or_not_at_all():
    import jax
    import jax.numpy as jnp

    assert arrays.part("x", jnp.ones(2, jnp.bfloat16), "x").dtype == "bfloat16"
    with pytest.raises(InvalidRequest, match="shape without numbers"):
        arrays.parameters(jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(InvalidRequest, match="outside of jit"):
        jax.jit(lambda x: arrays.parameters(x))(jnp.ones(2))
    with pytest.raises(WrongDtype, match=r"float8_e4m3fn.*float32"):
        arrays.parameters(jnp.ones(2, jnp.float8_e4m3fn))
    assert array_checks.number("loss", jnp.float32(0.5)) == 0.5
