"""Encodings and rounded answers through every shell, over real servers; and digits trained with them."""

from types import SimpleNamespace

import numpy as np
import pytest

import adamd
from adamd.demo import digits
from adamd.errors import InvalidRequest, StepConflict, WrongDtype
from adamd.wire.dtypes import narrow, widen
from sdk.peers import Relay
from sdk.test_sdk_encodings import LOSSY, encoder, meaning


@pytest.mark.parametrize("encoding", LOSSY, ids=str)
def test_a_session_sends_what_the_encoder_says(client, encoding):
    """Beside a session that is sent, raw, what each body means: the same parameters, bit for bit."""
    rng, size = np.random.default_rng(4), 5000
    start = rng.standard_normal(size).astype(np.float32)
    one, other = client.create(start, lr=0.05, encoding=encoding), client.create(start, lr=0.05)
    beside = encoder(encoding)
    assert (one.encoding, one.error_feedback, one.answer_dtype) == (encoding, True, None)
    for _ in range(4):
        gradient = rng.standard_normal(size).astype(np.float32)
        written = beside.write(gradient, one.layout, "float32")
        beside.sent(written)
        assert one.step(gradient).tobytes() == other.step(meaning(written.body, size)).tobytes()


def test_encodings_change_between_steps_and_bad_gradients_are_skipped(client):
    session = client.create(np.zeros(300, np.float32), encoding="int8", on_bad_gradient="skip")
    gradient = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    session.step(gradient)
    left = session._track.encoder._residual.copy()
    for bad in (np.full(300, np.nan, np.float32), np.full(300, 1e38, np.float32)):  # refused here, refused there
        session.step(bad)
        assert session._track.encoder._residual.tobytes() == left.tobytes()
    assert (session.skipped, session.step_number) == (2, 1)
    session.encoding = adamd.TopK(0.5)
    session.step(gradient)
    with pytest.raises(InvalidRequest):
        session.encoding = "int3"
    session.refresh()
    assert session._track.encoder._residual is None  # it belongs to a history


def test_a_conflict_leaves_what_was_left(client):
    one = client.create(np.zeros(300, np.float32), encoding="int8")
    gradient = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    one.step(gradient)
    left = one._track.encoder._residual
    client.session(one.id).step(gradient)
    with pytest.raises(StepConflict):
        one.step(-gradient)
    assert one._track.encoder._residual is left


@pytest.mark.parametrize("encoding", LOSSY, ids=str)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_step_whose_answer_was_lost_sends_the_same_bytes_and_moves_on_once(
    client, connect, kind, server, encoding, direction
):
    """Wherever the connection is cut, parameters and what is left are those of a session that met no trouble."""
    rng, size = np.random.default_rng(8), 300
    gradients = rng.standard_normal((4, size)).astype(np.float32)
    session, twin = (client.create(np.zeros(size, np.float32), encoding=encoding) for _ in range(2))
    wanted = [twin.step(gradient).tobytes() for gradient in gradients]
    limits = [0, 100, 600, 1000, 2000]

    def cut(number):
        limit = limits[number] if number < len(limits) else None
        return (limit, None, False) if direction == "up" else (None, limit, False)

    with Relay(server.grpc_port if kind.startswith("grpc") else server.port, cut) as relay:
        at = SimpleNamespace(port=relay.port, grpc_port=relay.port)
        same = connect(at, timeout=adamd.Timeout(total=30, first=2)).session(session.id, encoding=encoding)
        assert [same.step(gradient).tobytes() for gradient in gradients] == wanted
        assert relay.connections > 3
    assert same._track.encoder._residual.tobytes() == twin._track.encoder._residual.tobytes()
    assert session.info()["step"] == 4


def test_what_was_left_does_not_count_twice_where_an_answer_is_lost_for_good(client, connect, kind, server):
    rng, size = np.random.default_rng(9), 3000
    gradients = rng.standard_normal((2, size)).astype(np.float32)
    session = client.create(np.zeros(size, np.float32), encoding="raw")
    lossy = []

    def cut(number):
        return (None, 100 if lossy else None, False)

    with Relay(server.grpc_port if kind.startswith("grpc") else server.port, cut) as relay:
        at = SimpleNamespace(port=relay.port, grpc_port=relay.port)
        same = connect(at, timeout=adamd.Timeout(total=3)).session(session.id, encoding=adamd.TopK(0.1))
        same.step(gradients[0])
        assert same._track.encoder._residual.any()
        lossy.append(True)
        relay.drop()
        with pytest.raises(adamd.RetriesExhausted):
            same.step(gradients[1])
        assert session.info()["step"] == 2  # it counts, and with it what was left
        lossy.clear()
        with pytest.raises(StepConflict):  # with the very gradient whose answer was lost
            same.step(-gradients[1])
        same.parameters()
        assert same.step_number == 2 and same._track.encoder._residual is None


