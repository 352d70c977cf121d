"""Bad input below the body: lengths, encodings, heads, and clients that vanish or stall. Raw sockets throughout."""

import http.client
import json
import socket
import time

import numpy as np
import pytest
from talking import JSON, OCTETS, SAFETENSORS, Talk, read_reply, watched

GAP = 1.0
LIMIT = 1 << 20
SIZE = 16


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A server with little patience and little room."""
    env = {"ADAMD_UPLOAD_GAP": GAP, "ADAMD_MAX_BODY_BYTES": LIMIT, "ADAMD_IN_FLIGHT_BYTES": 16 << 20}
    env |= {"ADAMD_MEMORY_SESSION_BYTES": 2 << 20}
    with watched(tmp_path_factory.mktemp("narrow"), env=env) as one:
        yield one
        talk = Talk(one)
        assert "adamd_in_flight_bytes 0.0" in talk("GET", "/metrics").body.decode()
        talk.close()


@pytest.fixture(scope="module")
def talk(narrow):
    one = Talk(narrow)
    yield one
    one.close()


@pytest.fixture(scope="module")
def session(talk):
    made = talk.vector(SIZE)
    talk.put(made, 1, np.ones(SIZE, np.float32)).good()
    return made


@pytest.fixture
def unchanged(talk, session):
    talk.close()  # a test may have taken longer than a keep-alive connection lives
    before = talk.standing(session)
    yield session
    assert talk.standing(session) == before


def put(session, *lines, number=2, body=b""):
    head = [f"PUT /v1/sessions/{session}/steps/{number} HTTP/1.1", "Host: localhost", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def alive(talk):
    talk("GET", "/livez").good()


# -- lengths


@pytest.mark.parametrize(
    "length", ["abc", "-1", "+64", "1e3", "6 4", "0x40", "64.0", "", "9" * 30, "64, 64", "\xb9", "64\x00"], ids=repr
)
def test_a_content_length_that_is_none(talk, unchanged, length):
    reply = talk.raw(put(unchanged, f"Content-Length: {length}", body=bytes(64)), finish=False)
    reply.problem(400, "malformed_request")
    assert reply.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 64", "Content-Length: 64"],
        ["Content-Length: 64", "Content-Length: 0"],
        ["Content-Length: 64", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 64"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length: 64", "X: a\r\n b"],
        ["Content-Length: 64", "no colon"],
        ["Content-Length: 64", "b\x00d: x"],
        ["Content-Length: 64", "bad: \x00"],
        ["Content-Length: 64", "bare: a\nb: c"],
    ],
    ids=str,
)
def test_a_request_that_two_readers_could_take_differently(talk, unchanged, lines):
    reply = talk.raw(put(unchanged, *lines, body=b"40\r\n" + bytes(64) + b"\r\n0\r\n\r\n"), finish=False)
    if reply is not None and reply.status == 422:  # read in one way only, and refused as a gradient
        reply.problem(422, "wrong_length")
    else:
        reply.problem(400, "malformed_request")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",  # Redis
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"FROBNICATE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/sessions/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET  /x  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 100,
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://example.org/v1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_nonsense_is_answered_with_a_problem(talk, data):
    reply = talk.raw(data, finish=False)
    assert reply.status in (400, 404)
    reply.problem(reply.status, reply.json["code"])
    alive(talk)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"40\r\n" + bytes(64) + b"XX"])
def test_a_chunk_that_is_none(talk, unchanged, chunk):
    talk.raw(put(unchanged, "Transfer-Encoding: chunked") + chunk, finish=False).problem(400, "malformed_request")


def test_trailers_and_chunk_extensions_mean_nothing(talk, session):
    made = talk.vector(SIZE)
    gradient = np.ones(SIZE, np.float32).tobytes()
    body = b"40;x=y\r\n" + gradient + b'\r\n0\r\nAdamd-Settings: {"lr": 9}\r\nIf-Match: junk\r\n\r\n'
    talk.raw(put(made, "Transfer-Encoding: chunked", number=1) + body, finish=False).good()
    assert talk("GET", f"/v1/sessions/{made}").json["optimizer"]["lr"] == 0.001


# -- too large


@pytest.mark.parametrize("kind", [OCTETS, SAFETENSORS, JSON], ids=lambda kind: kind["Content-Type"])
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(talk, unchanged, kind):
    """Nothing but the head is sent, and the answer comes."""
    lines = [f"Content-Type: {kind['Content-Type']}", f"Content-Length: {LIMIT + 1}"]
    reply = talk.raw(put(unchanged, *lines), finish=False)
    if kind is OCTETS:
        reply.problem(422, "wrong_length")
    else:
        reply.problem(413, "too_large")
    for method, path in [("POST", "/v1/sessions"), ("PATCH", f"/v1/sessions/{unchanged}")]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
        talk.raw(head.encode(), finish=False).problem(413, "too_large")


@pytest.mark.parametrize("declared", [LIMIT + 1, 10 * LIMIT, 2**60])
def test_who_expects_100_continue_is_refused_without_it(talk, unchanged, declared):
    """The client waits for a word before it sends: it gets the refusal, never 100, and the connection ends."""
    lines = ["Content-Type: application/json", f"Content-Length: {declared}", "Expect: 100-continue"]
    with talk.socket() as sock:
        sock.sendall(put(unchanged, *lines))
        reply = read_reply(sock)
        reply.problem(413, "too_large")
        assert reply.headers["Connection"] == "close"
        assert sock.recv(1) == b""


def test_who_expects_100_continue_gets_it_when_the_body_is_wanted(talk):
    made = talk.vector(SIZE)
    gradient = np.ones(SIZE, np.float32).tobytes()
    with talk.socket() as sock:
        sock.sendall(put(made, "Content-Length: 64", "Expect: 100-continue", number=1))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(gradient)
        reply = read_reply(sock).good()
        assert reply.step == 1 and "Connection" not in reply.headers
        sock.sendall(put(made, "Content-Length: 64", "Expect: 100-continue", number=1))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(gradient)
        assert read_reply(sock).good().headers["Adamd-Replayed"] == "true"


@pytest.mark.parametrize(
    "kind", ["application/json", "application/vnd.safetensors", "application/octet-stream"], ids=lambda kind: kind[12:]
)
def test_where_no_length_is_declared_the_bytes_are_counted(talk, unchanged, kind):
    """Chunks without end: refused at the limit, long before a client that never stops has stopped."""
    with talk.socket() as sock:
        sock.sendall(put(unchanged, f"Content-Type: {kind}", "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 100 * LIMIT:
                sock.sendall(chunk)
                sent += 65536
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 40 * LIMIT
        reply = read_reply(sock)
        if kind.endswith("octet-stream"):
            reply.problem(422, "wrong_length")
        else:
            reply.problem(413, "too_large")


def test_a_refused_client_that_goes_on_sending_still_sees_why(talk, unchanged):
    """http.client reads nothing before it has sent everything: a connection closed at once would lose the answer."""
    for body in (b"x" * LIMIT, b"x" * (LIMIT // 2)):
        connection = http.client.HTTPConnection(*talk.address, timeout=30)
        for _ in range(2):
            connection.request("PUT", f"/v1/sessions/{unchanged}/steps/2", body, OCTETS)
            response = connection.getresponse()
            assert response.status == 422 and json.loads(response.read())["code"] == "wrong_length"
        connection.close()


# -- media types


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip", "x" * 1000, ""])
def test_an_encoded_body(talk, unchanged, encoding):
    talk.put(unchanged, 2, bytes(64), {"Content-Encoding": encoding}).problem(415, "unsupported_media_type")
    talk("POST", "/v1/sessions", b"{}", {**JSON, "Content-Encoding": encoding}).problem(415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-npy", "multipart/form-data; boundary=x", "application/*", "", ";", "x" * 5000]
)
def test_an_unknown_media_type(talk, unchanged, kind):
    talk.put(unchanged, 2, bytes(64), {"Content-Type": kind}).problem(415, "unsupported_media_type")
    talk("POST", "/v1/sessions", b"{}", {"Content-Type": kind}).problem(415, "unsupported_media_type")
    talk("PATCH", f"/v1/sessions/{unchanged}", b"{}", {"Content-Type": kind}).problem(415, "unsupported_media_type")


def test_what_curl_sends_by_itself_is_told_what_to_add(talk, unchanged):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for reply in (talk.put(unchanged, 2, bytes(64), form), talk("POST", "/v1/sessions", b'{"parameters": [1]}', form)):
        told = reply.problem(415, "unsupported_media_type")
        assert "-H 'Content-Type: application/json'" in told["detail"]
        assert "-H 'Content-Type: application/octet-stream'" in told["detail"]


def test_octets_do_not_make_a_session_and_safetensors_do_not_change_one(talk, unchanged):
    talk("POST", "/v1/sessions", bytes(64), OCTETS).problem(415, "unsupported_media_type")
    talk("PATCH", f"/v1/sessions/{unchanged}", bytes(64), SAFETENSORS).problem(415, "unsupported_media_type")


# -- routes


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v2/sessions",
        "/v1/sessions/",
        "//v1/sessions",
        "/v1/sessions/a/b",
        "/v1/sessions/a/steps/",
        "/%00",
        "/v1/sessions/a/steps/1/",
    ],
)
def test_an_unknown_route(talk, path):
    for method in ("GET", "PUT", "POST", "DELETE", "OPTIONS", "TRACE"):
        talk(method, path, b"x" if method in ("PUT", "POST") else None).problem(404, "no_route")


def test_a_method_that_a_path_does_not_have(talk, session):
    allowed = {
        "/": "GET, HEAD",
        "/v1/sessions": "GET, HEAD, POST",
        f"/v1/sessions/{session}": "DELETE, GET, HEAD, PATCH",
        f"/v1/sessions/{session}/parameters": "GET, HEAD, PUT",
        f"/v1/sessions/{session}/steps": "POST",
        f"/v1/sessions/{session}/steps/1": "PUT",
        f"/v1/sessions/{session}/state": "GET, HEAD",
        "/livez": "GET, HEAD",
    }
    for path, methods in allowed.items():
        for method in ("OPTIONS", "TRACE", "PROPFIND", "HEAD"):
            if method in methods:
                continue
            reply = talk(method, path)
            assert reply.headers["Allow"] == methods
            if method == "HEAD":
                assert reply.status == 405 and reply.body == b""
                assert reply.headers["Content-Type"] == "application/problem+json"
            else:
                reply.problem(405, "method_not_allowed")


def test_an_upgrade_is_not_taken(talk, unchanged):
    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"]
    reply = talk.raw(put(unchanged, *lines, "Content-Length: 3", body=b"abc"), finish=False)
    reply.problem(422, "wrong_length")


# -- heads


@pytest.mark.parametrize("what", ["a header", "many headers", "a path", "a header's name"])
def test_a_head_without_end(talk, narrow, what):
    before = narrow.resident()
    start = {
        "a header": b"GET /livez HTTP/1.1\r\nX: ",
        "many headers": b"GET /livez HTTP/1.1\r\n",
        "a path": b"GET /",
        "a header's name": b"GET /livez HTTP/1.1\r\n",
    }[what]
    piece = b"a: b\r\n" * 10_000 if what == "many headers" else b"x" * 60_000
    with talk.socket() as sock:
        sent = 0
        try:
            sock.sendall(start)
            while sent < 64 << 20:
                sock.sendall(piece)
                sent += len(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 32 << 20
        reply = read_reply(sock)
        if reply is not None:  # a reset may have overtaken it
            reply.problem(431, "head_too_large")
    assert narrow.resident() - before < 20 << 20
    alive(talk)


def test_a_head_that_is_too_large_is_told_so(talk):
    reply = talk.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", finish=False)
    reply.problem(431, "head_too_large")
    talk("GET", "/livez", headers={"X": "x" * 60_000}).good()


def test_trailers_without_end(talk, narrow, unchanged):
    before = narrow.resident()
    with talk.socket() as sock:
        sock.sendall(put(unchanged, "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\nX: ")
        sent = 0
        try:
            while sent < 64 << 20:
                sock.sendall(b"x" * 60_000)
                sent += 60_000
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 32 << 20
    assert narrow.resident() - before < 20 << 20


def test_a_head_that_never_ends_is_given_up(talk):
    with talk.socket() as slow, talk.socket() as silent:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: y")
        read_reply(slow).problem(408, "upload_timeout")
        assert silent.recv(1) == b""  # it said nothing at all: closed, without a word


def test_a_second_request_in_pieces_is_given_up_too(talk):
    with talk.socket() as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP")
        read_reply(sock).good()
        read_reply(sock).problem(408, "upload_timeout")


# -- clients that stall or vanish


@pytest.mark.parametrize("lines", [["Content-Length: 64"], ["Transfer-Encoding: chunked"]], ids=["declared", "chunked"])
@pytest.mark.parametrize("kind", [OCTETS, SAFETENSORS, JSON], ids=lambda kind: kind["Content-Type"][12:])
def test_an_upload_that_stalls_is_given_up(talk, unchanged, lines, kind):
    with talk.socket() as sock:
        start = b"8\r\n12345678\r\n" if "chunked" in lines[0] else b"12345678"
        sock.sendall(put(unchanged, f"Content-Type: {kind['Content-Type']}", *lines, body=start))
        told = read_reply(sock).problem(408, "upload_timeout")
        assert told["step"] == 1
        assert sock.recv(1) == b""  # nor is the rest waited for


@pytest.mark.parametrize("size", [SIZE, 200_000])
def test_an_upload_that_drips_is_given_up(talk, size):
    """A byte before each patience ends would otherwise hold its room for ever."""
    made = talk.vector(size)
    before = talk.standing(made)
    with talk.socket() as sock:
        sock.sendall(put(made, f"Content-Length: {4 * size}", number=1))
        sock.settimeout(GAP / 4)
        started = time.monotonic()
        for _ in range(63):
            try:
                sock.sendall(b"x")
                first = sock.recv(1, socket.MSG_PEEK)
                assert first
                break
            except TimeoutError:
                continue
        else:
            raise AssertionError(f"it was waited for, for {time.monotonic() - started:.0f} s")
        sock.settimeout(30)
        read_reply(sock).problem(408, "upload_timeout")
    assert talk.standing(made) == before


@pytest.mark.parametrize("sent", [0, 8, 63])
def test_a_client_that_vanishes_leaves_nothing(talk, unchanged, sent):
    for _ in range(5):
        with talk.socket() as sock:
            sock.sendall(put(unchanged, "Content-Length: 64", body=bytes(sent)))
    for _ in range(5):
        with talk.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
            sock.sendall(put(unchanged, "Content-Length: 64", body=bytes(sent)))


def test_half_a_large_body_leaves_nothing_behind(talk):
    """Large enough to be logged while it arrives: what was logged is not applied, and the next attempt is."""
    made = talk.vector(200_000)
    gradient = np.ones(200_000, np.float32).tobytes()
    before = talk.standing(made)
    for _ in range(3):
        with talk.socket() as sock:
            sock.sendall(put(made, f"Content-Length: {len(gradient)}", number=1, body=gradient[:700_000]))
    with talk.socket() as sock:
        sock.sendall(put(made, f"Content-Length: {len(gradient)}", number=1, body=gradient[:700_000]))
        sock.shutdown(socket.SHUT_WR)
        reply = read_reply(sock)
        assert reply is None or 400 <= reply.status < 500
    assert talk.standing(made) == before
    assert talk.put(made, 1, gradient).good().step == 1


def test_too_many_bytes_in_flight_are_refused_with_when_to_come_back(talk, narrow):
    """16 MiB in flight: the second chunked JSON body, whose length nobody knows, does not fit beside the first."""
    made = talk.vector(SIZE)
    with talk.socket() as first:
        first.sendall(
            put(made, "Content-Type: application/json", "Transfer-Encoding: chunked", number=1, body=b"1\r\n{\r\n")
        )
        deadline = time.monotonic() + 20
        while "adamd_in_flight_bytes 0.0" in talk("GET", "/metrics").body.decode():
            assert time.monotonic() < deadline
        with talk.socket() as second:
            second.sendall(put(made, "Content-Type: application/json", "Transfer-Encoding: chunked", number=1))
            reply = read_reply(second)
            assert reply.problem(429, "busy")["step"] == 0
            assert int(reply.headers["Retry-After"]) >= 1
        talk.put(made, 1, np.ones(SIZE, np.float32)).good()  # what fits is served meanwhile


@pytest.mark.parametrize("place", [0, 100_000, 199_999])
def test_a_connection_lives_on_after_a_large_body_was_refused_in_the_middle(talk, place):
    made = talk.vector(200_000)
    before = talk.standing(made)
    bad = np.ones(200_000, np.float32)
    bad[place] = np.nan
    connection = http.client.HTTPConnection(*talk.address, timeout=30)
    for number, body, status in [(1, bad, 422), (1, np.ones(200_000, np.float32), 200), (2, bad, 422)]:
        connection.request("PUT", f"/v1/sessions/{made}/steps/{number}", body.tobytes(), OCTETS)
        response = connection.getresponse()
        told = response.read()
        assert response.status == status
        if status == 422:
            assert json.loads(told)["index"] == place
            if number == 1:
                assert talk.standing(made) == before
    connection.close()
    assert talk("GET", f"/v1/sessions/{made}").step == 1


def test_memory_sessions_are_bounded_however_small_they_are(talk):
    """A session of one parameter has a head, a ring and keys besides: their number is bounded too."""
    made = []
    for _ in range(100):
        reply = talk("POST", "/v1/sessions", {"parameters": [1], "durability": "memory"})
        if reply.status != 201:
            break
        made.append(reply.json["id"])
    assert int(reply.headers["Retry-After"]) >= 1 and 8 <= len(made) <= 20
    reply.problem(429, "busy")
    names = [{"name": str(i), "shape": [0]} for i in range(4000)]
    big = {"layout": names, "dtype": "float32", "durability": "memory"}  # no elements, but 4,000 names
    talk("POST", "/v1/sessions", big).problem(413, "too_large")
    for one in made:
        talk("DELETE", f"/v1/sessions/{one}").good(204)


def test_garbage_behind_a_request_does_not_spoil_its_answer(talk):
    """What follows a whole request must not be taken for its answer: a 400 there would belie an applied step."""
    made = talk.vector(200_000)
    gradient = np.ones(200_000, np.float32).tobytes()
    with talk.socket() as sock:
        sock.sendall(put(made, f"Content-Length: {len(gradient)}", number=1, body=gradient + b"\x00garbage\r\n\r\n"))
        assert read_reply(sock).good().step == 1
        assert sock.recv(1) == b""


@pytest.mark.parametrize("size", [SIZE, 200_000])
def test_pipelined_requests_are_answered_in_order(talk, size):
    made = talk.vector(size)
    gradient = np.ones(size, np.float32).tobytes()
    with talk.socket() as sock:
        several = (put(made, f"Content-Length: {len(gradient)}", number=n, body=gradient) for n in range(1, 6))
        sock.sendall(b"".join(several))
        with sock.makefile("rb") as file:
            for n in range(1, 6):
                response = http.client.HTTPResponse(_Kept(file))
                response.begin()
                assert response.status == 200 and int(response.headers["Adamd-Step"]) == n
                assert len(response.read()) == len(gradient)


class _Kept:
    """http.client makes a file of its own from a socket, and would read ahead into the next answer."""

    def __init__(self, file):
        self._file = file

    def makefile(self, mode):
        return self

    def __getattr__(self, name):
        return getattr(self._file, name)

    def close(self):
        pass
