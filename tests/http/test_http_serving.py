"""The server as a process: its words, its signals, its file descriptors, and what it tells of its work."""

import asyncio
import http.client
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

import adamd
from adamd_service.engine.workers import Workers
from adamd_service.serve import UvicornServer
from adamd_service.telemetry import Unfailing
from servers import ENVIRONMENT, gone

WAIT = 60
READY = "adamd is ready at http://127.0.0.1:"


def until(happened):
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command(data, *more):
    serve = [sys.executable, "-m", "adamd_service", "serve", "--port", "0", "--grpc-port", "off"]
    return [*serve, "--data-dir", str(data), *more]


def ready_line(stream):
    return next(line for line in stream if line.startswith(READY.encode()))


def answered(port, path="/readyz"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def spawned(tmp_path):
    """Start `adamd serve` as a shell does, with streams and an environment of the test's own."""
    made = []

    def make(*more, **options):
        environment = {**ENVIRONMENT, **options.pop("env", {})}
        made.append(subprocess.Popen(command(tmp_path / "data", *more), env=environment, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()
        one.wait()
        for stream in (one.stdout, one.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.slow),
    ],
    ids=["ioencoding", "locale"],
)
def test_the_ready_line_comes_in_any_encoding(spawned, environment):
    one = spawned(stdout=subprocess.PIPE, env=environment)
    line = ready_line(one.stdout)
    assert line.isascii() and b" - updates run on " in line


@pytest.mark.slow
def test_a_stdout_that_nobody_reads_ends_nothing(spawned):
    """As `adamd serve | head -1` leaves it, with stderr too: what is logged then must not end what logs it."""
    reading, writing = os.pipe()
    one = spawned(stdout=writing, stderr=writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        next(stream)
    until(lambda: serves(one.pid))
    one.terminate()
    assert gone(one, WAIT) == 0


def serves(pid):
    """Whether a process is ready, whatever it could say of it."""
    try:
        return any(answered(port) == 200 for port in listening(pid))
    except OSError:
        return False


def listening(pid):
    """The TCP ports on which a process listens."""
    try:
        mine = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return []
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


@pytest.mark.slow
def test_a_full_disk_behind_stdout_is_told_on_stderr(spawned):
    with open("/dev/full", "wb") as full:
        one = spawned(stdout=full, stderr=subprocess.PIPE, text=True)
    assert any("stdout takes nothing any more" in line for line in one.stderr)
    until(lambda: serves(one.pid))
    one.terminate()
    assert gone(one, WAIT) == 0


@pytest.mark.parametrize(
    "words", [["sessions"], ["--help"], pytest.param(["selftest", "--quick"], marks=pytest.mark.slow)], ids=" ".join
)
def test_commands_speak_ascii_where_they_have_to(server, words):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(1), durability="memory")
        told = subprocess.run(
            [sys.executable, "-m", "adamd_service", *words],
            env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "ADAMD_URL": server.url},
            capture_output=True,
            timeout=WAIT,
            check=False,
        )
        session.delete(anyway=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout and told.stdout.isascii() and b"Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")],
)
def test_the_ready_lines_urls_can_be_opened(server_factory, host, shown):
    one = server_factory("--host", host)
    (line,) = [line for line in one.lines if "adamd is ready" in line]
    assert one.url == f"http://{shown}:{one.port}" and one.grpc_url == f"grpc://{shown}:{one.grpc_port}"
    assert ("other machines" in line) == (host in ("0.0.0.0", "::"))
    for url in (one.url, one.grpc_url):
        with adamd.connect(url) as client:
            assert list(client.sessions()) == []


def test_sighup_ends_no_daemon(server_factory):
    one = server_factory()
    os.kill(one.pid, signal.SIGHUP)
    until(lambda: "SIGHUP" in one.log())
    with adamd.connect(one.url) as client:
        client.create(np.zeros(1))
    assert one.stop() == 0


