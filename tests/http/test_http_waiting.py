"""Requests that wait for a task, a step or events end with their client, with the server, in time."""

import asyncio
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
from talking import OCTETS, Talk, watched

from adamd_service.engine.admission import WaitingRoom
from adamd_service.http.api.event_stream import KEEP_ALIVE, EventStream
from adamd_service.rounds import RoundEvent

ONE = np.ones(3, "<f4").tobytes()
PATIENCE = 60  # seconds until a test gives up; nothing is measured by it


def made(talk, **rounds):
    optimizer = {"name": "sgd", "lr": 1}
    return talk.create([0.0, 0.0, 0.0], optimizer=optimizer, dtype="float32", **({"rounds": rounds} if rounds else {}))[
        "id"
    ]


def give(talk, session, client, number=1):
    return talk("PUT", f"/v1/sessions/{session}/rounds/{number}/contributions/{client}", ONE, OCTETS).good(202)


def waiting(talk):
    """How many requests wait at the server, by its own count."""
    text = talk("GET", "/metrics").good().body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("adamd_waiting_requests ")]
    return int(float(line.split()[1]))


def until(what):
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server of its own: how many wait is counted."""
    with watched(tmp_path_factory.mktemp("waiting"), env={"ADAMD_MAX_WAITING": 3}) as one:
        yield one


@pytest.fixture
def talk(own):
    one = Talk(own)
    yield one
    until(lambda: waiting(one) == 0)  # nobody is left waiting
    one.close()


@contextmanager
def asked(own, path, method="GET"):
    """A request under way, on a connection of its own."""
    with socket.create_connection(Talk(own).address, PATIENCE) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield sock


def received(sock, wanted):
    """What has come, as soon as ``wanted`` is in it."""
    data = b""
    while wanted not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


def test_a_task_is_waited_for(own, talk):
    session = made(talk, quorum=2)
    give(talk, session, "a")
    with asked(own, f"/v1/sessions/{session}/rounds/current?client=a&wait_s=60") as waits:
        until(lambda: waiting(talk) == 1)
        give(talk, session, "b")
        told = received(waits, b'"private"')
    assert b"HTTP/1.1 200" in told and b'"round":2' in told and b'"kind":"train"' in told


def test_nothing_came_in_time(talk):
    session = made(talk, quorum=2)
    give(talk, session, "a")
    none = talk("GET", f"/v1/sessions/{session}/rounds/current?client=a&wait_s=0.05").good(204)
    assert none.headers["Retry-After"] == "0" and none.body == b""
    later = talk("GET", f"/v1/sessions/{session}/parameters?min_step=1&wait_s=0.05").good(204)
    assert later.headers["Retry-After"] == "0"
    talk("GET", f"/v1/sessions/{session}/parameters?min_step=1").good(204)


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_step_is_waited_for_with_or_without_rounds(own, talk, durability):
    session = talk.create([0.0, 0.0, 0.0], dtype="float32", durability=durability)["id"]
    path = f"/v1/sessions/{session}/parameters?min_step=2&wait_s=30"
    answers, other = [], Talk(own)
    thread = threading.Thread(target=lambda: answers.append(other("GET", path)))
    thread.start()
    until(lambda: waiting(talk) == 1)
    for number in (1, 2):
        talk.put(session, number, ONE).good()
    thread.join(PATIENCE)
    assert answers[0].good().step == 2
    other.close()


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("wait_s=1", "wait_s"),
        ("min_step=-1", "min_step"),
        ("min_step=x", "min_step"),
        ("min_step=1&wait_s=61", "wait_s"),
    ],
)
def test_a_wait_that_there_cannot_be(talk, query, path):
    session = made(talk)
    assert talk("GET", f"/v1/sessions/{session}/parameters?{query}").problem(422, "invalid_request")["path"] == path


@pytest.mark.parametrize("what", ["rounds/current?client=a&wait_s=60", "parameters?min_step=9&wait_s=60", "events"])
def test_a_client_that_goes_away_waits_no_more_and_holds_no_bytes(own, talk, what):
    session = made(talk, quorum=2)
    give(talk, session, "a")
    with asked(own, f"/v1/sessions/{session}/{what}"):
        until(lambda: waiting(talk) == 1)
        text = talk("GET", "/metrics").good().body.decode()
        assert "adamd_in_flight_bytes 0.0" in text.splitlines()
    until(lambda: waiting(talk) == 0)


def test_there_is_a_bound_on_those_who_wait(own, talk):
    session = made(talk, quorum=2)
    give(talk, session, "a")
    task, step = f"/v1/sessions/{session}/rounds/current?client=a&wait_s=60", "parameters?min_step=9&wait_s=60"
    with asked(own, task), asked(own, task), asked(own, f"/v1/sessions/{session}/events"):
        until(lambda: waiting(talk) == 3)
        for path in (task, f"/v1/sessions/{session}/{step}", f"/v1/sessions/{session}/events"):
            refused = talk("GET", path)
            refused.problem(429, "busy")
            assert int(refused.headers["Retry-After"]) >= 1
        talk("GET", f"/v1/sessions/{session}/rounds/current?client=b").good()  # who does not wait needs no place
    until(lambda: waiting(talk) == 0)


def events(data):
    """(event, data) of what a stream has told."""
    body = data.partition(b"\r\n\r\n")[2].decode()
    lines = [line for line in body.splitlines() if line.partition(":")[0] in ("event", "data", "id")]
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event")]
    return list(
        zip(kinds, [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")], strict=True)
    )


def test_events_tell_what_happens(own, talk):
    session = made(talk, quorum=2)
    with asked(own, f"/v1/sessions/{session}/events") as stream:
        data = received(stream, b'"state": "open"')
        assert b"HTTP/1.1 200" in data and b"text/event-stream" in data and b"no-store" in data
        give(talk, session, "a")
        data += received(stream, b'"client": "a"')
        give(talk, session, "b")
        data += received(stream, b'"round": 2')
        talk("DELETE", f"/v1/sessions/{session}").good(204)
        data += received(stream, b"\r\n0\r\n\r\n")
    told = events(data)
    assert told[0][0] == "step" and told[0][1]["step"] == 0
    assert ("contribution", {"round": 1, "client": "a", "received": 1, "wanted": 2}) in told
    assert [one["step"] for kind, one in told if kind == "step"] == [0, 1]
    closed = next(one for kind, one in told if kind == "round" and one["state"] == "closed")
    assert (closed["round"], closed["closed_by"], closed["step"]) == (1, "quorum", 1)
    assert told[-1][0] == "problem" and told[-1][1]["code"] == "session_deleted"


def test_events_of_a_session_without_rounds(own, talk):
    session = made(talk)
    with asked(own, f"/v1/sessions/{session}/events") as stream:
        data = received(stream, b'"step": 0')
        talk.put(session, 1, ONE, {"Adamd-Metrics": '{"loss": 0.5}'}).good()
        data += received(stream, b'"step": 1')
    assert events(data)[-1][1]["metrics"] == {"loss": 0.5}


def test_events_that_there_are_not(own, talk):
    talk("GET", "/v1/sessions/nobody/events").problem(404, "unknown_session")
    session = made(talk)
    talk("GET", f"/v1/sessions/{session}/events?since=1").problem(422, "invalid_request")
    old = talk.raw(f"GET /v1/sessions/{session}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    old.problem(422, "invalid_request")
    head = talk("HEAD", f"/v1/sessions/{session}/events").good()
    assert head.headers["Content-Type"].startswith("text/event-stream")


def test_a_comment_comes_in_silence_and_the_seat_is_left():
    room, sent = WaitingRoom(1), []

    async def nothing():
        await asyncio.sleep(PATIENCE)
        yield RoundEvent("step", "1", {})

    async def until_two_comments():
        enough = asyncio.Event()

        async def receive():
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message.get("body", b""))
            if sent.count(b": keep-alive\n\n") == 2:
                enough.set()

        stream = EventStream(RoundEvent("step", "0", {"step": 0}), nothing(), room.take(), silence=0.01)
        assert room.taken == 1
        await stream({"type": "http"}, receive, send)

    assert KEEP_ALIVE == 15
    asyncio.run(until_two_comments())
    assert sent[1] == b'event: step\nid: 0\ndata: {"step": 0}\n\n' and room.taken == 0


@pytest.mark.slow
def test_a_reader_that_stops_reading_events_is_dropped(tmp_path):
    with watched(tmp_path / "one", env={"ADAMD_UPLOAD_GAP": 1}) as one:
        talk = Talk(one)
        session = talk.create([0.0, 0.0, 0.0], dtype="float32", durability="memory")["id"]
        metrics = {"Adamd-Metrics": json.dumps({f"{n:0128}": n for n in range(64)})}  # 8 KiB an event
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(talk.address)
            sock.sendall(f"GET /v1/sessions/{session}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            until(lambda: waiting(talk) == 1)
            for number in count(1):  # it is told of many of these, and reads nothing
                talk.put(session, number, ONE, metrics).good()
                if waiting(talk) == 0:
                    break
                time.sleep(0.01)
        assert any("stopped reading" in line for line in one.lines), one.log()
        talk.close()


def test_a_server_that_goes_down_ends_what_waits(server_factory):
    one = server_factory()
    talk = Talk(one)
    session = made(talk, quorum=2)
    give(talk, session, "a")
    path = f"/v1/sessions/{session}"
    with (
        asked(one, f"{path}/events") as stream,
        asked(one, f"{path}/rounds/current?client=a&wait_s=60") as task,
        asked(one, f"{path}/parameters?min_step=9&wait_s=60") as step,
    ):
        data = received(stream, b'"state": "open"')
        until(lambda: waiting(talk) == 3)
        talk.close()
        one.process.send_signal(signal.SIGTERM)
        for sock in (task, step):
            assert b"HTTP/1.1 503" in received(sock, b"shutting_down")
        data += received(stream, b"\r\n0\r\n\r\n")
    kind, problem = events(data)[-1]
    assert (kind, problem["code"]) == ("problem", "shutting_down")
    assert one.process.wait(PATIENCE) == 0 and "Traceback" not in one.log(), one.log()
