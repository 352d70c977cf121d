"""Encoded gradients meet the state: the same bits from every kernel, whatever the slices; hostile bodies refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.errors import BadGradient, MalformedBody
from adamd.wire import encodings
from adamd.wire.dtypes import storage, widen
from adamd.wire.encodings import INT8, LAZY, RAW, SPARSE
from adamd_service.optim import FusedKernel, Lazy, ReferenceKernel, State, apply, encoded, parse_settings, plan

from .parity import DTYPES, VARIANTS, differing, hard_gradients, hard_parameters, of_variants

F32, F64 = DTYPES
FUSED, REFERENCE = FusedKernel(), ReferenceKernel()
BOUNDS = [0, 300, 300, 301, 1500, 2003]
NAMES = ["a", "empty", "one", "b", "c"]


def dense_of(encoding, dtype, body, size, session):
    """What a body means, by another way than the code's: element by element or by one whole-array operation."""
    if encoding == INT8:
        scales, q = encodings.int8_parts(body, size)
        product = np.repeat(scales.astype(np.float64), 256)[:size] * q
        return product.astype(np.float32).astype(session)
    indices, values = encodings.sparse_parts(body, dtype)
    dense = np.zeros(size, session)
    dense[indices.astype(np.int64)] = widen(np.array(values), dtype, session.name)
    return dense


