"""The gRPC transport alone: networks and servers that are not as they should be."""

import os
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import Relay, Scripted, answer
from test_sdk_network import certificate, tls  # noqa: F401 - a fixture

import adamd
from adamd import errors
from adamd.errors import RetriesExhausted, TransportError
from adamd.sansio import arrays
from adamd.sansio.operations import Info, Step, body_of
from adamd.sansio.retry import Timeout
from adamd.transports.cancellation import Cancellation
from adamd.transports.endpoint import route
from adamd.transports.grpc import messages
from adamd.transports.grpc.stream import Filling
from adamd.transports.grpc.transport import MAX_IDLE_STREAMS, GrpcTransport
from adamd.transports.progress import meter
from adamd.wire import channel, pieces
from adamd.wire.layout import vector_layout
from adamd.wire.pieces import Piece
from adamd.wire.v1 import adamd_pb2 as pb
from servers import ended

QUICK = Timeout(connect=2, inactivity=5, total=20, first=2)


@pytest.fixture
def direct(server):
    with adamd.connect(server.url) as client:
        yield client


# -- pure


@given(st.lists(st.integers(0, 3_000_000), max_size=6), st.integers(0, 2**32 - 1))
def test_bytes_are_cut_into_equal_pieces_and_land_whole(sizes, seed):
    whole = np.random.default_rng(seed).bytes(sum(sizes))
    views, at = [], 0
    for size in sizes:
        views.append(memoryview(whole)[at : at + size])
        at += size
    cut = list(messages.cut(views))
    assert b"".join(cut) == whole
    assert all(len(piece) == channel.PIECE for piece in cut[:-1])
    landed = [bytearray(size) for size in reversed(sizes)]
    filling = Filling(tuple(memoryview(one) for one in landed))
    at = 0
    for piece in cut:
        assert not filling.full
        filling.put(at, piece)
        at += len(piece)
    assert filling.full and b"".join(landed) == whole
    with pytest.raises(TransportError, match="piece"):
        filling.put(at, b"x")


@pytest.mark.parametrize(
    ("status", "words", "kind", "phase"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", TransportError, "connect"),
        ("UNAVAILABLE", "errors resolving there:1: Domain name not found", TransportError, "connect"),
        ("UNAVAILABLE", "Socket closed", TransportError, "silent"),
        ("CANCELLED", "", TransportError, "silent"),
        ("INTERNAL", "Received RST_STREAM with error code 2", TransportError, "silent"),
        ("UNKNOWN", "Stream removed", TransportError, "silent"),
        ("DEADLINE_EXCEEDED", "", TransportError, "timeout"),
        ("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!", errors.Busy, None),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 8)", errors.TooLarge, None),
        ("UNAUTHENTICATED", "who are you", errors.RequestError, None),
    ],
)
def test_ends_without_details(status, words, kind, phase):
    for details in (None, b"\xff\xff", b""):
        found = messages.refusal(status, words, details)
        assert type(found) is kind and found.extra.get("phase") == phase
        assert not found.extra.get("permanent")


@pytest.mark.parametrize("status", ["UNIMPLEMENTED", "UNKNOWN", "INTERNAL"])
def test_ends_that_no_adamd_server_gives_are_not_tried_again(status):
    found = messages.refusal(status, "no such method", None)
    assert found.extra["permanent"] and status in str(found)


def test_what_no_message_can_say_is_refused(server):
    with adamd.connect(server.grpc_url) as client:
        session = client.create(np.zeros(2, "f4"))
        for call in (
            lambda: client.create(np.zeros(2, "f4"), name=3),
            lambda: client.create(np.zeros(2, "f4"), labels={"k": 1}),
            lambda: client.create(np.zeros(2, "f4"), lr=10**400),
            lambda: client.create(np.zeros(2, "f4"), durability="forever"),
            lambda: session.update(labels={"k": "\ud800"}),
            lambda: session.update(lr=10**400),
            lambda: session.step(np.ones(2, "f4"), settings={"lr": 10**400}),
            lambda: next(client.sessions(page_size=-1)),
            lambda: next(client.sessions(page_size=2**40)),
        ):
            with pytest.raises(errors.InvalidRequest):
                call()
        assert session.info()["step"] == 0


# -- how gRPC waits


