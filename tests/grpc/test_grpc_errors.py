"""Errors: one status for each class, the whole problem in the details, and nothing changed by what is refused."""

import inspect
import tracemalloc

import grpc
import numpy as np
import pytest
from calling import F4, Caller, refused, whole
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from adamd import errors
from adamd.errors import WrongLayout
from adamd.wire import channel
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.grpc import messages
from adamd_service.grpc.status import LONGEST, STATUS, rich, status_of

S = grpc.StatusCode
ONES = np.ones(4, "<f4")


def test_every_error_of_the_tree_has_its_status():
    """By its own class or by a base that says the same of all; and HTTP's statuses agree with gRPC's."""
    wanted = {
        400: {S.INVALID_ARGUMENT},
        404: {S.NOT_FOUND},
        406: {S.INVALID_ARGUMENT},
        408: {S.DEADLINE_EXCEEDED},
        409: {S.ALREADY_EXISTS, S.FAILED_PRECONDITION, S.ABORTED},
        410: {S.NOT_FOUND},
        411: {S.INVALID_ARGUMENT},
        412: {S.FAILED_PRECONDITION},
        413: {S.RESOURCE_EXHAUSTED},
        415: {S.INVALID_ARGUMENT},
        403: {S.PERMISSION_DENIED},
        421: {S.FAILED_PRECONDITION, S.PERMISSION_DENIED},
        422: {S.INVALID_ARGUMENT},
        429: {S.RESOURCE_EXHAUSTED},
        500: {S.INTERNAL, S.DATA_LOSS},
        503: {S.UNAVAILABLE, S.RESOURCE_EXHAUSTED},
        0: {S.UNAVAILABLE},
    }
    tree = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.AdamdError)]
    assert len(tree) > 30 and set(errors.CODES.values()) >= {c for c in tree if "code" in c.__dict__} - {
        errors.AdamdError
    }
    for kind in tree:
        if kind is not errors.AdamdError:
            assert any(base in STATUS for base in kind.__mro__ if base is not errors.AdamdError), kind
        assert status_of(kind("x")) in wanted[kind.status], kind


@pytest.mark.parametrize("words", ["x" * 100_000, "猫" * 100_000, '"\\\n\x00' * 10_000, "\ud800"])
def test_an_error_of_any_length_fits_into_the_headers(words):
    status = rich(errors.Busy(words, retry_after=0.25, step=3))
    assert len(status.message.encode()) <= LONGEST + 3 and len(status.SerializeToString()) < 4 * LONGEST + 1000


def test_a_refusal_says_what_and_where_over_the_wire(caller):
    session = caller.create(4, layout=pb.Layout(tensors=[pb.Tensor(name="猫" * 200, shape=[4])]))
    before = caller.standing(session)
    error = refused(lambda: caller.step(session, 1, np.ones(3, "<f4")), S.INVALID_ARGUMENT, "wrong_length")
    assert "12 bytes" in error.detail and "16 bytes" in error.detail and error.step == 0
    error = refused(
        lambda: caller.step(session, 1, np.array([1, np.nan, 1, 1], "<f4")), S.INVALID_ARGUMENT, "bad_gradient"
    )
    assert error.extra["index"] == 1
    error = refused(lambda: caller.step(session, 1, ONES, tensors=["犬" * 5000]), S.INVALID_ARGUMENT, "wrong_layout")
    assert "犬" in error.detail
    assert caller.standing(session) == before


def struct(**values):
    made = Struct()
    made.update(values)
    return made


