"""Every method of the service over a real socket, with protobuf's own messages."""

import http.client
import json

import grpc
import numpy as np
import pytest
from calling import F4, MIB, Caller, refused, whole
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adamd.wire import channel
from adamd.wire.v1 import adamd_pb2 as pb

S = grpc.StatusCode
BOTH = pytest.mark.parametrize("durability", [pb.DURABILITY_MEMORY, pb.DURABILITY_COMMITTED])
TWO = pb.Layout(tensors=[pb.Tensor(name="w", shape=[3, 2]), pb.Tensor(name="b", shape=[2])])


def struct(**values):
    made = Struct()
    made.update(values)
    return made


def local(size, gradients, lr=0.001, dtype="<f4"):
    """Adam as in the paper, in the session's dtype: enough to see that the bytes are the right ones."""
    p, m, v = np.linspace(-1, 1, size).astype(dtype), np.zeros(size, dtype), np.zeros(size, dtype)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        p = p - lr / (1 - 0.9**t) * m / (np.sqrt(v) / np.sqrt(1 - 0.999**t) + 1e-8)
    return p


@BOTH
def test_a_session_is_made_found_stepped_and_ended(caller, durability):
    name = f"life-{durability}"
    made = caller(
        "CreateSession",
        name=name,
        layout=TWO,
        dtype=F4,
        durability=durability,
        labels={"who": "me"},
        optimizer=struct(name="adam", lr=0.01),
        parameters=np.linspace(-1, 1, 8).astype("<f4").tobytes(),
    )
    assert not made.replayed
    session = made.session
    assert session.name == name and session.step == 0 and session.dtype == F4 and session.durability == durability
    assert [t.name for t in session.layout.tensors] == ["w", "b"] and list(session.layout.tensors[0].shape) == [3, 2]
    assert MessageToDict(session.optimizer)["lr"] == 0.01 and dict(session.labels) == {"who": "me"}
    assert len(session.chain) == 64 and session.created_at.seconds > 1.7e9 and not session.parameters_missing
    assert caller("GetSession", session=name).session == caller("GetSession", session=session.id).session
    gradient = np.arange(8, dtype="<f4")
    answer = caller.step(name, 1, gradient)
    assert answer.standing.step == 1 and answer.standing.nbytes == 32 and answer.standing.durability == durability
    got = np.frombuffer(answer.parameters, "<f4")
    np.testing.assert_allclose(got, local(8, [gradient], 0.01), rtol=1e-5)
    standing, data = caller.parameters(name)
    assert data == answer.parameters and standing.chain == answer.standing.chain
    changed = caller("UpdateSession", session=name, optimizer=struct(lr=0.5), labels=pb.Labels(labels={"a": "b"}))
    assert changed.session.settings_revision == 1 and dict(changed.session.labels) == {"a": "b"}
    assert MessageToDict(changed.session.optimizer)["lr"] == 0.5
    kept = caller("UpdateSession", session=name, optimizer=struct(lr=0.25)).session
    assert dict(kept.labels) == {"a": "b"}, "labels that are absent stay"
    caller("DeleteSession", session=session.id)
    refused(lambda: caller("GetSession", session=session.id), S.NOT_FOUND, "session_deleted")
    # The store remembers for a day what a name stood for.
    gone = "unknown_session" if durability == pb.DURABILITY_MEMORY else "session_deleted"
    refused(lambda: caller("GetSession", session=name), S.NOT_FOUND, gone)


def test_a_creation_is_repeated_by_its_key(caller):
    def make(**more):
        return caller("CreateSession", layout=TWO, dtype=F4, idempotency_key="one-creation", **more)

    first, second = make(), make()
    assert not first.replayed and second.replayed and first.session.id == second.session.id
    refused(lambda: make(labels={"x": "y"}), S.INVALID_ARGUMENT, "idempotency_mismatch")


def test_a_name_is_taken_once(caller):
    caller.create(name="taken-once")
    error = refused(lambda: caller.create(name="taken-once"), S.ALREADY_EXISTS, "session_exists")
    assert error.extra["id"].startswith("m_") and error.step == 0


