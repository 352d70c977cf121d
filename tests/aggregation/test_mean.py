"""The mean by hand, its weights, and what contributions may be: views, sent bodies, parts of the layout."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from made import F32, F64, aggregated, hard, settings

from adamd.wire import encodings
from adamd_service.aggregation import (
    ArrayValues,
    Contribution,
    PartialValues,
    SentValues,
    Span,
    aggregate_round,
)
from adamd_service.optim import Raw, encoded


def test_the_mean_is_the_exact_one_rounded_once():
    """Integers keep the float64 sums exact, so the float32 mean has one right answer, by fractions."""
    rng = np.random.default_rng(1)
    values = rng.integers(-(2**20), 2**20, (5, 999))
    weights = [5.0, 40.0, 11.0, 1.0, 300.0]
    sent = [Contribution(f"c{i}", row.astype(F32), w) for i, (row, w) in enumerate(zip(values, weights, strict=True))]
    found, _ = aggregated(sent)
    for j in range(999):
        exact = sum(Fraction(int(w)) * int(x) for w, x in zip(weights, values[:, j], strict=True)) / int(sum(weights))
        assert found[j] == np.float32(float(exact))


def test_equal_ones_have_themselves_as_their_mean():
    same = hard(5000, F32, 0)
    found, _ = aggregated([Contribution(f"c{i}", same, 1.0 + i) for i in range(7)])
    assert found.tobytes() == same.tobytes()


def test_weights():
    given = [Contribution("a", np.array([1.0]), 1.0), Contribution("b", np.array([5.0]), 3.0)]
    assert aggregated(given)[0] == [4.0]
    assert aggregated(given, settings(2, weighting="equal"))[0] == [3.0]
    found, outcome = aggregated(given, settings(2, max_weight=1))
    assert found == [3.0]
    assert [member.weight for member in outcome.members] == [1.0, 1.0]
    huge = [Contribution("a", np.array([1e150]), 1e308), Contribution("b", np.array([1e150]), 1e308)]
    assert aggregated(huge)[0] == [1e150]


def test_a_stale_one_is_scaled_and_keeps_its_weight_in_the_divisor():
    """FedBuff's algorithm 1 divides by K: a round of equally stale ones is a smaller step than one of fresh ones."""
    made = settings(2, staleness="polynomial", weighting="equal")
    given = [Contribution("a", np.array([8.0]), 1, 3), Contribution("b", np.array([4.0]), 1, 0)]
    found, outcome = aggregated(given, made)
    assert found == [(8 / 2 + 4) / 2]
    assert [member.weight for member in outcome.members] == [0.5, 1.0]
    stale = [Contribution(name, np.array([8.0]), 1, 3) for name in "ab"]
    assert aggregated(stale, made)[0] == [4.0]


def test_too_stale_ones_do_not_count():
    given = [Contribution("a", np.array([8.0]), 1, 3), Contribution("b", np.array([4.0]), 1, 2)]
    found, outcome = aggregated(given, settings(2, max_staleness=2))
    assert found == [4.0]
    assert [(member.counted, member.reason, member.weight) for member in outcome.members] == [
        (False, "too_stale", 0.0),
        (True, None, 1.0),
    ]
    assert outcome.members[0].norm == 8.0


def test_nobody_counts():
    found, outcome = aggregated([Contribution("a", np.array([8.0]), 1, 3)], settings(1, max_staleness=2))
    assert found == [0.0]
    assert not any(member.counted for member in outcome.members)


def sent_body(kind, dtype, size):
    """A body in some encoding, decoded, and the same as an `Encoded`."""
    rng = np.random.default_rng(size)
    if kind == "int8":
        quantized = rng.integers(-128, 128, size).astype(np.int8)
        scales = rng.random(encodings.scales_of(size)).astype("<f4")
        body = np.frombuffer(scales.tobytes() + quantized.tobytes(), np.uint8)
        dense = np.repeat(scales, encodings.BLOCK)[:size] * quantized.astype(np.float32)
        return dense.astype(dtype), encoded(encodings.INT8, "float32", body, size, dtype)
    dense = rng.standard_normal(size).astype(kind)
    return dense.astype(dtype), Raw.of(dense, dtype)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("sent", ["float16", "float32", "int8"])
@pytest.mark.parametrize("kind", ["delta", "parameters", "gradient"])
def test_a_body_is_read_as_a_pseudo_gradient(kind, sent, dtype):
    size = 70_001
    dense, body = sent_body(sent, dtype, size)
    pulled = hard(size, dtype, 5)
    wanted = {"delta": -dense, "gradient": dense, "parameters": pulled - dense}[kind]
    values = SentValues(body, kind, pulled if kind == "parameters" else None)
    into = np.empty(size, dtype)
    for start, stop in [(0, size), (1, 2), (4096, 65_537), (size - 1, size)]:
        assert (values.read(start, stop, into) == wanted[start:stop]).all()
    out = np.empty(size, dtype)
    aggregate_round([Contribution("a", values)], settings(1), out)
    assert (out == wanted).all()