BAD = {
    "no header": (lambda c, s: c("Step", gradient=ONES.tobytes()), "invalid_request"),
    "another length": (lambda c, s: c.step(s, 1, ONES, nbytes=15), "invalid_request"),
    "too short": (lambda c, s: c.step(s, 1, ONES[:3]), "wrong_length"),
    "too long": (lambda c, s: c.step(s, 1, np.ones(5, "<f4")), "wrong_length"),
    "a wider dtype": (lambda c, s: c.step(s, 1, np.ones(4, "<f8"), dtype=pb.DTYPE_FLOAT64), "wrong_dtype"),
    "an unknown dtype": (lambda c, s: c.step(s, 1, ONES, dtype=77), "invalid_request"),
    "an unknown encoding": (lambda c, s: c.step(s, 1, ONES, encoding=77), "invalid_request"),
    "a chain that is none": (lambda c, s: c.step(s, 1, ONES, if_match="abc"), "invalid_request"),
    "a long key": (lambda c, s: c.step(s, 1, ONES, idempotency_key="k" * 256), "invalid_request"),
    "a key with a line's end": (lambda c, s: c.step(s, 1, ONES, idempotency_key="a\nb"), "invalid_request"),
    "a step beyond 2^53": (lambda c, s: c.step(s, 2**53 + 1, ONES), "invalid_request"),
    "an unknown tensor": (lambda c, s: c.step(s, 1, ONES, tensors=["w"]), "wrong_layout"),
    "a tensor twice": (lambda c, s: c.step(s, 1, ONES, tensors=["parameters"] * 2), "wrong_layout"),
    "an unknown setting": (lambda c, s: c.step(s, 1, ONES, settings=struct(learning=1)), "invalid_settings"),
    "a setting that is NaN": (lambda c, s: c.step(s, 1, ONES, settings=struct(lr=float("nan"))), "invalid_settings"),
    "a negative lr": (lambda c, s: c.step(s, 1, ONES, settings=struct(lr=-1)), "invalid_settings"),
    "a metric that is NaN": (lambda c, s: c.step(s, 1, ONES, metrics={"loss": float("nan")}), "invalid_request"),
    "too many metrics": (lambda c, s: c.step(s, 1, ONES, metrics={str(i): 1 for i in range(65)}), "invalid_request"),
    "infinity": (lambda c, s: c.step(s, 1, np.full(4, np.inf, "<f4")), "bad_gradient"),
    "a square that overflows": (lambda c, s: c.step(s, 1, np.full(4, 1e30, "<f4")), "bad_gradient"),
    "labels too long": (
        lambda c, s: c("UpdateSession", session=s, labels=pb.Labels(labels={"a": "b" * 2000})),
        "invalid_request",
    ),
    "parameters too short": (lambda c, s: c.set_parameters(s, ONES.tobytes()[:-1]), "wrong_length"),
    "parameters that are NaN": (lambda c, s: c.set_parameters(s, np.full(4, np.nan, "<f4").tobytes()), "invalid_state"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_and_changes_nothing(caller, bad):
    call, code = BAD[bad]
    session = caller.create()
    before = caller.standing(session)
    refused(lambda: call(caller, session), S.INVALID_ARGUMENT, code)
    assert caller.standing(session) == before


CREATIONS = {
    "no layout": ({"dtype": F4}, "invalid_request"),
    "no dtype": ({"layout": pb.Layout(tensors=[pb.Tensor(name="a", shape=[2])])}, "invalid_request"),
    "half precision": ({"layout": pb.Layout(), "dtype": pb.DTYPE_FLOAT16}, "invalid_request"),
    "a name that could be an id": ({"layout": pb.Layout(), "dtype": F4, "name": "s_run"}, "invalid_request"),
    "an unknown durability": ({"layout": pb.Layout(), "dtype": F4, "durability": 9}, "invalid_request"),
    "two names alike": (
        {"layout": pb.Layout(tensors=[pb.Tensor(name="a"), pb.Tensor(name="a")]), "dtype": F4},
        "wrong_layout",
    ),
    "an unprintable name": ({"layout": pb.Layout(tensors=[pb.Tensor(name="\n")]), "dtype": F4}, "wrong_layout"),
    "2^64 elements": (
        {"layout": pb.Layout(tensors=[pb.Tensor(name="a", shape=[2**32, 2**32])]), "dtype": F4},
        "wrong_layout",
    ),
    "no tensors": ({"layout": pb.Layout(), "dtype": F4}, "wrong_layout"),
    "an unknown optimizer": (
        {"layout": pb.Layout(tensors=[pb.Tensor(name="a")]), "dtype": F4, "optimizer": struct(name="sgd2")},
        "invalid_settings",
    ),
    "parameters of another length": (
        {"layout": pb.Layout(tensors=[pb.Tensor(name="a", shape=[2])]), "dtype": F4, "parameters": b"1234"},
        "wrong_length",
    ),
    "parameters to be rounded": (
        {
            "layout": pb.Layout(tensors=[pb.Tensor(name="a", shape=[1])]),
            "dtype": F4,
            "parameters": b"12345678",
            "parameters_dtype": pb.DTYPE_FLOAT64,
        },
        "wrong_dtype",
    ),
}


@pytest.mark.parametrize("bad", CREATIONS)
def test_bad_creations_are_refused(caller, bad):
    fields, code = CREATIONS[bad]
    refused(lambda: caller("CreateSession", **fields), S.INVALID_ARGUMENT, code)


def test_small_bytes_that_would_be_many_objects_are_refused_by_their_number(caller):
    """A list of a million empty lists is 4 MB on the wire; unfolded, it held the event loop for seconds."""
    session = caller.create()
    before = caller.standing(session)
    bomb = struct(lr=[])
    bomb.fields["lr"].list_value.values.extend([Value(list_value=ListValue())] * 500_000)
    layout, labels = pb.Layout(tensors=[pb.Tensor()] * 100_000), {str(i): "" for i in range(10_000)}
    fields = {"layout": layout, "dtype": F4}
    calls = [
        (
            lambda: caller.step(session, 1, ONES, settings=bomb),
            "invalid_settings",
            f"{bomb.ByteSize()} bytes; at most 1048576",
        ),
        (
            lambda: caller("UpdateSession", session=session, optimizer=bomb),
            "invalid_settings",
            f"{bomb.ByteSize()} bytes",
        ),
        (lambda: caller("CreateSession", **fields, optimizer=bomb), "invalid_settings", f"{bomb.ByteSize()} bytes"),
        (lambda: caller("CreateSession", **fields), "wrong_layout", "100000 tensors; at most 16384"),
        (lambda: caller("CreateSession", **fields, labels=labels), "invalid_request", "labels: 10000; at most 64"),
        (
            lambda: caller("UpdateSession", session=session, labels=pb.Labels(labels=labels)),
            "invalid_request",
            "labels: 10000; at most 64",
        ),
    ]
    for call, code, words in calls:
        assert words in refused(call, S.INVALID_ARGUMENT, code).detail
    assert caller.standing(session) == before
    tracemalloc.start()
    try:
        with pytest.raises(WrongLayout):
            messages.layout(layout)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_setting_nested_without_end_is_refused(caller):
    session = caller.create()

    def field(number, data):
        length = bytes((len(data) & 0x7F | 0x80, len(data) >> 7))
        return bytes((number << 3 | 2,)) + length + data

    deep = b""
    for _ in range(500):  # {"a": {"a": …}}: a Struct's map, its entry, its value
        deep = field(1, field(1, b"a") + field(2, field(5, deep)))
    header = pb.StepHeader(session=session, step=1).SerializeToString() + field(9, deep)
    call = caller.channel.unary_unary(caller.path("Step"))
    message = field(1, header) + field(2, ONES.tobytes())
    refused(lambda: call(message, timeout=20), S.INVALID_ARGUMENT, "malformed_body")
    assert caller("GetSession", session=session).session.step == 0


@pytest.mark.parametrize("ref", ["", "A", "s_" + "x" * 80, "nobody", "m_x", "s_none", "../etc", "猫"])
def test_a_session_that_is_none_is_not_found(caller, ref):
    refused(lambda: caller.step(ref, 1, ONES), S.NOT_FOUND, "unknown_session")
    refused(lambda: caller("GetSession", session=ref), S.NOT_FOUND, "unknown_session")
    refused(lambda: caller.parameters(ref), S.NOT_FOUND, "unknown_session")
    refused(lambda: whole(caller.received("ExportState", session=ref)), S.NOT_FOUND, "unknown_session")
    refused(lambda: caller("DeleteSession", session=ref), S.NOT_FOUND, "unknown_session")


@pytest.mark.parametrize("durability", [1, 2])
def test_the_numbers_of_steps_are_kept(caller, durability):
    session = caller.create(durability=durability)
    chains = [caller("GetSession", session=session).session.chain]
    for n in (1, 2, 3):
        chains.append(caller.step(session, n, n * ONES, if_match=chains[-1]).standing.chain)
    gap = refused(lambda: caller.step(session, 5, ONES), S.FAILED_PRECONDITION, "step_gap")
    assert gap.step == 3
    conflict = refused(lambda: caller.step(session, 3, ONES), S.ABORTED, "step_conflict")
    assert conflict.step == 3 and "4" in conflict.detail
    for gradient, applied in ((2 * ONES, True), (9 * ONES, False)):
        late = refused(lambda g=gradient: caller.step(session, 2, g), S.ABORTED, "step_superseded")
        assert late.step == 3 and late.extra["applied"] is applied
    lost = refused(lambda: caller.step(session, 4, ONES, if_match=chains[0]), S.FAILED_PRECONDITION, "history_lost")
    assert lost.step == 3
    assert caller.step(session, 3, 3 * ONES, if_match=chains[2]).standing.replayed


def test_a_refused_step_ends_the_stream_after_the_answers_before_it(caller):
    session = caller.create(200_000)
    gradient = np.ones(200_000, "<f4")
    stream = caller.stream()
    for n in (1, 2, 7, 3):
        stream.begin(session, n, gradient)
    assert [stream.answer()[0].step for _ in range(2)] == [1, 2]
    error = refused(stream.answer, S.FAILED_PRECONDITION, "step_gap")
    assert error.step == 2
    assert caller("GetSession", session=session).session.step == 2, "nothing after the refused step counts"


def test_what_no_single_message_can_answer_is_refused_before_it_is_applied(caller):
    size = channel.UNARY // 4 + 1
    session = caller.create(size)
    error = refused(lambda: caller.step(session, 1, np.ones(size, "<f2"), dtype=1), S.RESOURCE_EXHAUSTED, "too_large")
    assert "StepStream" in error.detail and caller("GetSession", session=session).session.step == 0
    assert caller.step(session, 1, np.ones(size, "<f2"), dtype=1, minimal=True).standing.step == 1
    exactly = caller.create(size - 1)
    assert len(caller.step(exactly, 1, np.ones(size - 1, "<f4")).parameters) == channel.UNARY


def test_a_message_beyond_the_limit_is_refused_by_its_length(grpc_server):
    wide = Caller(grpc_server, options=[("grpc.max_send_message_length", -1)])
    session = wide.create()
    with pytest.raises(grpc.RpcError) as error:
        wide.step(session, 1, bytes(channel.MAX_MESSAGE + 1))
    assert error.value.code() == S.RESOURCE_EXHAUSTED
    assert wide("GetSession", session=session).session.step == 0
    wide.close()


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xff", b"\x0a" + b"\xff" * 9 + b"\x7f", b"\x0b"])
@pytest.mark.parametrize(
    "name", ["GetSession", "Step", "StepStream", "SetParameters", "RestoreSession", "WatchSession"]
)
def test_what_is_no_message_is_an_invalid_argument(caller, name, raw):
    kinds = {"StepStream": "stream_stream", "SetParameters": "stream_unary", "RestoreSession": "stream_unary"}
    kind = kinds.get(name, "unary_stream" if name == "WatchSession" else "unary_unary")
    call = getattr(caller.channel, kind)(caller.path(name))
    given = iter([raw]) if kind.startswith("stream") else raw
    refused(
        lambda: list(call(given, timeout=20)) if kind.endswith("stream") else call(given, timeout=20),
        S.INVALID_ARGUMENT,
        "malformed_body",
    )


def test_a_method_that_is_none_is_unimplemented(caller):
    with pytest.raises(grpc.RpcError) as error:
        caller.channel.unary_unary(caller.path("Nothing"))(b"", timeout=10)
    assert error.value.code() == S.UNIMPLEMENTED