@pytest.mark.parametrize(
    ("before", "own", "engine"),
    [("", None, False), ("import grpc", None, True), ("", "event_engine_client", True)],
    ids=["ours", "imported-before", "told-by-the-application"],
)
def test_whoever_waits_reads_the_socket_itself_unless_the_application_chose(server, before, own, engine):
    code = f"""{before}
import os, adamd
with adamd.connect({server.grpc_url!r}) as client:
    print(client.info()["version"], os.environ.get("GRPC_EXPERIMENTS"))
"""
    environment = {**os.environ, "GRPC_TRACE": "event_engine_endpoint", "GRPC_VERBOSITY": "DEBUG"}
    environment.pop("GRPC_EXPERIMENTS", None)
    if own:
        environment["GRPC_EXPERIMENTS"] = own
    done = ended([sys.executable, "-c", code], env=environment)
    assert done.stdout.split() == [adamd.__version__, str(own)], done.stderr[-2000:]
    assert ("Endpoint[" in done.stderr) is engine, done.stderr[-2000:]


def test_a_server_that_is_back_is_found_at_once_again(server_factory):
    """In a process where ours is chosen: nobody waits for the connection between two attempts, and gRPC looked every 5 s."""
    running = server_factory()
    code = f"""
import adamd, numpy as np
with adamd.connect({running.grpc_url!r}, timeout=adamd.Timeout(total=15.0)) as client:
    session = client.create(np.zeros(2), lr=0.1)
    for _ in range(5):
        session.step(np.ones(2))
        print(session.step_number, flush=True)
        input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        for step in range(1, 6):
            assert child.stdout.readline() == f"{step}\n"
            if step < 5:
                running.kill()
            child.stdin.write("\n")
            child.stdin.flush()
            if step < 5:
                running.restart()
    assert child.returncode == 0


def test_a_server_reads_its_sockets_in_the_thread_that_waits(server_factory):
    running = server_factory(env={"GRPC_TRACE": "event_engine_endpoint", "GRPC_VERBOSITY": "DEBUG"})
    with adamd.connect(running.grpc_url) as client:
        client.info()
    assert not any("Endpoint[" in line for line in running.lines), running.lines[-20:]


# -- peers


def test_the_api_key_is_sent_and_kept_out_of_what_is_shown(monkeypatch):
    with Fake() as fake:
        with adamd.connect(fake.url, api_key="s3cret") as client:
            client.info()
            assert "s3cret" not in repr(client)
        assert ("authorization", "Bearer s3cret") in fake.metadata[0]
    with pytest.raises(errors.InvalidRequest) as caught:
        adamd.connect("grpc://localhost", api_key="two\nlines")
    assert "lines" not in str(caught.value)


class Fake:
    """A gRPC server that answers as it is told: `steps(header)` gives the pieces of an answer, None ends the stream."""

    def __init__(self, steps=lambda header: ()):
        from concurrent.futures import ThreadPoolExecutor

        self.steps, self.metadata, self.streams = steps, [], 0
        self.server = grpc.server(ThreadPoolExecutor(4))
        session = pb.Session(id="s_1", chain="a" * 64, dtype=pb.DTYPE_FLOAT32, durability=pb.DURABILITY_MEMORY)
        session.layout.vector = True
        session.layout.tensors.add(name="parameters", shape=[2])
        self.session = session

        def info(_request, context):
            self.metadata.append(list(context.invocation_metadata()))
            return pb.GetServerInfoResponse(version="1")

        def get(_request, _context):
            return pb.GetSessionResponse(session=self.session)

        def stream(requests, _context):
            self.streams += 1
            for request in requests:
                answer = self.steps(request.head)
                if answer is None:
                    return
                yield from answer

        codecs = pieces.STREAM_REQUEST.read, pieces.STREAM_RESPONSE.write
        methods = {
            "GetServerInfo": unary(info, pb.GetServerInfoRequest),
            "GetSession": unary(get, pb.GetSessionRequest),
            "StepStream": grpc.stream_stream_rpc_method_handler(stream, *codecs),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(channel.SERVICE, methods),))
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *error):
        self.server.stop(None).wait()


def unary(serve, kind):
    return grpc.unary_unary_rpc_method_handler(serve, kind.FromString, lambda made: made.SerializeToString())


STANDING = {"step": 1, "chain": "b" * 64, "dtype": pb.DTYPE_FLOAT32, "nbytes": 8}
PARAMS = np.float32([1, 2]).tobytes()


def stepping(*answer, **change):
    told = pb.Standing(**STANDING | change)
    with Fake(lambda header: answer or (Piece(told, 0, PARAMS),)) as fake:
        with adamd.connect(fake.url, timeout=QUICK) as client:
            session = client.session("s_1")
            try:
                return session.step(np.ones(2, "f4")).tolist()
            finally:
                assert fake.streams == 1
                stepping.session = session


GOOD = pb.Standing(**STANDING)


def test_an_answer_in_pieces_is_read():
    assert stepping() == [1, 2]
    assert stepping(Piece(GOOD, 0, b""), Piece(None, 0, PARAMS[:3]), Piece(None, 3, PARAMS[3:])) == [1, 2]
    assert (stepping.session.step_number, stepping.session.chain) == (1, "b" * 64)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({"step": 2}, "step 2; wanted 1"),
        ({"dtype": pb.DTYPE_FLOAT64}, "float64 parameters"),
        ({"dtype": 77}, "unknown parameters"),
        ({"chain": "x"}, "no chain"),
        ({"nbytes": 12}, "12 bytes of parameters; wanted 8"),
        ([Piece(None, 0, PARAMS)], "where they stand"),
        ([Piece(GOOD, 4, PARAMS[4:])], "at 4; 8 are missing at 0"),
        ([Piece(GOOD, 0, PARAMS * 2)], "16 bytes"),
        ([Piece(GOOD, 0, PARAMS[:4]), Piece(GOOD, 4, PARAMS[4:])], "another step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_is_not_the_one_asked_for(answer, match):
    with pytest.raises(TransportError, match=match) as caught:
        stepping(**answer) if isinstance(answer, dict) else stepping(*answer)
    assert type(caught.value) is TransportError
    assert (stepping.session.step_number, stepping.session.chain) == (0, "a" * 64)


def test_a_session_that_is_none():
    with Fake() as fake, adamd.connect(fake.url) as client:
        for change in ({"dtype": 9}, {"durability": 0}, {"chain": ""}, {"chain": "A" * 64}, {"id": ""}):
            before = pb.Session()
            before.CopyFrom(fake.session)
            for name, value in change.items():
                setattr(fake.session, name, value)
            with pytest.raises(TransportError, match="no session|without an id or a chain"):
                client.session("s_1")
            fake.session.CopyFrom(before)


def test_what_speaks_no_grpc_is_told():
    with Scripted(answer(400, b"{}")) as peer, adamd.connect(f"grpc://127.0.0.1:{peer.port}", timeout=QUICK) as client:
        with pytest.raises(TransportError, match="HTTP is spoken at port") as caught:
            client.info()
        assert type(caught.value) is TransportError


def test_a_server_that_hangs_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"grpc://127.0.0.1:{hanging.getsockname()[1]}"
        limits = Timeout(connect=0.5, inactivity=0.3, total=1.5)
        with adamd.connect(url, timeout=limits) as client, pytest.raises(RetriesExhausted):
            client.info()


def test_a_step_without_an_answer_is_ended_and_tried_again():
    tries = []

    def late(header):
        tries.append(header)
        if len(tries) == 1:
            threading.Event().wait(3)
        return (Piece(GOOD, 0, PARAMS),)

    limits = Timeout(connect=5, inactivity=0.5, total=30)
    with Fake(late) as fake, adamd.connect(fake.url, timeout=limits) as client:
        assert client.session("s_1").step(np.ones(2, "f4")).tolist() == [1, 2]
        assert fake.streams == 2
    assert tries[0] == tries[1]


def test_kept_streams_are_reused_and_dead_ones_replaced(direct, server):
    session = direct.create(np.zeros(3, "f4"))
    with Relay(server.grpc_port) as relay, adamd.connect(f"grpc://127.0.0.1:{relay.port}") as client:
        same = client.session(session.id)
        for _ in range(5):
            same.step(np.ones(3, "f4"))
        assert len(client._transport._idle) == 1
        relay.drop()
        same.step(np.ones(3, "f4"))
    assert session.info()["step"] == 6


def test_a_kept_stream_that_dies_under_a_step_is_replaced_within_one_attempt():
    answers = [1, 1, None, 1, None, None]  # the third step's stream dies under it; the fifth's fresh one too
    given = iter(answers)
    with Fake(lambda header: next(given) and (Piece(GOOD, 0, PARAMS),)) as fake:
        transport = GrpcTransport(route(fake.url), QUICK, time.monotonic, meter(False), None)
        layout, deadline = vector_layout((2,)), time.monotonic() + 20
        body = body_of(arrays.matching(np.ones(2, "f4"), layout, "float32", "gradient"), layout)
        into = (memoryview(bytearray(8)),)
        step = Step("s_1", 1, "a" * 64, body, "float32", into, settings={}, metrics={})
        for streams in (1, 1, 2):
            assert transport.send(step, deadline, Cancellation()).step == 1
            assert fake.streams == streams
        with pytest.raises(TransportError) as caught:
            transport.send(step, deadline, Cancellation())
        assert caught.value.extra["phase"] == "silent" and fake.streams == 3
        assert bytes(into[0]) == PARAMS
        transport.close()


def test_many_threads_share_a_client(direct, server):
    made = [direct.create(np.zeros(100, "f4"), durability="memory") for _ in range(MAX_IDLE_STREAMS + 8)]
    with adamd.connect(server.grpc_url) as client:

        def work(one):
            session = client.session(one.id)
            for k in range(5):
                params = session.step(np.full(100, k + 1, "f4"))
                assert len(set(params.tolist())) == 1

        threads = [threading.Thread(target=work, args=(one,)) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(client._transport._idle) <= MAX_IDLE_STREAMS
    assert {one.info()["step"] for one in made} == {5}
    for one in made:
        one.delete(anyway=True)


def test_a_client_may_be_closed_under_its_calls(direct, server):
    for _ in range(20):
        client = adamd.connect(server.grpc_url)
        session = client.create(np.zeros(100, "f4"), durability="memory")
        ended = []

        def work():
            try:
                while True:
                    session.step(np.ones(100, "f4"))
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        session.info()
        client.close()
        thread.join(20)
        assert [type(error) for error in ended] == [TransportError] and "closed" in str(ended[0])
        direct.session(session.id).delete(anyway=True)


def test_a_stopped_attempt_is_not_made(server):
    transport = GrpcTransport(route(server.grpc_url), QUICK, time.monotonic, meter(False), None)
    stop = Cancellation()
    assert stop.cancel() is False
    with pytest.raises(TransportError, match="cancelled"):
        transport.send(Info(), time.monotonic() + 20, stop)
    transport.close()


# -- ways there


def test_tls_is_trusted_by_ssl_cert_file(server, certificate, monkeypatch):  # noqa: F811 - pytest fills in the fixture of that name
    cert, context = certificate
    context.set_alpn_protocols(["h2"])
    with Relay(server.grpc_port, wrap=tls(context)) as relay:
        url = f"grpcs://127.0.0.1:{relay.port}"
        with (
            adamd.connect(url, timeout=QUICK) as client,
            pytest.raises(TransportError, match="SSL_CERT_FILE") as caught,
        ):
            client.info()
        assert not isinstance(caught.value, RetriesExhausted)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with adamd.connect(url) as client:
            session = client.create(np.zeros(1_000_000, "f4"), durability="memory")
            params = session.step(np.ones(1_000_000, "f4"))
            assert set(params.tolist()) == {float(params[0])}
            session.delete(anyway=True)


def test_what_is_missing_is_named():
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "import adamd\n"
        "adamd.connect('http://localhost')\n"
        "try: adamd.connect('grpc://localhost')\n"
        "except ModuleNotFoundError as error: print(error, error.name)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "pip install 'adamd[grpc]'" in said and "http://" in said


def test_nothing_of_grpc_is_imported_before_it_is_used():
    code = "import adamd, sys; adamd.connect('http://localhost'); print('grpc' in sys.modules, 'google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_a_forked_child_is_told_to_connect_again(server):
    with adamd.connect(server.grpc_url) as client:
        client.info()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                client.info()
            except TransportError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"fork" in os.read(reading, 1000)
        os.close(reading)
        os.close(writing)


def test_bars_are_drawn_where_they_are_wanted(server, capsys):
    for progress in (True, False):
        with adamd.connect(server.grpc_url, progress=progress) as client:
            session = client.create(np.zeros(300_000, "f4"), durability="memory")
            session.step(np.ones(300_000, "f4"))
            session.export()
            session.delete(anyway=True)
        assert ("sending" in capsys.readouterr().err) == progress


INTERRUPTED = """
import signal, sys, random
import numpy as np
import adamd

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
client, rnd, interrupts = adamd.connect(sys.argv[1]), random.Random(1), 0
session, gradient = client.create(np.zeros(90_000, "f4"), lr=0.1), np.ones(90_000, "f4")
while interrupts < 400:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rnd.uniform(1e-5, 0.02))
            session.step(gradient)
        finally:  # the alarm may still go off here: the outer try is for that
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
session.step(gradient)
assert session.step_number == session.info()["step"]
client.close()
print("closed")
"""


@pytest.mark.slow
def test_no_ctrl_c_hangs_the_client(server):
    """Ctrl-C inside gRPC leaves calls whose end nobody takes: whoever drops their channel would wait for ever."""
    script = [sys.executable, "-c", INTERRUPTED, server.grpc_url]
    found = subprocess.run(script, capture_output=True, text=True, timeout=240, check=False)
    assert found.stdout == "closed\n", found.stderr[-2000:]
