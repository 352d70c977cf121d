"""Gradients: refused at the first fault, widened exactly."""

import numpy as np
import pytest

from adamd_service.optim import check_gradient
from adamd_service.optim.gradients.half_precision import widen
from adamd_service.optim.gradients.scan import wire_dtype

F32, F64 = np.dtype("float32"), np.dtype("float64")
PAIRS = [
    ("float16", F32),
    ("bfloat16", F32),
    ("float32", F32),
    *((wire, F64) for wire in ("float16", "bfloat16", "float32", "float64")),
]
EVERY_16 = np.arange(1 << 16, dtype=np.uint16)


def single(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def same(left, right):
    unsigned = f"u{left.itemsize}"
    return (left.view(unsigned) == right.view(unsigned)) | (np.isnan(left) & np.isnan(right))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_every_16_bit_pattern_widens_exactly(dtype):
    into = np.empty(1 << 16, dtype)
    with np.errstate(invalid="ignore"):
        half, brain = EVERY_16.view(np.float16).astype(dtype), single(EVERY_16).astype(dtype)
        widen(EVERY_16.view(np.float16), into)
        assert same(into, half).all()
        widen(EVERY_16, into)
        assert same(into, brain).all()


@pytest.mark.parametrize("session", [F32, F64], ids=str)
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_every_16_bit_pattern_is_judged_by_its_square(wire, session):
    stored = EVERY_16.view(np.float16) if wire == "float16" else EVERY_16
    with np.errstate(all="ignore"):
        wide = (stored if wire == "float16" else single(stored)).astype(session)
        wanted = np.isfinite(wide * wide)
    judged = [check_gradient(stored[i : i + 1], wire, session) == -1 for i in range(0, 1 << 16, 7)]
    assert judged == wanted[::7].tolist()
    assert check_gradient(stored[wanted], wire, session) == -1
    assert check_gradient(stored, wire, session) == int(np.argmin(wanted))


@pytest.mark.parametrize(("wire", "session"), [("float32", F32), ("float64", F64), ("float32", F64)])
def test_the_edge_where_a_square_overflows(wire, session):
    dtype = np.dtype(wire)
    edge = np.sqrt(np.finfo(dtype).max, dtype=dtype)
    near = [edge]
    for _ in range(6):
        near = [np.nextafter(near[0], dtype.type(0)), *near, np.nextafter(near[-1], dtype.type(np.inf))]
    with np.errstate(over="ignore"):
        wanted = [bool(np.isfinite(session.type(x) * session.type(x))) for x in near]
    assert [check_gradient(np.array([x], dtype), wire, session) == -1 for x in near] == wanted
    assert [check_gradient(np.array([-x], dtype), wire, session) == -1 for x in near] == wanted
    assert (True in wanted) and (False in wanted or dtype != session)


@pytest.mark.parametrize(("wire", "session"), PAIRS)
@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_fault_is_found_wherever_it_is(wire, session, fault):
    dtype = np.dtype("float32" if wire == "bfloat16" else wire)
    for size in (1, 3, 64, 4095, 4096, 4097, 9001):
        gradient = np.random.default_rng(size).standard_normal(size).astype(dtype)
        for index in {0, size // 2, size - 1, min(4096, size - 1)}:
            spoilt = gradient.copy()
            spoilt[[index, size - 1]] = fault
            for array, wanted in [(spoilt, index), (gradient, -1)]:
                stored = (array.view(np.uint32) >> 16).astype(np.uint16) if wire == "bfloat16" else array
                stored.flags.writeable = False  # as np.frombuffer gives it
                assert check_gradient(stored, wire, session) == wanted


def test_parts_and_nothing():
    gradient = np.array([1, np.nan, 2, np.inf], np.float32)
    assert [check_gradient(gradient[start : start + 2], "float32", F32) for start in (0, 1, 2)] == [1, 0, 1]
    assert check_gradient(gradient[:0], "float32", F32) == -1


@pytest.mark.parametrize(
    ("gradient", "wire", "session", "message"),
    [
        (np.ones(2), "float64", F32, "would be rounded"),
        (np.ones(2), "float32", F32, "flat one of float32"),
        (np.ones(2, np.float16), "bfloat16", F32, "flat one of uint16"),
        (np.ones((2, 2), np.float32), "float32", F32, "2-dimensional"),
        (np.ones(4, np.float32)[::2], "float32", F32, "not contiguous"),
        (np.frombuffer(bytes(9), np.float32, 2, 1), "float32", F32, "aligned"),
        (np.ones(2, ">f4"), "float32", F32, "flat one of float32"),
        (np.ones(2, np.int64), "int64", F64, "wanted one of float16, bfloat16, float32, float64"),
    ],
)
def test_what_does_not_fit_is_refused(gradient, wire, session, message):
    with pytest.raises(ValueError, match=message):
        check_gradient(gradient, wire, session)


def test_wire_names():
    assert [wire_dtype(np.empty(0, kind)) for kind in ("f2", "u2", "f4", "f8")] == [
        "float16",
        "bfloat16",
        "float32",
        "float64",
    ]
