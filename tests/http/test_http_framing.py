"""Where one request ends and the next begins, whatever the headers say and wherever the packets are cut.

What is inside a body is never read as a request: every body here is one, and asks to delete a session.
"""

import http.client
import io
import socket
import time

import numpy as np
import pytest
from talking import OCTETS, Reply, Talk

GRADIENT = np.ones(4, np.float32).tobytes()
LONG = np.ones(150_000, np.float32).tobytes()  # goes past the parser, straight into the engine's memory
MAYBE = None
BYE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
JDK = [
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
]
H2C = JDK[:1] + JDK[2:]
UPGRADES = {
    "jdk": JDK,
    "curl": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"],
    "tls": ["Upgrade: TLS/1.0", "Connection: Upgrade"],
    "several": ["Connection: keep-alive, upgrade", "Upgrade: h2c, websocket", "upgrade: IRC/6.9"],
}


def request(method, path, *lines, body=b"", version="1.1"):
    head = [f"{method} {path} HTTP/{version}", "Host: localhost", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def sized(method, path, *lines, body, version="1.1"):
    return request(method, path, *lines, f"Content-Length: {len(body)}", body=body, version=version)


def chunked(method, path, *lines, body, trailers=b""):
    cut = len(body) // 3
    text = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]))
    return request(method, path, *lines, "Transfer-Encoding: chunked", body=text + b"0\r\n" + trailers + b"\r\n")


class Answers(io.BytesIO):
    """What came, as a file that every answer is read from in its turn."""

    def makefile(self, mode):
        return self

    def close(self):
        pass


def answers(raw, methods=()):
    """Every answer in what came until the connection's end."""
    file, found = Answers(raw), []
    while file.tell() < len(raw):
        response = http.client.HTTPResponse(file, method=methods[len(found)] if len(found) < len(methods) else "GET")
        response.begin()
        found.append(Reply(response.status, response.headers, response.read()))
    return found


def said(talk, streams, pause=0.05):
    """Send each stream, whose packets are given, on a connection of its own, all at once; return what came to each."""
    socks = [talk.socket() for _ in streams]
    for place in range(max(len(packets) for packets in streams)):
        time.sleep(pause if place else 0)  # so that what was sent before is read before
        for sock, packets in zip(socks, streams, strict=True):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if place < len(packets):
                try:
                    sock.sendall(packets[place])
                except (ConnectionResetError, BrokenPipeError):
                    pass  # refused by then
    return [heard(sock) for sock in socks]


def heard(sock):
    """Everything that comes on a connection to its end; a reset is one too, after what came before it."""
    came = b""
    with sock:
        try:
            while piece := sock.recv(1 << 20):
                came += piece
        except ConnectionResetError:
            pass
    return came


@pytest.fixture(scope="module")
def victim(server):
    """A session that no body of these tests may delete, and the request that would."""
    talk = Talk(server)
    made = talk.vector(1, name="victim", durability="memory")
    yield request("DELETE", "/v1/sessions/victim")
    talk("GET", f"/v1/sessions/{made}").good()
    talk.close()


@pytest.fixture
def stepped(talk):
    """A session after step 1: sent again, that is answered with these parameters."""
    made = talk.vector(4, name="cut", durability="memory")
    yield "/v1/sessions/cut/steps/1", talk.put(made, 1, GRADIENT).good().body
    talk("DELETE", f"/v1/sessions/{made}").good(204)