def test_sessions_are_listed_page_by_page(grpc_server, caller):
    made = {caller.create(durability=d) for d in (1, 2, 1, 2, 1)}
    seen, token = [], ""
    while True:
        page = caller("ListSessions", page_size=2, page_token=token)
        assert len(page.sessions) <= 2 and all(not s.HasField("layout") for s in page.sessions)
        seen += [s.id for s in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert made <= set(seen) and len(seen) == len(set(seen))
    assert len(caller("ListSessions").sessions) >= 5
    refused(lambda: caller("ListSessions", page_size=1001), S.INVALID_ARGUMENT, "invalid_request")
    refused(lambda: caller("ListSessions", page_token="x" * 201), S.INVALID_ARGUMENT, "invalid_request")


def test_a_page_is_as_long_as_a_message_may_be(grpc_server, caller):
    labels = {f"label-{i}": "x" * 1024 for i in range(64)}
    made = {caller.create(1, labels=labels) for _ in range(70)}  # 4.6 MB of labels
    try:
        found, token, pages = set(), "", 0
        while pages == 0 or token:
            page = caller("ListSessions", page_token=token)
            found |= {session.id for session in page.sessions}
            token, pages = page.next_page_token, pages + 1
        assert made <= found and pages > 1
    finally:
        for session in made:
            caller("DeleteSession", session=session)


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1000, 700_000])
def test_many_steps_on_one_stream_equal_as_many_alone(caller, durability, size):
    """The bytes of StepStream, Step and GetParameters are the same; small and large, alone and pipelined."""
    gradients = [np.random.default_rng(n).standard_normal(size).astype("<f4") for n in range(4)]
    one, two, three = (caller.create(size, durability=durability) for _ in range(3))
    alone = [caller.step(one, n, g).parameters for n, g in enumerate(gradients, 1)]
    lockstep, pipelined = caller.stream(), caller.stream()
    for n, g in enumerate(gradients, 1):
        standing, data = lockstep.step(two, n, g)
        assert standing.step == n and data == alone[n - 1]
        pipelined.begin(three, n, g, piece=100_000)
    assert lockstep.end() == []
    for n in range(1, 5):
        standing, data = pipelined.answer()
        assert standing.step == n and data == alone[n - 1]
    assert pipelined.end() == []
    for session in (one, two, three):
        assert caller.parameters(session)[1] == alone[-1]
    np.testing.assert_allclose(np.frombuffer(alone[-1], "<f4"), local(size, gradients), rtol=2e-4, atol=1e-6)


def test_http_and_grpc_serve_the_same_session(grpc_server, caller):
    """One engine: what one transport does, the other one sees; a retry by the other transport is a replay."""
    session = caller.create(5)
    gradient = np.arange(5, dtype="<f4")
    answer = caller.step(session, 1, gradient, settings=struct(lr=1.0, betas=[0.5, 0.9]), metrics={"loss": 2.0})
    connection = http.client.HTTPConnection("127.0.0.1", grpc_server.port)
    told = {"Content-Type": "application/octet-stream", "Adamd-Settings": '{"lr": 1, "betas": [0.5, 0.9]}'}
    connection.request("PUT", f"/v1/sessions/{session}/steps/1", gradient.tobytes(), told)
    reply = connection.getresponse()
    assert (reply.status, reply.headers["Adamd-Replayed"]) == (200, "true")
    assert reply.read() == answer.parameters and reply.headers["ETag"] == f'"{answer.standing.chain}"'
    connection.request("GET", f"/v1/sessions/{session}")
    document = json.loads(connection.getresponse().read())
    assert document["optimizer"] == MessageToDict(caller("GetSession", session=session).session.optimizer)
    connection.close()


def test_a_step_says_everything_that_it_can(caller):
    session = caller.create(8, layout=TWO)
    start = caller.standing(session)
    first = caller.step(session, 1, np.ones(8, "<f4"), if_match=start[1], minimal=True, settings=struct(lr=0.1))
    assert first.parameters == b"" and first.standing.nbytes == 0 and first.standing.step == 1
    again = caller.step(session, 1, np.ones(8, "<f4"), if_match=start[1], settings=struct(lr=0.1))
    assert again.standing.replayed and again.standing.chain == first.standing.chain
    before = np.frombuffer(caller.parameters(session)[1], "<f4")
    # b alone, in float16: w is not touched, and does not count.
    answer = caller.step(session, 2, np.ones(2, "<f2"), dtype=pb.DTYPE_FLOAT16, tensors=["b"])
    after = np.frombuffer(answer.parameters, "<f4")
    assert (after[:6] == before[:6]).all() and (after[6:] != before[6:]).all()
    assert MessageToDict(caller("GetSession", session=session).session.optimizer)["lr"] == 0.1
    on_stream = caller.stream().step(session, 3, np.ones(6, "<f4"), tensors=["w"])[1]
    got = np.frombuffer(on_stream, "<f4")
    assert (got[6:] == after[6:]).all() and (got[:6] != after[:6]).all()
    named_all = caller.step(session, 4, np.ones(8, "<f4"), tensors=["w", "b"])
    assert caller.step(session, 4, np.ones(8, "<f4")).standing.replayed and named_all.standing.step == 4


