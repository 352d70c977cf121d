"""Streams that lie, stall, vanish or never read; bounds on calls; deadlines; the server's end."""

import http.client
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from calling import MIB, Caller, refused, watched, whole
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamd.wire.v1 import adamd_pb2 as pb

S = grpc.StatusCode
LARGE = 2_000_000  # elements of a gradient that is received in many pieces


def gauge(server, name):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def comes_back(server, seconds=30):
    """Everything that was held for calls is free again."""
    deadline = time.monotonic() + seconds
    while True:
        held = gauge(server, "adamd_in_flight_bytes"), gauge(server, "adamd_leased_buffer_bytes")
        if held == (0, 0):
            return
        assert time.monotonic() < deadline, f"still held: {held}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A server that waits for one second, and takes eight calls at once."""
    env = {"ADAMD_UPLOAD_GAP": 1, "ADAMD_GRPC_CALLS": 8, "ADAMD_GRPC_STREAMS": 6}
    with watched(tmp_path_factory.mktemp("quick"), "--fsync", "everysec", env=env) as running:
        yield running


@pytest.fixture
def impatient(quick):
    one = Caller(quick)
    yield one
    one.close()
    comes_back(quick)


def pieces_of(data, *parts):
    """Messages of a body: each part is (offset, start, end)."""
    return [pb.StepStreamRequest(offset=offset, data=data[start:end]) for offset, start, end in parts]


