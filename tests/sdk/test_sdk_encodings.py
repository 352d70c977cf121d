"""The SDK's encodings: error feedback by its equation, and what does not fit refused before it is sent."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamd
from adamd.errors import BadGradient, InvalidRequest, WrongDtype, WrongLayout
from adamd.sansio.gradient_encoding import Encoder, EncodingOptions
from adamd.wire import encodings
from adamd.wire.dtypes import narrow_bfloat16, storage, widen
from adamd.wire.layout import named_layout, vector_layout

LOSSY = ["float16", "bfloat16", "int8", adamd.TopK(0.1)]


def encoder(encoding="raw", feedback=True):
    made = Encoder()
    made.choose(EncodingOptions.of(encoding, feedback), "float32")
    return made


def meaning(body, size, dtype="float32"):
    """The dense vector that a body says."""
    raw = np.concatenate([np.frombuffer(piece, np.uint8) for piece in body.pieces] or [np.empty(0, np.uint8)])
    if body.encoding == "int8":
        out = np.empty(size, storage(dtype))
        encodings.decode_int8(*encodings.int8_parts(raw, size), 0, out)
        return out
    if body.encoding.startswith("sparse"):
        indices, values = encodings.sparse_parts(raw, body.dtype)
        out = np.zeros(size, storage(dtype))
        out[indices] = widen(np.array(values), body.dtype, dtype)
        return out
    return np.array(widen(raw.view(storage(body.dtype)), body.dtype, dtype))


# -- pure


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("encoding", LOSSY, ids=str)
def test_error_feedback_is_its_equation(encoding, dtype):
    """sent = C(g + e), e' = (g + e) - decode(sent): recomputed beside it, bit for bit."""
    size, rng = 70_001, np.random.default_rng(0)
    layout, one = vector_layout((size,)), encoder(encoding)
    left = np.zeros(size, dtype)
    for _ in range(4):
        gradient = (rng.standard_normal(size) * np.exp2(rng.integers(-20, 4, size))).astype(dtype)
        kept = gradient.copy()
        written = one.write(gradient, layout, dtype)
        assert gradient.tobytes() == kept.tobytes()  # the caller's array is not ours to change
        total = gradient + left
        sent = meaning(written.body, size, dtype)
        # C itself, without feedback, of the same total
        plain = encoder(encoding, feedback=False).write(total, layout, dtype)
        assert [bytes(p) for p in plain.body.pieces] == [bytes(p) for p in written.body.pieces]
        left = total - sent
        assert written.residual.tobytes() == left.tobytes()
        one.sent(written)
    assert np.abs(left).max() > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from(LOSSY))
def test_nothing_is_lost_for_good(size, seed, encoding):
    """What was sent in all, and what is left, are what the gradients were in all."""
    rng, one = np.random.default_rng(seed), encoder(encoding)
    given, sent = np.zeros(size), np.zeros(size)
    for _ in range(10):
        gradient = rng.standard_normal(size).astype(np.float32)
        written = one.write(gradient, vector_layout((size,)), "float32")
        given += gradient
        sent += meaning(written.body, size)
        one.sent(written)
    np.testing.assert_allclose(sent + written.residual, given, rtol=0, atol=1e-4)


def test_what_is_not_acknowledged_leaves_no_trace():
    layout, rng = vector_layout((1000,)), np.random.default_rng(1)
    one, gradients = encoder("int8"), rng.standard_normal((3, 1000)).astype(np.float32)
    one.sent(one.write(gradients[0], layout, "float32"))
    first = one.write(gradients[1], layout, "float32")
    one.write(gradients[2], layout, "float32")  # refused
    with pytest.raises(BadGradient):
        one.write(gradients[2] * np.float32(np.nan), layout, "float32")
    again = one.write(gradients[1], layout, "float32")
    assert bytes(first.body.pieces[0]) == bytes(again.body.pieces[0])
    assert first.residual.tobytes() == again.residual.tobytes()


def test_raw_takes_what_was_left_along_once_and_is_uncopied_otherwise():
    layout, one = vector_layout((1000,)), encoder("int8")
    gradient = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    written = one.write(gradient, layout, "float32")
    one.sent(written)
    one.encoding = "raw"
    flushed = one.write(gradient, layout, "float32")
    assert meaning(flushed.body, 1000).tobytes() == (gradient + written.residual).tobytes()
    one.sent(flushed)
    last = one.write(gradient, layout, "float32")
    assert np.shares_memory(np.frombuffer(last.body.pieces[0], np.float32), gradient)
    one.encoding = "int8"
    one.sent(one.write(gradient, layout, "float32"))
    one.error_feedback = False
    assert one.write(gradient, layout, "float32").residual is None