@BOTH
def test_step_0_applies_whatever_is_next_once(caller, durability):
    session = caller.create(durability=durability)
    gradient = np.ones(4, "<f4")
    first = caller.step(session, 0, gradient, idempotency_key="a")
    assert first.standing.step == 1 and not first.standing.replayed
    caller.step(session, 0, gradient, idempotency_key="b")
    again = caller.step(session, 0, gradient, idempotency_key="a")
    assert again.standing.replayed and again.standing.step == 2 and again.standing.applied_step == 1
    refused(
        lambda: caller.step(session, 0, 2 * gradient, idempotency_key="a"), S.INVALID_ARGUMENT, "idempotency_mismatch"
    )
    refused(lambda: caller.step(session, 0, gradient), S.INVALID_ARGUMENT, "invalid_request")
    assert caller("GetSession", session=session).session.step == 2


def test_parameters_are_set_before_step_1(caller):
    session = caller.create(600_000, parameters=False)
    assert caller("GetSession", session=session).session.parameters_missing
    refused(lambda: caller.step(session, 1, np.ones(600_000, "<f4")), S.FAILED_PRECONDITION, "parameters_missing")
    refused(lambda: caller.parameters(session), S.FAILED_PRECONDITION, "parameters_missing")
    values = np.linspace(0, 1, 600_000).astype("<f2")
    done = caller.set_parameters(session, values.tobytes(), dtype=pb.DTYPE_FLOAT16)
    assert not done.session.parameters_missing
    standing, data = caller.parameters(session)
    assert standing.dtype == F4 and (np.frombuffer(data, "<f4") == values).all()
    caller.step(session, 1, np.ones(600_000, "<f4"), minimal=True)
    refused(lambda: caller.set_parameters(session, values.tobytes()), S.FAILED_PRECONDITION, "parameters_fixed")


def test_an_export_is_restored_as_a_new_session(caller):
    session = caller.create(300_000, name="exported")
    caller.step(session, 1, np.ones(300_000, "<f4"))
    standing, file = whole(caller.received("ExportState", session=session))
    assert standing.step == 1 and len(file) > 3 * 4 * 300_000
    caller("DeleteSession", session=session)

    def pieces(key="restored", data=file):
        yield pb.RestoreSessionRequest(idempotency_key=key, nbytes=len(data), data=data[:MIB])
        for start in range(MIB, len(data), MIB):
            yield pb.RestoreSessionRequest(offset=start, data=data[start : start + MIB])

    made = caller.sent("RestoreSession", pieces())
    assert made.session.step == 1 and made.session.name == "exported" and not made.replayed
    assert caller.sent("RestoreSession", pieces()).replayed
    again = whole(caller.received("ExportState", session="exported"))[1]
    assert again[-3 * 4 * 300_000 :] == file[-3 * 4 * 300_000 :]
    broken = refused(
        lambda: caller.sent("RestoreSession", pieces("other", file[:-1])), S.INVALID_ARGUMENT, "malformed_body"
    )
    assert "safetensors" in broken.detail


def test_the_server_tells_what_it_is(grpc_server, caller):
    told = caller("GetServerInfo")
    assert told.max_message_bytes == channel.MAX_MESSAGE
    assert told.max_concurrent_calls == min(512, told.max_in_flight_bytes // channel.MAX_MESSAGE)
    assert "survives" in told.store and "raw" in told.encodings and "adam" in told.optimizers
    connection = http.client.HTTPConnection("127.0.0.1", grpc_server.port)
    connection.request("GET", "/v1/info")
    document = json.loads(connection.getresponse().read())
    connection.close()
    assert document["replica"] == told.replica and document["version"] == told.version
    assert document["limits"]["body_bytes"] == told.max_body_bytes
    assert document["grpc"]["message_bytes"] == told.max_message_bytes
    assert document["encodings"] == list(told.encodings)


def test_health_and_reflection(caller):
    health = health_pb2_grpc.HealthStub(caller.channel)
    for service in ("", channel.SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == 1
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert unknown.value.code() == S.NOT_FOUND
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=channel.SERVICE),
    ]
    listed, file = stub.ServerReflectionInfo(iter(asked), timeout=10)
    assert channel.SERVICE in {s.name for s in listed.list_services_response.service}
    assert b"StepStream" in file.file_descriptor_response.file_descriptor_proto[0]