LAYOUT = [Span(0, 3), Span(3, 70_000), Span(70_000, 70_004)]  # tensors
SIZE = 70_004


def partial(name, places, seed, weight=1.0, joined=True):
    """A contribution with some tensors of the layout: what was sent, joined; and dense, with NaN where nothing is."""
    spans = tuple(LAYOUT[place] for place in places)
    sent = hard(sum(stop - start for start, stop in spans), F64, seed)
    dense = np.full(SIZE, np.nan)
    dense[np.concatenate([np.arange(*span) for span in spans])] = sent
    return Contribution(name, PartialValues(ArrayValues(sent), spans), weight, present=spans), dense


def aggregate_of(given, made):
    out = np.full(SIZE, np.nan)
    return out, aggregate_round(given, made, out)


def test_what_is_left_out_is_the_mean_of_those_who_have_it():
    given, dense = zip(partial("a", [0, 1], 0, 2.0), partial("b", [1, 2], 1, 3.0), partial("c", [1], 2), strict=True)
    out, outcome = aggregate_of(given, settings(3))
    a, b, c = dense
    assert (out[:3] == a[:3]).all() and (out[70_000:] == b[70_000:]).all()
    np.testing.assert_allclose(out[3:70_000], ((2 * a + 3 * b + c) / 6)[3:70_000], rtol=1e-12)
    norms = [float(np.sqrt(np.nansum(values**2))) for values in dense]
    assert [member.norm for member in outcome.members] == pytest.approx(norms, rel=1e-12)


def test_what_nobody_has_is_zero():
    out, _ = aggregate_of([partial("a", [0], 0)[0], partial("b", [0, 2], 1)[0]], settings(2))
    assert (out[3:70_000] == 0).all() and (out[:3] != 0).all()


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_ranks_are_among_those_who_have_it(name):
    made = settings(5, aggregate=name)
    given, dense = zip(*[partial(chr(97 + i), [1] if i % 2 else [0, 1], i) for i in range(5)], strict=True)
    out, _ = aggregate_of(given, made)
    three, five = np.array([d[:3] for d in dense[::2]]), np.sort([d[3:70_000] for d in dense], axis=0)
    if name == "median":
        assert (out[:3] == np.median(three, axis=0)).all() and (out[3:70_000] == five[2]).all()
    else:  # a trim of 0.2 cuts none of three, and one of five
        np.testing.assert_allclose(out[:3], three.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(out[3:70_000], five[1:4].mean(axis=0), rtol=1e-9)


def test_in_a_private_sum_what_is_left_out_is_zero():
    """The divisor is the quorum for every element: who left something out is not told."""
    made = settings(2, privacy={"noise_multiplier": 1e-6, "clip_norm": 1e15, "delta": 1e-5})
    given, dense = zip(partial("a", [0, 1], 0), partial("b", [1], 1), strict=True)
    out = np.full(SIZE, np.nan)
    outcome = aggregate_round(given, made, out, noise_seed=bytes(32))
    assert not any(member.clipped for member in outcome.members)
    noise = np.full(SIZE, np.nan)
    aggregate_round(given[1:], made, noise, noise_seed=bytes(32))  # b has none of the first three elements
    np.testing.assert_allclose((out - noise)[:3], dense[0][:3] / 2, rtol=0, atol=8)


def test_the_noise_does_not_tell_what_is_left_out():
    """A partial contribution and one with zeros have the same bits: the noise belongs to fixed slices."""
    made = settings(2, privacy={"noise_multiplier": 0.5, "clip_norm": 1e9, "delta": 1e-5})
    given, dense = partial("a", [0, 2], 0)
    out, zeros = np.full(SIZE, np.nan), Contribution("a", np.nan_to_num(dense))
    aggregate_round([given], made, out, noise_seed=bytes(32))
    assert out.tobytes() == aggregated([zeros], made, noise_seed=bytes(32))[0].tobytes()


def test_a_read_only_view_that_is_not_aligned_is_taken():
    values = hard(5000, F32, 1)
    body = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(F32)
    assert not body.flags.aligned
    assert aggregated([Contribution("a", body)])[0].tobytes() == values.tobytes()
    strided = np.repeat(values, 2)[::2]
    assert aggregated([Contribution("a", strided)])[0].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", ["mean", "median", "geometric_median"])
def test_many_clients_take_the_memory_of_two_vectors(name):
    """Each is read slice by slice; nothing grows with the number of clients but what a slice of all of them takes."""
    size, count = 1_000_000, 60

    class Made:
        def __init__(self, seed):
            self.seed = seed

        def read(self, start, stop, into):
            into[: stop - start] = self.seed
            return into[: stop - start]

    out = np.empty(size, F32)
    raw = {"name": name, "iterations": 1} if name == "geometric_median" else name
    sent, chosen = [Contribution(f"{i:02}", Made(i)) for i in range(count)], settings(count, aggregate=raw)
    aggregate_round(sent, chosen, out)  # compiled
    tracemalloc.start()
    try:
        aggregate_round(sent, chosen, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (out.nbytes if name != "geometric_median" else 17 << 20)
