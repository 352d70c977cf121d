"""Sessions that would stall silently are told so, and what would help does."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, State, apply, parse_settings, plan
from adamd_service.optim.gradients.encoded import encoded
from adamd_service.optim.gradients.scan import magnitude, scan_gradient
from adamd_service.optim.monitoring.stalls import remedy, stalls, told

F32, F64 = np.dtype("float32"), np.dtype("float64")
ADAM = {"eps": 1e-8, "one_minus_b2": 1e-3, "wd": 0.0, "sign": 1.0}


def test_a_gradient_far_below_eps_at_the_first_step():
    assert stalls(1e-12, [ADAM], F64, 1, {}) == {"gradient_below_eps": 1e-12}
    assert stalls(1.01e-11, [ADAM], F64, 1, {}) == {}  # not below a thousandth of eps
    assert stalls(0.0, [ADAM], F64, 1, {}) == {}
    assert stalls(None, [ADAM], F64, 1, {}) == {}


def test_later_it_is_mostly_convergence_unless_it_began_so_or_moves_nothing():
    assert stalls(1e-12, [ADAM], F64, 2, {}) == {}
    assert stalls(1e-12, [ADAM], F64, 2, {"gradient_below_eps": 1e-12}) == {"gradient_below_eps": 1e-12}
    assert stalls(1e-12, [ADAM], F32, 2, {}) == {}
    assert stalls(5.9e-16, [ADAM], F32, 2, {}) == {"gradient_below_eps": 5.9e-16}  # 2^-24 eps is 5.96e-16
    assert stalls(6.0e-16, [ADAM], F32, 2, {}) == {}
    assert stalls(1.2e-24, [ADAM], F64, 2, {}) == {}
    assert stalls(1.1e-24, [ADAM], F64, 2, {}) == {"gradient_below_eps": 1.1e-24}


def test_a_square_that_is_nothing():
    found = stalls(1e-20, [ADAM], F32, 1, {})
    assert found == {"gradient_below_eps": 1e-20, "second_moment_underflow": 1e-20}
    assert "second_moment_underflow" not in stalls(1e-20, [ADAM], F64, 1, {})
    large = [{**ADAM, "eps": 1e-30}]
    assert stalls(3.3e-18, large, F32, 1, {}) == {"second_moment_underflow": 3.3e-18}  # 1e-3 g^2 < 1.18e-38
    assert stalls(3.5e-18, large, F32, 1, {}) == {}


def test_what_is_not_known_is_not_told():
    assert stalls(1e-20, [{**ADAM, "wd": 0.1}], F32, 1, {}) == {}  # the parameters are in the gradient
    assert stalls(1e-20, [{"sign": 1.0, "step_size": 0.1}], F32, 1, {}) == {}  # no eps: SGD, Lion
    assert stalls(1e-20, [{**ADAM, "rect": 0.0}], F32, 1, {}) == {}  # RAdam before it rectifies
    assert stalls(1e-20, [], F32, 1, {}) == {}
    assert stalls(1e-12, [ADAM, {**ADAM, "eps": 1e-15}], F64, 1, {}) == {}  # some tensors move


def test_the_gradient_is_the_scaled_one():
    assert stalls(1e-20, [{**ADAM, "sign": -1e20}], F32, 1, {}) == {}
    assert stalls(1.0, [{**ADAM, "clip": 1e-12}], F64, 1, {}) == {"gradient_below_eps": 1e-12}


@pytest.mark.parametrize(("size", "dtype"), [(1e-12, "float64"), (1e-14, "float32"), (1e-20, "float32")])
def test_the_remedy_helps(size, dtype):
    """With eps as it is 100 steps go nowhere; with the one that is told they go where Adam's lr says."""
    moved, kind = [], np.dtype(dtype)
    found = stalls(size, [ADAM], kind, 1, {})
    assert found
    for eps in (1e-8, remedy(found, kind)):
        settings = parse_settings({"name": "adam", "lr": 0.01, "eps": eps})
        state = State.fresh(np.ones(4, kind), 1, settings)
        for _ in range(100):
            updates = plan(settings, ["w"], state.counts, [True], kind, state.carried)
            apply(state, np.full(4, size, kind), updates, [0, 4], None, FusedKernel())
        moved.append(float(1 - state.params[0]))
    assert moved[0] < 0.01
    assert 0.3 < moved[1] < 3.0


def test_where_no_eps_helps_a_scale_does():
    tiny = {"gradient_below_eps": 1e-38}
    assert remedy(tiny, F32) is None
    assert "gradient_scale=1e+38 would help" in told("gradient_below_eps", tiny, F32)
    small = {"gradient_below_eps": 1.1e-12}
    assert "eps=1e-15 would help, or gradient_scale=1e+12" in told("gradient_below_eps", small, F64)
    both = {"gradient_below_eps": 1.1e-20, "second_moment_underflow": 1.1e-20}
    assert "far below eps" in told("gradient_below_eps", both, F32)
    assert all("eps=1e-19 would help" in told(name, both, F32) for name in both)


@pytest.mark.parametrize("wire", ["float16", "bfloat16", "float32", "float64"])
def test_the_scan_tells_the_largest_magnitude(wire):
    stored = {"bfloat16": np.uint16}.get(wire, wire)
    session = np.dtype("float64" if wire == "float64" else "float32")
    values = np.zeros(20_000, np.float32)
    for place, value in [(0, -0.5), (4095, 1.0), (4096, -2.0), (19_999, -3.0)]:
        values[place] = value
        given = (values.view(np.uint32) >> 16).astype(np.uint16) if wire == "bfloat16" else values.astype(stored)
        found = scan_gradient(given, wire, session)
        assert found.bad == -1
        assert magnitude(found.largest, wire) == abs(value)


def test_a_gradient_that_arrives_in_pieces_tells_it_too():
    body = np.array([1.0, -3.0, 2.0, 0.0], np.float32).view(np.uint8)
    raw = encoded("raw", "float32", body, 4, F32)
    for end in (4, 8, 16):
        raw.check(end)
    assert raw.largest == 3.0
    sparse = np.concatenate(
        [np.array([1, 3], np.uint32).view(np.uint8), np.array([-5.0, 2.0], np.float32).view(np.uint8)]
    )
    for kind in ("sparse", "sparse-lazy"):
        given = encoded(kind, "float32", sparse, 4, F32)
        given.check(sparse.nbytes)
        assert given.largest == 5.0
    assert encoded("int8", "float32", np.zeros(260, np.uint8), 256, F32).largest is None