def test_a_terminal_that_is_closed_ends_its_server_in_order(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        words = command(tmp_path / "data")
        os.execve(words[0], words, ENVIRONMENT)
    try:
        said = b""
        while READY.encode() not in said:
            said += os.read(terminal, 4096)
        store = int((tmp_path / "data" / "store" / "valkey.pid").read_text())
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert not Path(f"/proc/{store}").exists()
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def test_as_many_file_descriptors_as_are_allowed(server_factory):
    one = server_factory()
    soft, hard = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_no_file_descriptor_left_is_told_and_over_when_there_are(server_factory):
    one = server_factory()
    old = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=WAIT)
    more = []

    def ready():
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read()

    try:
        assert ready()[0] == 200
        taken = len(list(Path(f"/proc/{one.pid}/fd").iterdir()))
        resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (taken + 2, old[1]))
        more = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(8)]
        until(lambda: "file descriptors are used up" in one.log())
        status, said = ready()
        assert status == 503 and b"file descriptors are used up" in said
        time.sleep(1.5)  # the next look says nothing more
        assert one.log().count("raise their limit (ulimit -n)") == 1
        resource.prlimit(one.pid, resource.RLIMIT_NOFILE, old)
        until(lambda: ready()[0] == 200)
        until(lambda: answered(one.port) == 200)
    finally:
        for each in more:
            each.close()
        connection.close()


@pytest.mark.slow
def test_connections_leave_the_store_its_file_descriptors(tmp_path, spawned):
    """A small limit: half of it is clients', and who is one too many is told so."""

    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))

    one = spawned(stdout=subprocess.PIPE, preexec_fn=limited)  # noqa: PLW1509 - one system call
    port = int(ready_line(one.stdout).split(b"127.0.0.1:")[1].split()[0])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(48)]
    try:
        with socket.create_connection(("127.0.0.1", port)) as beyond:
            said = beyond.makefile("rb").read()
        assert said.startswith(b"HTTP/1.1 429 ") and b"48 connections are open" in said
        clients[0].sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert clients[0].recv(4096).startswith(b"HTTP/1.1 200 ")
        clients.pop().close()
        until(lambda: answered(port) == 200)
    finally:
        for each in clients:
            each.close()


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_debug_log_tells_of_sessions(server_factory, transport):
    one = server_factory("--log-level", "debug")
    url = one.url if transport == "http" else one.grpc_url
    with adamd.connect(url) as client:
        session = client.create(np.zeros(3), name="seen")
        session.step(np.ones(3))
        session.delete(anyway=True)
    until(lambda: "session deleted" in one.log())
    (made,) = [line for line in one.lines if "session created" in line]
    assert session.id in made and "name=seen" in made
    (gone_,) = [line for line in one.lines if "session deleted" in line]
    assert session.id in gone_


def test_what_is_refused_names_its_session_and_its_route(server_factory):
    one = server_factory("--log-level", "debug")
    answered(one.port, "/v1/sessions/nobody%0Ahere")
    answered(one.port, "/v1/sessions/nobody/parameters")
    until(lambda: any("unknown_session" in line and "parameters" in line for line in one.lines))
    (line,) = [line for line in one.lines if "unknown_session" in line and "parameters" in line]
    for word in ("refused", "GET", "/v1/sessions/{session}/parameters", "nobody"):
        assert word in line
    assert not any(line.startswith("here") for line in one.lines)


def test_a_background_task_that_fails_is_told_and_ends_the_server(capsys):
    async def fails():
        raise RuntimeError("the beat is lost")

    async def scenario():
        engine = SimpleNamespace(draining=False)
        server = UvicornServer(uvicorn.Config(lambda: None, log_config=None), engine)
        await asyncio.wait([server.begin(fails())])
        await asyncio.sleep(0)
        assert server.failed and server.should_exit and server.ending.is_set() and engine.draining

        workers = Workers(1)
        workers.spawn(fails())
        await workers.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert capsys.readouterr().out.count("\nRuntimeError: the beat is lost") == 2


def test_a_log_that_nobody_reads_fails_nowhere():
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = close = lambda self: (_ for _ in ()).throw(ValueError("closed"))

    for stream in (Gone(), None):
        log = Unfailing(stream)
        assert log.write("words") == 5
        log.flush()
