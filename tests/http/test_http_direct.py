"""Bodies straight from the socket into the engine's memory: every byte once, whoever reads it and however it comes."""

import socket
import time

import numpy as np
import pytest
from talking import OCTETS, read_reply

SIZE = 300_000  # 1.2 MB: beyond what is handed on in pieces, with two pieces checked while it arrives
GRADIENT = np.random.default_rng(7).standard_normal(SIZE, np.float32)


@pytest.fixture
def twins(talk):
    """Two sessions alike, one of them a step ahead; and what that step answered."""
    one, other = (talk.vector(SIZE, durability="memory") for _ in range(2))
    return one, talk.put(other, 1, GRADIENT).good().body


def head(session, number=1, *lines, length=GRADIENT.nbytes):
    lines = [
        f"PUT /v1/sessions/{session}/steps/{number} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        *lines,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("pieces", [[1], [70_000, 1, 300_000, 99], [600_000, 524_288]], ids=str)
def test_a_body_in_pieces(talk, twins, pieces):
    session, wanted = twins
    raw = head(session) + GRADIENT.tobytes()
    with talk.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in pieces:
            sock.sendall(raw[:size])
            raw = raw[size:]
            time.sleep(0.02)
        sock.sendall(raw)
        assert read_reply(sock).good().body == wanted


def test_the_next_request_right_behind_a_body_is_not_taken_for_it(talk, twins):
    session, wanted = twins
    body = GRADIENT.tobytes()
    with talk.socket() as sock, sock.makefile("rb") as file:
        sock.sendall(head(session) + body + head(session, 2) + body + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_reply(One(file)).good().body == wanted
        assert read_reply(One(file)).good().step == 2
        assert read_reply(One(file)).good().json == {"status": "alive"}


class One:
    """The same file for every answer: each one's own would read ahead into the next."""

    def __init__(self, file):
        self.file = file

    def makefile(self, mode):
        return self

    def __getattr__(self, name):
        return getattr(self.file, name)

    def close(self):
        pass


def test_a_body_that_is_waited_for(talk, twins):
    session, wanted = twins
    with talk.socket() as sock:
        sock.sendall(head(session, 1, "Expect: 100-continue"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(GRADIENT.tobytes())
        assert read_reply(sock).good().body == wanted


def test_a_body_without_a_length_takes_the_usual_way(talk, twins):
    session, wanted = twins
    chunks = (GRADIENT.tobytes()[start : start + 99_999] for start in range(0, GRADIENT.nbytes, 99_999))
    assert talk("PUT", f"/v1/sessions/{session}/steps/1", chunks, OCTETS).good().body == wanted


def test_what_is_given_up_in_the_middle_is_dropped_to_its_end(talk, twins):
    session, wanted = twins
    bad = GRADIENT.copy()
    bad[17] = np.nan
    with talk.socket() as sock:
        sock.sendall(head(session) + bad.tobytes()[:-400_000])
        time.sleep(0.1)
        sock.sendall(bad.tobytes()[-400_000:])
        told = read_reply(sock).problem(422, "bad_gradient")
        assert told["index"] == 17
        sock.sendall(head(session) + GRADIENT.tobytes())  # on the same connection: nothing is left over
        assert read_reply(sock).good().body == wanted


@pytest.mark.parametrize("end", ["close", "reset", "half"])
def test_a_client_that_goes_away_in_the_middle_changes_nothing(talk, twins, end):
    session, wanted = twins
    before = talk.standing(session)
    with talk.socket() as sock:
        sock.sendall(head(session) + GRADIENT.tobytes()[:700_000])
        time.sleep(0.05)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if end == "half":
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    assert talk.standing(session) == before
    assert talk.put(session, 1, GRADIENT).good().body == wanted


def test_an_answer_without_a_body_comes_too(talk, twins):
    session, _ = twins
    reply = talk.put(session, 1, GRADIENT, {"Prefer": "return=minimal"}).good(204)
    assert reply.step == 1
    assert reply.body == b""
    with talk.socket() as sock:
        sock.sendall(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_reply(sock, "HEAD").status in (200, 405)