def cases(path, smuggled):
    """Streams of requests, and the statuses of their answers; the last one says goodbye unless the server does.

    Garbage is told (400) where the requests before it were answered by then, so not always; ``MAYBE``.
    """
    missing = "/v1/sessions/nobody/steps/1"
    step, both = sized("PUT", path, body=GRADIENT), sized("PUT", path, *H2C, body=GRADIENT)
    yield "an upgrade and a body", both + BYE, [200, 200]
    yield "an upgrade and chunks", chunked("PUT", path, *H2C, body=GRADIENT) + BYE, [200, 200]
    yield "upgrades one after another", both * 2 + BYE, [200, 200, 200]
    yield "an upgrade without a body", request("GET", "/livez", *H2C) + step + BYE, [200, 200, 200]
    yield "a body that is a request", sized("PUT", path, *H2C, body=smuggled) + BYE, [422, 200]
    yield "chunks that are a request", chunked("PUT", path, *H2C, body=smuggled) + BYE, [422, 200]
    yield "a GET with a body", sized("GET", "/livez", *H2C, body=smuggled) + BYE, [200, 200]
    yield "a DELETE with a body", sized("DELETE", "/v1/sessions/nobody", body=smuggled) + BYE, [404, 200]
    yield "a HEAD with a body", sized("HEAD", "/livez", *H2C, body=smuggled) + BYE, [200, 200]
    yield "an early answer", sized("PUT", missing, *H2C, body=smuggled) + BYE, [404, 200]
    yield "an early answer to chunks", chunked("PUT", missing, *H2C, body=smuggled) + BYE, [404, 200]
    yield "no such route", sized("POST", "/nowhere", *H2C, body=smuggled) + BYE, [404, 200]
    yield "no such method", sized("PATCH", path, *H2C, body=smuggled) + BYE, [405, 200]
    yield "an early answer, and garbage", sized("PUT", missing, body=GRADIENT) + b"\x00" * 9 + smuggled, [404, MAYBE]
    yield "garbage behind", step + b"\x00garbage\r\n\r\n" + smuggled, [200, MAYBE]
    yield "garbage behind an upgrade", both + b"\x00garbage\r\n\r\n" + smuggled, [200, MAYBE]
    yield "a body that is too long", step + GRADIENT + smuggled, [200, MAYBE]
    yield (
        "a broken chunk",
        step + request("PUT", path, "Transfer-Encoding: chunked", body=b"zz\r\n") + smuggled,
        [200, 400],
    )
    yield "an end", sized("PUT", path, "Connection: close", body=GRADIENT) + smuggled, [200]
    yield (
        "an end with an upgrade",
        sized("PUT", path, "Connection: close, Upgrade", "Upgrade: h2c", body=GRADIENT) + smuggled,
        [200],
    )
    yield "HTTP/1.0", sized("PUT", path, *H2C, body=GRADIENT, version="1.0") + smuggled, [200]
    chunks = chunked("PUT", path, *H2C, body=GRADIENT, trailers=b"Connection: Upgrade\r\nUpgrade: h2c\r\nX: y\r\n")
    yield "an upgrade in trailers", chunks + BYE, [200, 200]
    yield "chunks in HTTP/1.0", chunks.replace(b"HTTP/1.1", b"HTTP/1.0") + smuggled, [400]
    yield "two lengths", sized("PUT", path, *H2C, "Transfer-Encoding: chunked", body=smuggled) + smuggled, [400]
    yield "a tunnel", request("CONNECT", "/livez", f"Content-Length: {len(smuggled)}", body=smuggled), [400]
    yield "a tunnel elsewhere", request("CONNECT", "localhost:1", body=smuggled), [400]
    yield "HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled, [400]