def bodies(rng, wide, encoding, dtype):
    """A body of a gradient, and its dtype on the wire."""
    if encoding == INT8:
        return encodings.encode_int8(wide.clip(-1e15, 1e15).astype(np.float32)), "float32"
    chosen = np.sort(rng.choice(len(wide), int(rng.integers(0, len(wide) + 1)), replace=False))
    values = wide[chosen].clip(-100, 100)
    stored = (
        (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
        if dtype == "bfloat16"
        else values.astype(storage(dtype))
    )
    return encodings.encode_sparse(chosen, stored), dtype


def wires(session):
    return [
        INT8,
        *((SPARSE, wire) for wire in ("float16", "bfloat16", "float32", *(["float64"] if session == F64 else []))),
    ]


@of_variants
def test_dense_encodings_equal_the_vector_sent_raw_in_both_kernels_and_any_slices(case, dtype):
    size = BOUNDS[-1]
    for wire in wires(dtype):
        encoding, value_dtype = (INT8, "float32") if wire == INT8 else wire
        rng = np.random.default_rng(11)
        parsed = parse_settings(VARIANTS[case])
        one = State.fresh(hard_parameters(rng, size, dtype), len(NAMES), parsed)
        others = [(one.copy(), kernel, width) for kernel in (REFERENCE, FUSED) for width in (1 << 20, 97)]
        out = np.empty(size, dtype)
        for wide in hard_gradients(rng, size, 4, dtype):
            body, value_dtype = bodies(rng, wide, encoding, value_dtype)
            dense = dense_of(encoding, value_dtype, body, size, dtype)
            updates = plan(parsed, NAMES, one.counts, [True] * 5, dtype, one.carried)
            apply(one, dense, updates, BOUNDS, None, FUSED)
            for state, kernel, width in others:
                gradient = encoded(encoding, value_dtype, body, size, dtype)
                gradient.check(body.nbytes)
                apply(state, gradient, updates, BOUNDS, out, kernel, slice_size=width)
                assert state.counts == one.counts
                assert differing(out, one.params) == 0
                for name, array in one.arrays.items():
                    assert differing(array, state.arrays[name]) == 0, (wire, name)


@of_variants
def test_lazy_touches_what_is_named_and_nothing_else(case, dtype):
    """Against a state of the named elements alone: what the step makes of them is what it would of a dense vector."""
    size = BOUNDS[-1]
    rng = np.random.default_rng(5)
    parsed = parse_settings(VARIANTS[case])
    states = [State.fresh(hard_parameters(rng, size, dtype), len(NAMES), parsed)]
    states += [states[0].copy() for _ in range(3)]
    runs = [(REFERENCE, 1 << 20), (FUSED, 1 << 20), (FUSED, 61), (REFERENCE, 7)]
    out = np.empty(size, dtype)
    for wide in hard_gradients(rng, size, 5, dtype):
        chosen = np.flatnonzero(rng.random(size) < 0.2)
        if rng.random() < 0.5:
            chosen = chosen[(chosen < 300) | (chosen > 1500)]  # one and b are left out
        body = encodings.encode_sparse(chosen, wide[chosen])
        before = states[0].copy()
        for state, (kernel, width) in zip(states, runs, strict=True):
            gradient = encoded(LAZY, dtype.name, body, size, dtype)
            gradient.check(body.nbytes)
            assert isinstance(gradient, Lazy)
            touched = gradient.touched(BOUNDS)
            assert touched == tuple(i for i in range(5) if any(BOUNDS[i] <= c < BOUNDS[i + 1] for c in chosen))
            updates = plan(parsed, NAMES, state.counts, [i in touched for i in range(5)], dtype, state.carried)
            apply(state, gradient, updates, BOUNDS, out, kernel, slice_size=width)
            assert out.tobytes() == state.params.tobytes()
        for state in states[1:]:
            assert state.counts == states[0].counts
            assert all(differing(a, state.arrays[n]) == 0 for n, a in states[0].arrays.items())
        full = np.zeros(size, dtype)
        full[chosen] = wide[chosen]
        dense = before.copy()
        apply(
            dense,
            full,
            plan(parsed, NAMES, before.counts, [i in touched for i in range(5)], dtype, before.carried),
            BOUNDS,
            None,
            REFERENCE,
        )
        named = np.isin(np.arange(size), chosen)
        assert dense.counts == states[0].counts == [c + (i in touched) for i, c in enumerate(before.counts)]
        for name, array in states[0].arrays.items():
            assert differing(array[named], dense.arrays[name][named]) == 0, name
            assert array[~named].tobytes() == before.arrays[name][~named].tobytes(), name


def test_lazy_that_names_nothing_changes_nothing():
    state = State.fresh(np.ones(10, np.float32), 1, parse_settings({}))
    before = state.copy()
    gradient = encoded(LAZY, "float32", np.empty(0, np.uint8), 10, F32)
    gradient.check(0)
    assert gradient.touched([0, 10]) == ()
    out = np.empty(10, np.float32)
    assert apply(state, gradient, (), [0, 10], out, FUSED) is False
    assert out.tobytes() == before.params.tobytes() and state.counts == [0]


@settings(max_examples=150, deadline=None)
@given(
    encoding=st.sampled_from([RAW, INT8, SPARSE, LAZY]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    size=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    fault=st.booleans(),
    data=st.data(),
)
def test_a_fault_is_found_however_the_bytes_arrive(encoding, dtype, size, seed, fault, data):
    """Bytes come in pieces of 8 (but for the end); whatever the pieces, the first bad element is told, or none."""
    rng = np.random.default_rng(seed)
    dtype = "float32" if encoding == INT8 else dtype
    values = rng.standard_normal(size).astype(storage(dtype))
    named = np.arange(size)
    where = int(rng.integers(size))
    if encoding == INT8:
        body = encodings.encode_int8(values)
        if fault:
            encodings.int8_parts(body, size)[0][where // 256] = 3e38
            encodings.int8_parts(body, size)[1][where] = 127
    else:
        if fault:
            values[where] = rng.choice([np.nan, np.inf, -np.inf])
        if encoding == RAW:
            body = values.view(np.uint8)
        else:
            named = np.sort(rng.choice(5000, size, replace=False))
            body = encodings.encode_sparse(named, values)
    gradient = encoded(
        encoding, dtype, body, 5000 if encoding in (SPARSE, LAZY) else size, F64 if dtype == "float64" else F32
    )
    ends = sorted({data.draw(st.integers(0, body.nbytes // 8)) * 8 for _ in range(3)} | {body.nbytes})
    try:
        for end in ends:
            gradient.check(end)
        found = None
    except BadGradient as error:
        found = error.extra["index"]
    if not fault:
        assert found is None
    elif encoding == INT8:  # the scale makes others of its block bad as well
        q = encodings.int8_parts(body, size)[1][where // 256 * 256 :][:256]
        with np.errstate(over="ignore"):
            bad = ~np.isfinite((np.float32(3e38) * q.astype(np.float32)) ** 2)
        assert found == where // 256 * 256 + int(bad.argmax())
    else:
        assert found == named[where]


@pytest.mark.parametrize(
    ("value", "told"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-1.0, "-1"), (-0.0, "-0"), (-1e-45, "-1")]
)
@pytest.mark.parametrize("session", DTYPES, ids=str)
def test_a_scale_is_finite_and_has_no_sign(value, told, session):
    body = encodings.encode_int8(np.ones(1000, np.float32))
    encodings.int8_parts(body, 1000)[0][2] = value
    with pytest.raises(BadGradient, match="scale 2") as error:
        encoded(INT8, "float32", body, 1000, session).check(16)  # before the bytes are there
    assert error.value.extra["index"] == 512 and told in error.value.detail


def test_the_largest_scale_that_every_byte_may_have_is_not_refused():
    """The quick look at the scales agrees with the exact one, on both of its sides."""
    limit = float(np.sqrt(np.finfo(np.float32).max))
    for scale in (limit / 128, np.nextafter(np.float32(limit / 128), np.float32(np.inf)), limit / 127, limit):
        for q in (-128, 127, 1, 0):
            body = np.concatenate([np.array([scale], "<f4").view(np.uint8), np.array([q], np.int8).view(np.uint8)])
            with np.errstate(over="ignore"):
                product = np.float32(scale) * np.float32(q)
                good = bool(np.isfinite(product * product))
            gradient = encoded(INT8, "float32", body, 1, F32)
            if good:
                gradient.check(5)
            else:
                with pytest.raises(BadGradient):
                    gradient.check(5)


@pytest.mark.parametrize("kind", [SPARSE, LAZY])
@pytest.mark.parametrize(
    ("indices", "told"),
    [
        ([3, 3], "index 1"),
        ([5, 4], "index 1"),
        ([0, 1, 10], "index 2"),
        ([10], "index 0"),
        ([2**32 - 1], "index 0"),
        ([1, 2, 9, 7, 11], "index 3"),
    ],
)
def test_indices_out_of_order_or_range_are_told_by_their_place(kind, indices, told):
    body = encodings.encode_sparse(np.array(indices), np.ones(len(indices), np.float32))
    with pytest.raises(MalformedBody, match=told):
        encoded(kind, "float32", body, 10, F32).check(4 * len(indices))  # before the values are there


@pytest.mark.parametrize("encoding", [INT8, SPARSE, LAZY])
def test_no_dense_copy_is_made_of_an_encoded_gradient(encoding):
    size = 4_000_000
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    chosen = np.arange(0, size, 40)
    body = encodings.encode_int8(values) if encoding == INT8 else encodings.encode_sparse(chosen, values[chosen])
    state, out = State.fresh(values, 1, parse_settings({})), np.empty(size, np.float32)
    updates = plan(parse_settings({}), ["w"], [0], [True], F32)
    apply(state, encoded(encoding, "float32", body, size, F32), updates, [0, size], out, FUSED)  # whatever is made once
    gradient = encoded(encoding, "float32", body, size, F32)
    tracemalloc.start()
    try:
        gradient.check(body.nbytes)
        apply(state, gradient, updates, [0, size], out, FUSED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # some slices; as a dense copy it would be 16 MB


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("maximize", [False, True])
def test_lazy_is_torch_sparse_adam(dtype, maximize):
    """torch adds eps before the bias correction: its sqrt(v) + eps' is ours where eps' = eps * sqrt(1 - b2^t). So eps
    follows t there, and both are compared over 60 steps of an embedding of which each step touches some rows."""
    import torch

    rows, width, eps = 40, 6, 1e-3
    rng = np.random.default_rng(2)
    start = rng.standard_normal((rows, width)).astype(dtype)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.SparseAdam([weight], lr=0.05, betas=(0.9, 0.95), eps=eps, maximize=maximize)
    parsed = parse_settings({"lr": 0.05, "betas": [0.9, 0.95], "eps": eps, "maximize": maximize})
    state = State.fresh(start.reshape(-1), 1, parse_settings({}))
    for step in range(1, 61):
        touched = np.sort(rng.choice(rows, int(rng.integers(1, 8)), replace=False))
        values = rng.standard_normal((len(touched), width)).astype(dtype)
        weight.grad = torch.sparse_coo_tensor(
            torch.from_numpy(touched)[None], torch.from_numpy(values), (rows, width), check_invariants=True
        )
        for group in theirs.param_groups:
            group["eps"] = eps * float(np.sqrt(1 - 0.95**step))
        theirs.step()
        named = (touched[:, None] * width + np.arange(width)).reshape(-1)
        body = encodings.encode_sparse(named, values.reshape(-1))
        gradient = encoded(LAZY, dtype, body, rows * width, np.dtype(dtype))
        apply(
            state, gradient, plan(parsed, ["w"], state.counts, [True], np.dtype(dtype)), [0, rows * width], None, FUSED
        )
        tight = {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}
        np.testing.assert_allclose(state.params.reshape(rows, width), weight.detach().numpy(), **tight)
    theirs_state = theirs.state[weight]
    assert state.counts == [theirs_state["step"]] == [60]
    np.testing.assert_allclose(
        state.slots["exp_avg"].reshape(rows, width), theirs_state["exp_avg"].numpy(), rtol=1e-4, atol=1e-6
    )