def test_calls_are_counted_by_method_and_status(grpc_server, caller):
    caller("GetServerInfo")
    refused(lambda: caller("GetSession", session="nobody-at-all"), S.NOT_FOUND, "unknown_session")
    connection = http.client.HTTPConnection("127.0.0.1", grpc_server.port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'adamd_request_seconds_count{method="gRPC",route="GetServerInfo",status="OK"}' in text
    assert 'adamd_problems_total{method="gRPC",route="GetSession",status="NOT_FOUND"}' in text


@BOTH
def test_a_watcher_is_told_at_once_after_steps_and_at_the_end(caller, durability):
    session = caller.create(name=f"watched-{durability}", durability=durability)
    watch = caller.received("WatchSession", session=f"watched-{durability}")
    first = next(watch)
    assert first.standing.step == 0 and MessageToDict(first.optimizer)["name"] == "adam" and not first.metrics
    answer = caller.step(session, 1, np.ones(4, "<f4"), metrics={"loss": 0.5}, settings=struct(lr=0.125))
    second = next(watch)
    assert second.standing.step == 1 and second.standing.chain == answer.standing.chain
    assert dict(second.metrics) == {"loss": 0.5} and MessageToDict(second.optimizer)["lr"] == 0.125
    caller("UpdateSession", session=session, optimizer=struct(lr=0.25))
    assert MessageToDict(next(watch).optimizer)["lr"] == 0.25
    for n in range(2, 102):
        caller.step(session, n, np.ones(4, "<f4"), minimal=True)
    told = []
    while not told or told[-1] < 101:
        told.append(next(watch).standing.step)
    assert told == sorted(set(told)) and len(told) < 100, "steps that follow fast are told together"
    caller("DeleteSession", session=session)
    refused(lambda: next(watch), S.NOT_FOUND, "session_deleted")
    refused(lambda: next(caller.received("WatchSession", session="no-such")), S.NOT_FOUND, "unknown_session")


def test_a_watcher_sees_the_steps_of_another_replica(store_factory, server_factory):
    store = store_factory(appendfsync="everysec")
    here, there = (server_factory("--redis-url", store.url) for _ in range(2))
    one, two = Caller(here), Caller(there)
    session = one.create(durability=pb.DURABILITY_COMMITTED)
    watch = two.received("WatchSession", session=session)
    assert next(watch).standing.step == 0
    one.step(session, 1, np.ones(4, "<f4"), metrics={"loss": 0.25})
    told = next(watch)
    assert told.standing.step == 1 and dict(told.metrics) == {"loss": 0.25}
    local_one = one.create()
    refused(lambda: two("GetSession", session=local_one), S.FAILED_PRECONDITION, "wrong_replica")
    one("DeleteSession", session=session)
    refused(lambda: next(watch), S.NOT_FOUND, "session_deleted")
    one.close()
    two.close()


def test_encodings_and_narrower_answers_pass_through(caller):
    """What they mean is tested with the engine; here, that every one of them arrives and comes back."""
    size = 512
    session, plain = caller.create(size), caller.create(size)
    scales, quanta = np.array([0.5, 2.0], "<f4"), (np.arange(size) % 7 - 3).astype("i1")
    dense = (scales.repeat(256) * quanta).astype("<f4")
    packed = scales.tobytes() + quanta.tobytes()
    encoded = caller.step(session, 1, packed, encoding=pb.ENCODING_INT8)
    assert encoded.parameters == caller.step(plain, 1, dense).parameters
    places, values = np.array([3, 500], "<u4"), np.array([1.0, -2.0], "<f4")
    dense = np.zeros(size, "<f4")
    dense[places] = values
    sparse = places.tobytes() + values.tobytes()
    stream = caller.stream()
    standing, data = stream.step(session, 2, sparse, encoding=pb.ENCODING_SPARSE)
    assert data == caller.step(plain, 2, dense).parameters
    standing, lazy = stream.step(session, 3, sparse, encoding=pb.ENCODING_SPARSE_LAZY)
    changed = np.flatnonzero(np.frombuffer(lazy, "<f4") != np.frombuffer(data, "<f4"))
    assert list(changed) == [3, 500]
    standing, half = stream.step(session, 4, dense, answer_dtype=pb.DTYPE_FLOAT16)
    exact = caller.parameters(session)[1]
    assert standing.dtype == pb.DTYPE_FLOAT16 and standing.nbytes == 2 * size
    assert half == np.frombuffer(exact, "<f4").astype("<f2").tobytes()
    assert caller.parameters(session, dtype=pb.DTYPE_FLOAT16)[1] == half
    refused(lambda: caller.parameters(session, dtype=pb.DTYPE_FLOAT64), S.INVALID_ARGUMENT, "wrong_dtype")
    refused(lambda: caller.step(session, 5, dense, encoding=9), S.INVALID_ARGUMENT, "invalid_request")
    refused(lambda: caller.step(session, 5, dense, answer_dtype=9), S.INVALID_ARGUMENT, "invalid_request")
    stream.end()