K = 1024
LIES = {
    "out of order": ([(0, 0, 4 * K), (8 * K, 8 * K, 12 * K), (4 * K, 4 * K, 8 * K)], "a hole"),
    "missing": ([(0, 0, 4 * K), (8 * K, 8 * K, 16 * K)], "a hole"),
    "overlapping": ([(0, 0, 4 * K), (2 * K, 2 * K, 16 * K)], "an overlap"),
    "twice": ([(0, 0, 4 * K), (0, 0, 4 * K), (4 * K, 4 * K, 16 * K)], "an overlap"),
    "not from the beginning": ([(4 * K, 4 * K, 16 * K)], "a hole"),
    "of zero length": ([(0, 0, 4 * K), (4 * K, 0, 0), (4 * K, 4 * K, 16 * K)], "empty"),
    "too much": ([(0, 0, 16 * K), (16 * K, 0, 1)], None),
    "too much at once": ([(0, 0, 12 * K), (12 * K, 0, 16 * K)], "more than the 16384 bytes"),
    "an offset of 2^63": ([(0, 0, 4 * K), (2**63, 4 * K, 16 * K)], "a hole"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("durability", [1, 2])
def test_pieces_that_do_not_fit_are_refused(caller, lie, durability):
    parts, said = LIES[lie]
    session = caller.create(4 * K, durability=durability)
    before = caller.standing(session)
    data = np.ones(4 * K, "<f4").tobytes()
    stream = caller.stream()
    stream.put(header=pb.StepHeader(session=session, step=1, nbytes=len(data)))
    for message in pieces_of(data, *parts):
        stream._requests.put(message)
    if said is None:  # the step is whole, and then something comes that begins no other
        assert stream.answer()[0].step == 1
        error = refused(stream.answer, S.INVALID_ARGUMENT, "invalid_request")
        assert "header: missing" in error.detail
        return
    error = refused(stream.answer, S.INVALID_ARGUMENT, "invalid_request")
    assert said in error.detail
    assert caller.standing(session) == before


def test_a_header_in_the_middle_of_a_body_is_refused(caller):
    session = caller.create(4 * K)
    stream = caller.stream()
    stream.put(header=pb.StepHeader(session=session, step=1, nbytes=16 * K), data=bytes(8 * K))
    stream.put(header=pb.StepHeader(session=session, step=1, nbytes=16 * K), offset=8 * K, data=bytes(8 * K))
    assert "another head" in refused(stream.answer, S.INVALID_ARGUMENT, "invalid_request").detail


def test_a_stream_that_ends_in_the_middle_of_a_body_is_refused(caller):
    session = caller.create(4 * K)
    stream = caller.stream()
    stream.put(header=pb.StepHeader(session=session, step=1, nbytes=16 * K), data=bytes(8 * K))
    stream._requests.put(None)
    assert "8192 bytes" in refused(stream.answer, S.INVALID_ARGUMENT, "wrong_length").detail
    assert caller("GetSession", session=session).session.step == 0
    assert caller.stream().end() == [], "no step at all is no fault"


def test_a_length_that_is_not_the_layouts_is_refused_before_the_body(caller):
    session = caller.create(4 * K)
    for nbytes in (0, 1, 16 * K - 1, 16 * K + 1, 2**40, 2**64 - 1):
        stream = caller.stream()
        stream.put(header=pb.StepHeader(session=session, step=1, nbytes=nbytes))
        refused(stream.answer, S.INVALID_ARGUMENT, "wrong_length")


@pytest.mark.parametrize("size", [1, 100])
def test_a_million_tiny_messages_are_not_waited_for(caller, size):
    session = caller.create(LARGE)
    data = bytes(size)

    def requests():
        yield pb.StepStreamRequest(header=pb.StepHeader(session=session, step=1, nbytes=4 * LARGE))
        for i in range(1_000_000):
            sent.append(i)
            yield pb.StepStreamRequest(offset=i * size, data=data)

    sent = []
    call = caller.channel.stream_stream(
        caller.path("StepStream"), pb.StepStreamRequest.SerializeToString, pb.StepStreamResponse.FromString
    )
    error = refused(lambda: next(call(requests(), timeout=15)), S.INVALID_ARGUMENT, "invalid_request")
    assert "larger ones" in error.detail and len(sent) < 100_000
    assert caller("GetSession", session=session).session.step == 0


def test_a_body_may_come_in_pieces_of_four_kilobytes(caller):
    session = caller.create(250_000)
    stream = caller.stream()
    assert stream.step(session, 1, np.ones(250_000, "<f4"), piece=4096)[0].step == 1
    stream.end()


@pytest.mark.parametrize("durability", [1, 2])
def test_a_stalled_stream_is_given_up(quick, impatient, durability):
    session = impatient.create(LARGE, durability=durability)
    stream = impatient.stream()
    stream.put(header=pb.StepHeader(session=session, step=1, nbytes=4 * LARGE), data=bytes(MIB))
    stream.put(offset=MIB, data=bytes(MIB))
    refused(stream.answer, S.DEADLINE_EXCEEDED, "upload_timeout")
    idle = impatient.stream()
    idle.begin(session, 1, np.ones(LARGE, "<f4"))
    assert idle.answer()[0].step == 1
    time.sleep(2.5)  # between steps a stream may wait for as long as it likes
    assert idle.step(session, 2, np.ones(LARGE, "<f4"))[0].step == 2
    idle.end()


def test_a_single_message_that_never_comes_is_given_up(quick, impatient):
    gate = threading.Event()

    def nothing():
        gate.wait(30)
        yield from ()

    call = impatient.channel.stream_unary(impatient.path("Step"), None, pb.StepResponse.FromString)
    refused(lambda: call(nothing(), timeout=20), S.DEADLINE_EXCEEDED, "upload_timeout")
    gate.set()
    empty = impatient.channel.stream_unary(impatient.path("GetSession"), None, None)
    refused(lambda: empty(iter(()), timeout=20), S.INVALID_ARGUMENT, "invalid_request")


VANISH = """
import sys, time
sys.path[:0] = {path!r}
from calling import Caller, MIB
from adamd.wire.v1 import adamd_pb2 as pb
class Server: grpc_url = {url!r}
caller = Caller(Server)
stream = caller.stream()
stream.put(header=pb.StepHeader(session={session!r}, step=1, nbytes={nbytes}), data=bytes(MIB))
stream.put(offset=MIB, data=bytes(MIB))
time.sleep(0.5)
print("under way", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("durability", [1, 2])
def test_a_client_that_vanishes_leaves_nothing(grpc_server, caller, durability):
    """kill -9 in the middle of an upload: nothing is applied, nothing stays held, and the next client steps on."""
    session = caller.create(LARGE, durability=durability)
    before = caller.standing(session)
    code = VANISH.format(path=sys.path, url=grpc_server.grpc_url, session=session, nbytes=4 * LARGE)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "under way\n"
        assert gauge(grpc_server, "adamd_in_flight_bytes") > 0
        client.send_signal(signal.SIGKILL)
    comes_back(grpc_server)
    assert caller.standing(session) == before
    stream = caller.stream()
    assert stream.step(session, 1, np.ones(LARGE, "<f4"))[0].step == 1
    stream.end()


@pytest.mark.parametrize("method", ["StepStream", "GetParameters", "ExportState"])
def test_a_reader_that_never_reads_is_given_up(quick, impatient, method):
    """What is held for its answer comes back after the gap, while its stream is still open."""
    session = impatient.create(LARGE)
    if method == "StepStream":
        stream = impatient.stream()
        for n in range(1, 9):  # far more than is taken in ahead of a reader
            stream.begin(session, n, np.ones(LARGE, "<f4"))
        call = stream.call
        deadline = time.monotonic() + 20
        while impatient("GetSession", session=session).session.step < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    else:
        call = impatient.received(method, session=session)
    time.sleep(2)
    comes_back(quick, 10)
    assert call.is_active(), "the client has not been told: it does not read"
    # Its own end has taken in some megabytes by itself; beyond that, one step is received ahead.
    assert impatient("GetSession", session=session).session.step < 7
    call.cancel()


def test_calls_at_once_are_bounded(quick):
    """Beyond the bound a call is refused with the reason and a time to come back; below it again, all is well."""
    callers = [Caller(quick) for _ in range(3)]
    session = callers[0].create()
    watches = [c.received("WatchSession", session=session) for c in callers for _ in range(3)][:8]
    for watch in watches:
        assert next(watch).standing.step == 0
    error = refused(lambda: callers[2]("GetServerInfo"), S.RESOURCE_EXHAUSTED, "busy")
    assert error.retry_after == 0.5
    for watch in watches:
        watch.cancel()
    deadline = time.monotonic() + 10
    while True:
        try:
            callers[2]("GetServerInfo")
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for one in callers:
        one.close()


def test_messages_that_wait_take_no_more_memory_than_the_bytes_in_flight(tmp_path):
    """What gRPC has read before any code of ours runs stands outside the budget, so calls are bounded by it."""
    flight = 64 * MIB
    env = {"ADAMD_IN_FLIGHT_BYTES": flight, "MALLOC_ARENA_MAX": 1}  # one heap, not the holes of one for each thread
    with watched(tmp_path, "--fsync", "everysec", env=env) as running:
        callers = [Caller(running) for _ in range(2)]
        session = callers[0].create(durability=pb.DURABILITY_COMMITTED)
        callers[0]("GetSession", session=session)
        unknown = b"\x7a" + pb.UpdateSessionRequest(session="x" * (4 * MIB)).SerializeToString()[1:]  # field 15
        large = pb.GetSessionRequest(session=session).SerializeToString() + unknown
        before = running.resident()
        os.kill(running.store_pid, signal.SIGSTOP)
        try:
            waiting = [
                one.channel.unary_unary(one.path("GetSession"), None, None).future(large, timeout=60)
                for one in callers
                for _ in range(60)
            ]
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                assert running.resident() - before < 3 * flight  # of 120 messages, 8 times as much; 1.9 seen
                time.sleep(0.05)
        finally:
            os.kill(running.store_pid, signal.SIGCONT)
        answers = [call.code() for call in waiting]
        assert set(answers) == {S.OK, S.RESOURCE_EXHAUSTED}, answers
        for one in callers:
            one.close()


def test_idle_streams_give_their_places_up_the_longest_idle_first(quick):
    """Kept streams are calls: without this, the streams of a few clients would fill a server for ever."""
    callers = [Caller(quick) for _ in range(3)]
    session = callers[0].create()
    streams = [callers[number % 3].stream() for number in range(8)]
    for number, stream in enumerate(streams, 1):
        stream.step(session, number, np.ones(4, "<f4"))
        time.sleep(0.1 if number < 3 else 0)  # until its handler waits again: the second is idle before the third
    streams[0].step(session, 9, np.ones(4, "<f4"))  # now the second one is the longest idle
    watch = callers[2].received("WatchSession", session=session)
    assert next(watch).standing.step == 9
    error = refused(streams[1].answer, S.RESOURCE_EXHAUSTED, "busy")
    assert "idle" in str(error)
    for number, stream in enumerate((streams[0], *streams[2:]), 10):  # none of the others
        stream.step(session, number, np.ones(4, "<f4"))
    watches = [c.received("WatchSession", session=session) for c in callers[:2] for _ in range(2)]
    for one in watches:
        next(one)
    watch.cancel()
    for one in (*streams, *watches):
        one.cancel()
    for one in callers:
        one.close()


def test_streams_of_one_connection_are_bounded(quick):
    one, other = Caller(quick), Caller(quick)
    session = one.create()
    watches = [one.received("WatchSession", session=session) for _ in range(6)]
    for watch in watches:
        next(watch)
    with pytest.raises(grpc.RpcError) as waits:
        one("GetServerInfo", 1)
    assert waits.value.code() == S.DEADLINE_EXCEEDED, "it waits for a place on its own connection"
    assert other("GetServerInfo").version
    for watch in watches:
        watch.cancel()
    one.close()
    other.close()


@pytest.mark.parametrize("durability", [1, 2])
def test_a_call_that_is_cancelled_or_late_is_applied_whole_or_not_at_all(caller, durability):
    """Deadlines that expire anywhere in a step, streams cancelled anywhere: the retry finds whole steps only."""
    rng = random.Random(7)
    size = 70_000
    session, clean = (caller.create(size, durability=durability) for _ in range(2))
    cut = whole_ones = 0
    for n in range(1, 41):
        gradient = np.full(size, n, "<f4")
        wanted = caller.step(clean, n, gradient).parameters
        try:
            if n % 2:
                caller(
                    "Step",
                    rng.uniform(0.0005, 0.03),
                    header=pb.StepHeader(session=session, step=n),
                    gradient=gradient.tobytes(),
                )
                whole_ones += 1
            else:
                stream = caller.stream()
                stream.begin(session, n, gradient, piece=50_000)
                time.sleep(rng.uniform(0, 0.02))
                stream.cancel()
                cut += 1
        except grpc.RpcError as error:
            assert error.code() == S.DEADLINE_EXCEEDED
            cut += 1
        assert caller.step(session, n, gradient).parameters == wanted
    assert cut > 15
    comes_back_soon = caller.parameters(session)[1]
    assert comes_back_soon == wanted


def test_a_server_that_ends_finishes_steps_and_refuses_new_work(server_factory):
    """SIGTERM: idle streams and watchers are told to come back, what is on its way is answered, the exit is clean."""
    server = server_factory(env={"ADAMD_SHUTDOWN_GRACE": 600})  # which it does not wait for: nothing is left to do
    caller = Caller(server)
    session = caller.create(LARGE)
    idle, watch = caller.stream(), caller.received("WatchSession", session=session)
    assert next(watch).standing.step == 0
    idle.step(session, 1, np.ones(LARGE, "<f4"))
    assert next(watch).standing.step == 1
    health = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    reading = caller.received("GetParameters", session=session)
    first = next(reading)
    server.process.send_signal(signal.SIGTERM)
    assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
    error = refused(lambda: idle.answer(), S.UNAVAILABLE, "shutting_down")
    assert error.retry_after == 1.0
    refused(lambda: next(watch), S.UNAVAILABLE, "shutting_down")
    standing, data = whole(itertools.chain([first], reading))
    assert standing.step == 1 and len(data) == 4 * LARGE
    health.cancel()
    assert server.process.wait(120) == 0
    assert "Traceback" not in server.log()
    caller.close()


def test_committed_steps_survive_a_kill(server_factory):
    server = server_factory()
    caller = Caller(server)
    session = caller.create(durability=pb.DURABILITY_COMMITTED)
    stream = caller.stream()
    chains = [stream.step(session, n, np.full(4, n, "<f4"))[0].chain for n in range(1, 8)]
    server.restart()
    caller.close()
    caller = Caller(server)
    told = caller("GetSession", session=session).session
    assert (told.step, told.chain) == (7, chains[-1])
    again = caller.step(session, 7, np.full(4, 7, "<f4"), if_match=chains[-2])
    assert again.standing.replayed and again.standing.chain == chains[-1]
    assert caller.step(session, 8, np.full(4, 8, "<f4"), if_match=chains[-1]).standing.step == 8
    caller.close()


def adamd(*words, env=None):
    command = [sys.executable, "-m", "adamd_service", "serve", "--port", "0", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(env or {})}
    )


def test_a_port_that_is_taken_is_said_and_ends_the_server(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with adamd("--grpc-port", port, "--data-dir", tmp_path) as process:
            said = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "Traceback" not in said
    assert f"port {port} for gRPC" in said and "--grpc-port" in said


def until_ready(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "adamd is ready" in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("where", ["option", pytest.param("environment", marks=pytest.mark.slow)])
def test_grpc_can_be_switched_off(tmp_path, where):
    words = ["--grpc-port", "off"] if where == "option" else []
    env = {"ADAMD_GRPC_PORT": "off"} if where == "environment" else {}
    with adamd(*words, "--data-dir", tmp_path, env=env) as process:
        said = until_ready(process)
        process.terminate()
    assert process.returncode == 0 and "grpc://" not in said


@pytest.mark.slow
def test_without_grpcio_http_is_served_and_that_is_said(tmp_path):
    """An installation without the extra: a module that is not there, made so by a finder in the way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grpc':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    with adamd("--data-dir", tmp_path / "one", env=env) as process:
        said = until_ready(process)
        process.terminate()
    assert process.returncode == 0 and "grpc://" not in said
    assert "HTTP only" in said and "grpc is missing" in said and "pip install" in said
    with adamd("--grpc-port", 0, "--data-dir", tmp_path / "two", env=env) as asked:
        said = asked.communicate(timeout=120)[0]
    assert asked.returncode == 1 and "no gRPC: grpc is missing" in said and "Traceback" not in said


@pytest.mark.parametrize("durability", [1, 2])
def test_a_refused_body_leaves_no_memory_behind(grpc_server, caller, durability):
    session = caller.create(LARGE, durability=durability)
    gradient = np.ones(LARGE, "<f4")
    gradient[-1] = np.nan
    for _ in range(3):
        stream = caller.stream()
        stream.begin(session, 1, gradient)
        assert refused(stream.answer, S.INVALID_ARGUMENT, "bad_gradient").extra["index"] == LARGE - 1
    comes_back(grpc_server, 3)


def test_an_idle_stream_keeps_no_message(tmp_path):
    size = 1_000_000
    with watched(tmp_path, "--fsync", "everysec") as running:
        caller = Caller(running)
        session, gradient = caller.create(size), np.ones(size, np.float32)
        for number in range(1, 9):
            stream = caller.stream()
            stream.step(session, number, gradient, piece=gradient.nbytes)
            stream.end()
        before, kept = running.resident(), []
        for number in range(9, 69):
            kept.append(caller.stream())
            kept[-1].step(session, number, gradient, piece=gradient.nbytes)
        assert running.resident() - before < 20 * gradient.nbytes  # of 60 that came
        for stream in kept:
            stream.end()
        caller.close()


def test_messages_do_not_ask_the_kernel_for_fresh_pages_each_time(grpc_server, caller):
    """Without `keep_memory` 16 MB both ways take 5,000 page faults a step, with it 65."""

    def faults():
        with open(f"/proc/{grpc_server.pid}/stat") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[7])

    size = 4_000_000
    session = caller.create(size)
    gradient = np.ones(size, "<f4").tobytes()
    stream = caller.stream()
    for n in range(1, 9):
        stream.step(session, n, gradient)
    before = faults()
    for n in range(9, 17):
        stream.step(session, n, gradient)
    assert (faults() - before) / 8 < 1500
    stream.end()


def test_what_is_cancelled_holds_its_share_until_it_is_over(tmp_path):
    """A step that waits for a store that hangs cannot be cut off; nor may its memory be promised to the next one."""
    env = {"ADAMD_STORE_TIMEOUT": 60, "ADAMD_THREADS": 16}
    with watched(tmp_path, "--fsync", "everysec", env=env) as running:
        caller = Caller(running)
        session = caller.create(LARGE, durability=pb.DURABILITY_COMMITTED)
        gradient = np.ones(LARGE, np.float32)
        caller.stream().step(session, 1, gradient)
        comes_back(running)
        os.kill(running.store_pid, signal.SIGSTOP)
        try:
            stream = caller.stream()
            stream.begin(session, 1, gradient)  # the same step again: its body is in before the store is asked
            deadline = time.monotonic() + 30
            while gauge(running, "adamd_leased_buffer_bytes") < gradient.nbytes:
                assert time.monotonic() < deadline, "the body does not come in"
                time.sleep(0.02)
            time.sleep(0.5)  # it waits for the store
            stream.cancel()
            for _ in range(20):
                leased, held = (gauge(running, f"adamd_{what}_bytes") for what in ("leased_buffer", "in_flight"))
                assert leased <= held, f"{leased} bytes are leased, {held} are held"
                time.sleep(0.05)
        finally:
            os.kill(running.store_pid, signal.SIGCONT)
        comes_back(running)
        caller.close()