NAMES = [name for name, _, _ in cases("", b"")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if at % 3 else ()) for at, n in enumerate(NAMES)]
)
def test_the_same_answers_wherever_the_packets_are_cut(talk, stepped, victim, name):
    path, wanted = stepped
    stream, statuses = next((stream, statuses) for n, stream, statuses in cases(path, victim) if n == name)
    cuts = [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    methods = ["HEAD"] if "HEAD" in name else []
    for packets, came in zip([[stream], *cuts], said(talk, [[stream], *cuts]), strict=True):
        told = answers(came, methods)
        wanted_here = [status for status in statuses if status is not MAYBE]
        if MAYBE in statuses and len(told) > len(wanted_here):
            wanted_here.append(400)
        assert [one.status for one in told] == wanted_here, (packets, came)
        for one in told:
            if one.headers["Content-Type"] == "application/octet-stream":
                assert one.body == wanted
            if one.status == 422:
                one.problem(422, "wrong_length")


def test_byte_by_byte(talk, stepped, victim):
    path, wanted = stepped
    stream = sized("PUT", path, *JDK, body=GRADIENT) + sized("PUT", path, *JDK, body=victim) + BYE
    (came,) = said(talk, [[stream[at : at + 1] for at in range(len(stream))]], pause=0.0005)
    told = answers(came)
    assert [one.status for one in told] == [200, 422, 200] and told[0].body == wanted


@pytest.mark.parametrize("name", UPGRADES)
def test_an_upgrade_is_ignored(talk, stepped, name):
    path, wanted = stepped
    for make in (sized, chunked):
        (came,) = said(talk, [[make("PUT", path, *UPGRADES[name], body=GRADIENT) + BYE]])
        told = answers(came)
        assert [one.status for one in told] == [200, 200] and told[0].body == wanted
        assert "Upgrade" not in told[0].headers and "Connection" not in told[0].headers


def test_an_upgrade_that_waits_for_a_word(talk, stepped):
    path, wanted = stepped
    head = sized("PUT", path, *JDK, "Expect: 100-continue", body=GRADIENT).removesuffix(GRADIENT)
    with talk.socket() as sock:
        for _ in range(2):
            sock.sendall(head)
            assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(GRADIENT)
            time.sleep(0.05)
            (one,) = answers(sock.recv(10_000))
            assert one.good().body == wanted


@pytest.mark.parametrize("make", [sized, chunked])
def test_a_long_body_behind_an_upgrade(talk, make):
    """Its bytes go past the parser, and the parser goes on behind it."""
    made = talk.vector(len(LONG) // 4, durability="memory")
    wanted = talk.put(made, 1, LONG).good().body
    path = f"/v1/sessions/{made}/steps/1"
    stream = make("PUT", path, *JDK, body=LONG) + make("PUT", path, *JDK, body=LONG) + BYE
    length = len(stream) // 2
    head = stream.index(b"\r\n\r\n")
    cuts = [head, head + 3, head + 4, head + 5, 70_000, length - 90, length - 58, length - 57, length, length + 300]
    streams = [[stream], *([stream[:at], stream[at:]] for at in cuts)]
    for came in said(talk, streams):
        told = answers(came)
        assert [one.status for one in told] == [200, 200, 200]
        assert told[0].body == told[1].body == wanted


def test_what_an_early_answer_leaves_of_a_long_body_is_no_request(talk, victim):
    """The reader gives up in the middle, and every byte that follows looks like a request."""
    made = talk.vector(len(LONG) // 4, durability="memory")
    bad = np.full(len(LONG) // 4, np.nan, np.float32).tobytes()
    body = bad[: len(bad) // 2] + (victim * (len(bad) // len(victim)))[: len(bad) // 2]
    stream = sized("PUT", f"/v1/sessions/{made}/steps/1", *JDK, body=body)
    half = len(stream) // 2
    for came in said(talk, [[stream + BYE], [stream[:half], stream[half:] + BYE], [stream[:-1], stream[-1:] + BYE]]):
        told = answers(came)
        assert [one.status for one in told] == [422, 200], came[:2000]
        told[0].problem(422, "bad_gradient")


def test_what_was_whole_is_answered_before_what_is_broken(talk, victim):
    """Steps that count are acknowledged, in their order, though garbage came in the same packet."""
    broken = request("PUT", "/v1/sessions/nobody/steps/4", "Transfer-Encoding: chunked", body=b"4\r\nabcdX")
    for end, statuses in ((b"\x00\r\n\r\n", [200] * 3), (broken, [200, 200, 200, 400])):
        made = talk.vector(4, durability="memory")
        steps = b"".join(sized("PUT", f"/v1/sessions/{made}/steps/{n}", body=GRADIENT) for n in (1, 2, 3))
        (came,) = said(talk, [[steps + end + victim]])
        told = answers(came)
        assert [one.status for one in told] == statuses
        assert [one.step for one in told[:3]] == [1, 2, 3]
        if 400 in statuses:
            told[3].problem(400, "malformed_request")
            assert told[3].headers["Connection"] == "close"
        assert talk("GET", f"/v1/sessions/{made}").step == 3


def test_the_log_is_quiet_about_upgrades(talk, stepped, server):
    path, _ = stepped
    said(talk, [[sized("PUT", path, *JDK, body=GRADIENT) + BYE]])
    assert not [line for line in server.lines if "pgrade" in line]


def test_a_connection_that_asked_for_an_upgrade_is_kept(talk, stepped):
    """As the JDK's client does: the first request asks for HTTP/2, and those after it come on the same connection."""
    path, wanted = stepped
    assert talk("PUT", path, GRADIENT, {**OCTETS, **dict(line.split(": ") for line in JDK)}).good().body == wanted
    local = talk.connection.sock.getsockname()
    for _ in range(3):
        assert talk("PUT", path, GRADIENT, OCTETS).good().body == wanted
    assert talk.connection.sock.getsockname() == local


def test_http_1_0_gets_no_chunks(talk):
    """RFC 9112, 6.1: who speaks HTTP/1.0 knows no Transfer-Encoding, and would take its lines for a part of the answer."""
    made = talk.vector(len(LONG) // 4, durability="memory")
    wanted = talk("GET", f"/v1/sessions/{made}/parameters").good()
    assert wanted.headers["Transfer-Encoding"] == "chunked"
    (came,) = said(talk, [[request("GET", f"/v1/sessions/{made}/parameters", version="1.0")]])
    (told,) = answers(came)
    assert "Transfer-Encoding" not in told.headers and int(told.headers["Content-Length"]) == len(told.body)
    assert told.body == wanted.body