def test_sparse_steps_and_lazy_ones(client):
    start = {"e": np.ones((50, 4), np.float32), "w": np.ones(3, np.float32)}
    dense, sparse, lazy = (client.create(start, lr=0.1, encoding="int8") for _ in range(3))
    rows, values = np.array([7, 2]), np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    whole = {"e": np.zeros((50, 4), np.float32), "w": np.zeros(3, np.float32)}
    whole["e"][rows] = values
    dense.encoding = "raw"
    wanted = dense.step(whole)
    got = sparse.step({"e": adamd.Sparse(rows, values), "w": adamd.Sparse([], [])})
    assert all(got[name].tobytes() == wanted[name].tobytes() for name in wanted)
    for _ in range(3):
        got = lazy.step({"e": adamd.Sparse(rows, values, lazy=True)})
    assert (got["w"] == 1).all() and (np.delete(got["e"], rows, axis=0) == 1).all()
    assert (got["e"][rows] != 1).all()


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [
        ("float32", "float16"),
        ("float32", "bfloat16"),
        ("float64", "float32"),
        ("float64", "bfloat16"),
        ("float32", "float32"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_answers_come_rounded(client, dtype, answer, named):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(1000).astype(dtype)
    given = {"a": start[:400].reshape(20, 20), "b": start[400:]} if named else start
    exact, session = client.create(given), client.create(given, answer_dtype=answer)
    kept = np.dtype("float32" if answer == "bfloat16" else answer)
    gradient = {n: np.ones_like(a) for n, a in given.items()} if named else np.ones_like(given)

    def rounded(array):
        if answer != "bfloat16":
            return array.astype(kept)
        bits = np.empty(array.shape, "<u2")
        narrow(array, "bfloat16", bits)
        return widen(bits, "bfloat16", "float32")

    def same(got, wanted):
        pairs = [(got[n], wanted[n]) for n in wanted] if named else [(got, wanted)]
        for mine, theirs in pairs:
            assert mine.dtype == kept and mine.shape == theirs.shape
            assert mine.tobytes() == rounded(theirs).tobytes()

    first = session.step(gradient)
    same(first, exact.step(gradient))
    again = session.step(gradient, out=first)
    assert again is first
    same(again, exact.step(gradient))
    same(session.parameters(), exact.parameters())
    session.answer_dtype = None
    assert np.asarray(session.parameters()["b"] if named else session.parameters()).dtype == dtype


def test_an_answer_that_overflows_says_so(client):
    session = client.create(np.array([1e5, 1.0, -1e5], np.float32), answer_dtype="float16")
    with pytest.warns(RuntimeWarning, match="2 parameters of session"):
        got = session.step(np.ones(3, np.float32))
    assert np.isinf(got[[0, 2]]).all() and np.isfinite(got[1]) and session.step_number == 1
    assert not session.diverged
    session.answer_dtype = None
    assert np.isfinite(session.parameters()).all()


@pytest.mark.parametrize("wrong", ["float64", "int8", "half"])
def test_an_answer_is_rounded_to_what_there_is(client, wrong):
    with pytest.raises(WrongDtype):
        client.create(np.zeros(3, np.float32), answer_dtype=wrong)
    with pytest.raises(WrongDtype):
        client.create(np.zeros(3, np.float32)).answer_dtype = wrong


@pytest.fixture
def http(server):
    with adamd.connect(server.url) as one:
        yield one


def trained(client, epochs=40, **options):
    train, test = digits.load()
    start = {name: array.astype(np.float32) for name, array in digits.start().items()}
    session = client.create(start, lr=0.003, durability="memory", **options)
    params = start
    for batch in digits.batches(train, epochs):
        loss, gradient = digits.loss_and_gradient(params, train, batch)
        params = session.step({name: array.astype(np.float32) for name, array in gradient.items()}, loss=loss)
    session.delete(anyway=True)
    return 100 * digits.right(params, test) / len(test)


@pytest.mark.slow
def test_digits_with_int8_and_error_feedback_are_read_as_well(http, capsys):
    """The acceptance: within 0.5 points of float32's accuracy. The data, the network and the batches are the demo's."""
    exact = trained(http)
    found = {str(encoding): trained(http, encoding=encoding) for encoding in ("int8", "bfloat16", adamd.TopK(0.1))}
    with capsys.disabled():
        print(f"\ndigits read right: float32 {exact:.2f} %, " + ", ".join(f"{n} {v:.2f} %" for n, v in found.items()))
    assert exact > 95
    assert abs(found["int8"] - exact) <= 0.5
    assert abs(found["bfloat16"] - exact) <= 0.5
    assert abs(found["TopK(fraction=0.1)"] - exact) <= 1.0
