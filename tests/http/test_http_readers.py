"""Slow readers: each byte belongs to their step, and what they hold is bounded in bytes and time.

An answer's buffer is used again only when the transport has really sent it. uvicorn's ``send()`` returns earlier,
and a buffer that was reused then reached the client as garbage, with status 200.
"""

import socket
import time

import numpy as np
import pytest
from talking import Talk, read_reply, watched

SIZE = 10_000_000
GAP = 2.0


def slow_socket(talk):
    """A socket that takes little at once, so that the rest of an answer waits in the server."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    sock.settimeout(60)
    sock.connect(talk.address)
    return sock


def ask(sock, session, number, gradient):
    head = f"PUT /v1/sessions/{session}/steps/{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {gradient.nbytes}\r\n\r\n"
    sock.sendall(head.encode())
    sock.sendall(gradient)


def head_of(sock):
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 200"), head
    return head.lower()


def gauge(talk, name):
    line = next(line for line in talk("GET", "/metrics").body.decode().splitlines() if line.startswith(name + " "))
    return float(line.split()[1])


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serving(where, gap):
    env = {"ADAMD_UPLOAD_GAP": gap, "ADAMD_IN_FLIGHT_BYTES": 5 * 4 * SIZE, "ADAMD_IDLE_BUFFER_BYTES": 512 << 20}
    with watched(where, env=env) as one:
        yield one


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A server with room for five vectors, which waits for its readers."""
    yield from serving(tmp_path_factory.mktemp("patient"), 60)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """The same, which drops readers soon."""
    yield from serving(tmp_path_factory.mktemp("impatient"), GAP)


def talking(server):
    one = Talk(server)
    until(lambda: gauge(one, "adamd_in_flight_bytes") == 0)
    yield one
    one.close()


@pytest.fixture
def talk(patient):
    yield from talking(patient)


@pytest.fixture
def hurry(impatient):
    yield from talking(impatient)


def test_every_byte_of_a_slow_answer_is_its_own_steps(talk):
    """Three readers dawdle over steps 1, 2 and 3 while others' steps reuse every buffer that is free."""
    session = talk.vector(SIZE, durability="memory")
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal(SIZE, np.float32) for _ in range(2)]
    slow = []
    for number in (1, 2):
        sock = slow_socket(talk)
        ask(sock, session, number, gradients[number - 1])
        head_of(sock)
        exact = talk.put(session, number, gradients[number - 1]).good()  # a replay: the same bits, read at once
        assert exact.headers["Adamd-Replayed"] == "true"
        slow.append((sock, exact.body))
    for number in (3, 4, 5):
        talk.put(session, number, gradients[number % 2]).good()
    for sock, exact in slow:
        got = bytearray()
        while len(got) < len(exact):
            part = sock.recv(1 << 20)
            assert part
            got += part
            if len(got) < 1 << 20:
                time.sleep(0.01)
        assert got == exact
        sock.close()
    until(lambda: gauge(talk, "adamd_in_flight_bytes") == 0)


def test_a_reader_that_stops_is_dropped_and_its_memory_comes_back(hurry, impatient):
    talk = hurry
    session = talk.vector(SIZE, durability="memory")
    sock = slow_socket(talk)
    ask(sock, session, 1, np.ones(SIZE, np.float32))
    head_of(sock)
    until(lambda: gauge(talk, "adamd_in_flight_bytes") == 0)  # dropped, without a word from the reader
    got = 0
    try:
        while part := sock.recv(1 << 20):
            got += len(part)
    except ConnectionResetError:
        pass
    assert got < 4 * SIZE
    sock.close()
    assert talk("GET", f"/v1/sessions/{session}").step == 1  # it was applied and said so: a replay reads it
    assert "a reader has stopped reading" in impatient.log()


@pytest.mark.slow
def test_a_reader_that_is_slow_but_reads_is_not_dropped(hurry):
    talk = hurry
    session = talk.vector(SIZE // 10, durability="memory")
    sock = slow_socket(talk)
    ask(sock, session, 1, np.ones(SIZE // 10, np.float32))
    head_of(sock)
    exact = talk.put(session, 1, np.ones(SIZE // 10, np.float32)).good().body
    got, started = bytearray(), time.monotonic()
    while time.monotonic() < started + 3 * GAP:
        got += sock.recv(50_000)
        time.sleep(0.2)
    while part := sock.recv(1 << 20):
        got += part
        if len(got) >= len(exact):
            break
    assert got == exact
    sock.close()


def test_what_slow_readers_hold_is_bounded(talk, patient):
    """Room for five vectors, and five readers that do not read: the sixth is told to come back, and so is a step."""
    sessions = [talk.vector(SIZE, durability="memory") for _ in range(2)]
    gradient = np.ones(SIZE, np.float32)
    before = patient.resident()
    stalled = []
    refused = None
    while refused is None and len(stalled) < 20:
        sock = slow_socket(talk)
        stalled.append(sock)
        path = f"/v1/sessions/{sessions[len(stalled) % 2]}/parameters"
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/octet-stream\r\n\r\n".encode())
        if sock.recv(12) != b"HTTP/1.1 200":
            refused = sock
    assert refused is not None
    assert len(stalled) - 1 == 5
    assert gauge(talk, "adamd_in_flight_bytes") == 5 * 4 * SIZE  # an answer counts as long as it is there
    here = talk("GET", f"/v1/sessions/{sessions[0]}").step
    reply = talk.put(sessions[0], 1, gradient)
    assert reply.problem(429, "busy")["step"] == here == 0  # before the body was read, and before any commit
    assert int(reply.headers["Retry-After"]) >= 1
    assert patient.resident() - before < 8 * 4 * SIZE
    for sock in stalled:
        sock.close()
    until(lambda: gauge(talk, "adamd_in_flight_bytes") == 0)
    talk.put(sessions[0], 1, gradient).good()


@pytest.mark.parametrize("accept", ["application/json", "application/vnd.safetensors"])
def test_a_long_answer_in_pieces_is_dropped_too(hurry, accept):
    talk = hurry
    session = talk.vector(SIZE // 2, durability="memory")
    sock = slow_socket(talk)
    path = f"/v1/sessions/{session}/parameters"
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
    head_of(sock)
    until(lambda: gauge(talk, "adamd_in_flight_bytes") == 0)
    assert talk("GET", "/readyz").good()
    sock.close()


def test_a_long_answer_in_json_is_exact_and_leaves_others_their_turn(talk, patient):
    """A million numbers: written in pieces, in a thread; the server answers others meanwhile and stays small."""
    session = talk.vector(1_000_000, durability="memory")
    exact = talk("GET", f"/v1/sessions/{session}/parameters", headers={"Accept": "application/octet-stream"}).array()
    before = patient.resident()
    with talk.socket() as sock:
        sock.sendall(f"GET /v1/sessions/{session}/parameters HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        turns = 0
        for _ in range(20):
            talk("GET", "/livez").good()
            turns += 1
        reply = read_reply(sock).good()
    assert np.array_equal(np.array(reply.json["parameters"], np.float32), exact)
    assert turns == 20 and patient.resident() - before < 60 << 20


def test_a_client_that_goes_away_in_the_middle_of_an_answer_costs_nothing(talk):
    session = talk.vector(SIZE, durability="memory")
    for number in range(1, 4):
        sock = slow_socket(talk)
        ask(sock, session, number, np.ones(SIZE, np.float32))
        head_of(sock)
        sock.close()
    until(lambda: gauge(talk, "adamd_in_flight_bytes") == 0)
    assert talk("GET", f"/v1/sessions/{session}").step == 3