def test_a_gradient_of_tensors_becomes_one_vector_and_has_to_be_whole():
    layout, one = named_layout({"a": (3,), "b": (2, 2)}), encoder("float16", feedback=False)
    parts = {"b": np.ones((2, 2), np.float16), "a": narrow_bfloat16(np.float32([1, 2, 3])).view(np.uint16)}
    with pytest.raises(WrongDtype):
        one.write(parts, layout, "float32")  # uint16 is not taken for bfloat16
    parts["a"] = np.float32([1, 2, 3.0001])
    assert meaning(one.write(parts, layout, "float32").body, 7).tolist() == [1, 2, 3, 1, 1, 1, 1]
    for encoding in LOSSY:
        one.encoding = encoding
        with pytest.raises(WrongLayout, match="every tensor"):
            one.write({"a": parts["a"]}, layout, "float32")
    with pytest.raises(WrongDtype):  # float64 is not rounded silently on its way to being rounded
        one.write({"a": np.float64([1, 2, 3]), "b": parts["b"]}, layout, "float32")


@pytest.mark.parametrize("wrong", ["int4", "", None, 8, "sparse"])
def test_an_unknown_encoding_is_refused(wrong):
    with pytest.raises(InvalidRequest, match="wanted"):
        EncodingOptions.of(wrong)


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_fraction_is_one(fraction):
    with pytest.raises(InvalidRequest):
        adamd.TopK(fraction)


def sparse_of(gradient, shapes, dtype="float32", vector=False):
    layout = vector_layout(shapes) if vector else named_layout(shapes)
    body = encoder().write(gradient, layout, dtype).body
    return body, meaning(body, layout.size, dtype)


def test_sparse_elements_and_rows_find_their_places():
    body, dense = sparse_of(adamd.Sparse([5, 0], np.float32([2, 1])), (2, 3), vector=True)
    assert (body.encoding, dense.tolist()) == ("sparse", [1, 0, 0, 0, 0, 2])
    rows = adamd.Sparse(np.array([2, 0]), np.float32([[5, 6], [1, 2]]), lazy=True)
    body, dense = sparse_of({"b": rows, "a": None}, {"a": (3,), "b": (3, 2), "c": (2,)})
    assert (body.encoding, dense.tolist()) == ("sparse-lazy", [0, 0, 0, 1, 2, 0, 0, 5, 6, 0, 0])
    mixed = {
        "a": adamd.Sparse([1], np.float16([0.5])),
        "b": adamd.Sparse([], []),
        "c": adamd.Sparse([0], np.float64([3])),
    }
    body, dense = sparse_of(mixed, {"a": (3,), "b": (3, 2), "c": (2,)}, "float64")
    assert (body.dtype, body.encoding, dense[1], dense[9]) == ("float64", "sparse", 0.5, 3)


@pytest.mark.parametrize(
    ("gradient", "told"),
    [
        ({"a": adamd.Sparse([3], np.float32([1])), "b": adamd.Sparse([], [])}, "index 3"),
        ({"a": adamd.Sparse([-1], np.float32([1])), "b": adamd.Sparse([], [])}, "index -1"),
        ({"a": adamd.Sparse([1, 2, 1], np.float32([1, 2, 3])), "b": adamd.Sparse([], [])}, "comes twice"),
        ({"a": adamd.Sparse([0, 1], np.float32([1])), "b": adamd.Sparse([], [])}, "wanted a flat list"),
        ({"a": adamd.Sparse([0.5], np.float32([1])), "b": adamd.Sparse([], [])}, "wanted a flat list"),
        ({"a": adamd.Sparse([0], np.float32([1]))}, "'b' is missing"),
        ({"a": adamd.Sparse([0], np.float32([1])), "b": np.zeros((2, 2), np.float32)}, "every tensor as"),
        ({"a": adamd.Sparse([0], np.float32([1])), "b": adamd.Sparse([], [], lazy=True)}, "every tensor as"),
        ({"b": adamd.Sparse([0], np.float32([[1, 2, 3]]), lazy=True)}, "rows of shape"),
        ({"x": adamd.Sparse([0], np.float32([1]), lazy=True)}, "no tensor 'x'"),
        (adamd.Sparse([0], np.float32([1])), "wanted a dict"),
    ],
)
def test_sparse_that_does_not_fit_is_refused_before_it_is_sent(gradient, told):
    with pytest.raises(WrongLayout, match=told):
        sparse_of(gradient, {"a": (3,), "b": (2, 2)})


def test_sparse_values_are_not_rounded_silently():
    with pytest.raises(WrongDtype):
        sparse_of(adamd.Sparse([0], np.float64([1])), (3,), vector=True)


@pytest.mark.parametrize("value", [adamd.TopK(0.5), adamd.Sparse([1], [2.0]), adamd.Timeout(total=3)])
def test_pickles_name_the_public_place(value):
    pickled = pickle.dumps(value)
    assert repr(pickle.loads(pickled)) == repr(value)  # noqa: S301 - made just now
    assert b"adamd." not in pickled
