"""The norm is one number: of every encoding, every slice, and against a tree written out in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.wire import encodings
from adamd_service.optim import Raw, encoded
from adamd_service.optim.gradients.norm import clip_factor, gradient_norm

F32, F64 = np.dtype("float32"), np.dtype("float64")


def by_hand(values):
    """The tree of the module's docstring, in Python's floats."""
    total = 0.0
    for start in range(0, len(values), 4096):
        block = [float(value) for value in values[start : start + 4096]]
        lanes = [0.0] * 256
        for i, value in enumerate(block):
            lanes[i % 256] += value * value
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [lanes[j] + lanes[j + half] for j in range(half)]
        total += lanes[0]
    return math.sqrt(total)


def hard(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size)).astype(dtype)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [0, 1, 7, 255, 256, 257, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_003])
def test_the_tree(dtype, size):
    values = hard(size, dtype, size)
    values.flags.writeable = False
    assert gradient_norm(Raw.of(values, dtype), dtype) == by_hand(values)


def test_the_order_matters_so_the_tree_can_fail():
    """Another order gives other last bits on such data: equality above is no accident."""
    values = hard(200_003, F64)
    plain = 0.0
    for value in values.tolist():
        plain += value * value
    assert math.sqrt(plain) != by_hand(values)
    assert gradient_norm(Raw.of(values, F64), F64) == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 150_000), st.integers(0, 2**32), st.sampled_from([F32, F64]))
def test_a_sparse_gradient_has_the_norm_of_its_dense_one(size, seed, dtype):
    rng = np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(size) < 0.05).astype("<u4")
    values = hard(len(indices), dtype, seed)
    dense = np.zeros(size, dtype)
    dense[indices] = values
    wanted = by_hand(dense)
    body = np.frombuffer(indices.tobytes() + values.tobytes(), np.uint8)
    for encoding in (encodings.SPARSE, encodings.LAZY):
        assert gradient_norm(encoded(encoding, dtype.name, body, size, dtype), dtype) == wanted


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("sent", ["float16", "bfloat16", "float32", "int8"])
def test_narrow_ones_are_widened_first(dtype, sent):
    rng = np.random.default_rng(3)
    size = 70_001
    if sent == "int8":
        quantized = rng.integers(-128, 128, size).astype(np.int8)
        scales = rng.random(encodings.scales_of(size)).astype("<f4")
        body = np.frombuffer(scales.tobytes() + quantized.tobytes(), np.uint8)
        dense = np.repeat(scales, encodings.BLOCK)[:size] * quantized.astype(np.float32)
        gradient = encoded(encodings.INT8, "float32", body, size, dtype)
    else:
        values = rng.standard_normal(size).astype(np.float32)
        if sent == "bfloat16":
            values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
            stored, dense = (values.view(np.uint32) >> 16).astype(np.uint16), values
        else:
            stored = values.astype(sent)
            dense = stored
        gradient = Raw.of(stored, dtype)
    assert gradient_norm(gradient, dtype) == by_hand(dense.astype(dtype))


def test_the_factor_is_torchs():
    assert clip_factor(0.0, 1.0) == 1.0
    assert clip_factor(1.0, 1.0) == 1.0 / 1.000001
    assert clip_factor(10.0, 1.0) == 1.0 / 10.000001
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(math.inf, 1.0) == 0.0
    assert 0.0 <= clip_factor(1e308, 1e-300) < 1e-100


@pytest.mark.torch
@pytest.mark.parametrize("most", [0.1, 50.0, 1e6])
def test_torch_clips_alike(most):
    import torch

    parts = [hard(size, F64, size) / 1e9 for size in (3, 5000, 1)]
    parameters = [torch.nn.Parameter(torch.zeros(len(part), dtype=torch.float64)) for part in parts]
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = torch.tensor(part)
    total = float(torch.nn.utils.clip_grad_norm_(parameters, most))
    joined = np.concatenate(parts)
    norm = gradient_norm(Raw.of(joined, F64), F64)
    assert norm == pytest.approx(total, rel=1e-12)
    clipped = np.concatenate([parameter.grad.numpy() for parameter in parameters])
    np.testing.assert_allclose(clip_factor(norm, most) * joined, clipped, rtol=1e-12)
