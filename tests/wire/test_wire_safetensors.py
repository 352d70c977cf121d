"""The safetensors reader and writer against the library, and against bytes that lie."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adamd.errors import AdamdError, MalformedBody
from adamd.wire.layout import MAX_NAME, MAX_TENSORS
from adamd.wire.safetensors import LONGEST, MAX_HEADER, MOST, read_header, write_header

DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs", "Cn", "Co", "Cf"]), min_size=1, max_size=12
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
FILES = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"), st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6
)
METADATA = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    max_size=3,
)


def arrays_of(file):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(DTYPES[dtype]) for name, (dtype, shape) in file.items()}


def written(arrays, metadata):
    names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    head = write_header(((n, names[a.dtype], a.shape) for n, a in arrays.items()), metadata)
    return head + b"".join(array.tobytes() for array in arrays.values())


def read(body):
    header = read_header(memoryview(body))
    assert header.nbytes == len(body)
    found = {}
    for stored in header.tensors:
        part = body[header.data_start + stored.start : header.data_start + stored.end]
        found[stored.tensor.name] = np.frombuffer(part, DTYPES[stored.dtype]).reshape(stored.tensor.shape)
    return found, header.metadata


def same(one, two):
    assert set(one) == set(two)
    for name, array in one.items():
        assert array.dtype == two[name].dtype and array.shape == two[name].shape
        assert array.tobytes() == two[name].tobytes()


@given(FILES, METADATA)
def test_the_library_reads_what_we_write(file, metadata):
    arrays = arrays_of(file)
    body = written(arrays, metadata)
    same(arrays, load(body))
    same(arrays, read(body)[0])
    assert read(body)[1] == metadata
    assert struct.unpack("<Q", body[:8])[0] % 8 == 0  # the data are aligned


@given(FILES, METADATA)
def test_we_read_what_the_library_writes(file, metadata):
    arrays = arrays_of(file)
    found, told = read(save(arrays, metadata or None))
    same(arrays, found)
    assert told == metadata


BODY = written(
    arrays_of({"w": ("float32", (2, 3)), "b": ("float64", (2,)), "h": ("float16", ())}), {"adamd": '{"a": [1]}'}
)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(BODY) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(-40, 40),
)
def test_whatever_is_done_to_a_body_it_is_read_or_refused(changes, length):
    body = bytearray(BODY)
    for place, value in changes:
        body[place] = value
    body = bytes(body[:length]) if length < 0 else bytes(body) + b" " * length
    judged(body)


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_whatever_comes_it_is_read_or_refused(body):
    judged(body)
    judged(struct.pack("<Q", len(body)) + body)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "I8"]) | JUNK,
        "shape": st.lists(st.integers(-1, 5) | st.sampled_from([2**31, 2**53, 2**63]), max_size=4) | JUNK,
        "data_offsets": st.lists(st.integers(-8, 64), min_size=2, max_size=2) | JUNK,
    }
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=3), LIKELY | JUNK, max_size=3),
    st.integers(0, 70),
)
def test_whatever_the_header_says_it_is_read_or_refused(header, length):
    text = json.dumps(header).encode()
    judged(struct.pack("<Q", len(text)) + text + bytes(length))


def judged(body):
    """We refuse with our own error, or read; what we read the library reads too: we are never the laxer one."""
    try:
        header = read_header(memoryview(body))
    except AdamdError as error:
        assert len(error.detail) < 2000
        return
    assert header.nbytes == len(body)
    ends = [stored.end for stored in header.tensors]
    assert [stored.start for stored in header.tensors] == [0, *ends[:-1]][: len(ends)]
    if "bfloat16" in {stored.dtype for stored in header.tensors}:
        return  # NumPy has none, so the library's NumPy loader refuses it
    try:
        found = load(body)
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what we read: {error}") from error
    assert set(found) == {stored.tensor.name for stored in header.tensors}


def test_a_header_may_have_the_tensors_of_a_whole_export():
    names = [f"max_exp_avg_sq:{i:06}{'x' * (MAX_NAME - 6)}" for i in range(3)]
    assert len(names[0]) <= LONGEST and MOST == 4 * MAX_TENSORS
    head = write_header(((name, "float32", ()) for name in names), {})
    assert len(read_header(memoryview(head + bytes(12))).tensors) == 3
    many = write_header(((str(i), "float32", (0,)) for i in range(MOST)), {})
    assert len(read_header(memoryview(many)).tensors) == MOST


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**32, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_by_its_length_alone(length):
    with pytest.raises(MalformedBody, match="at most"):
        read_header(memoryview(struct.pack("<Q", length) + b"{}"))
