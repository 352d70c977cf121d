"""A server that is forked is the server that would have been spawned, and none is left over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import servers
from forkserver import missing
from servers import ENVIRONMENT, Server, fork_server

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"servers are not forked: {missing()}")

PROBE = """
import json, os, signal, stat, sys, threading
print(json.dumps({
    "name": __name__, "words": sys.argv, "path": sys.path, "directory": os.getcwd(), "environment": dict(os.environ),
    "descriptors": {n: stat.S_IFMT(os.fstat(int(n)).st_mode) for n in os.listdir("/proc/self/fd") if int(n) < 3},
    "more": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                   if int(n) > 2 and os.path.exists(f"/proc/self/fd/{n}")),
    "signals": {str(n): str(signal.getsignal(n)).partition(" at ")[0] for n in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "umask": os.umask(0o22), "nice": os.nice(0),
    "threads": [str(one.name) for one in threading.enumerate()], "tasks": len(os.listdir("/proc/self/task")),
    "buffered": sys.stdout.write_through, "group": os.getpgid(0), "session": os.getsid(0),
}), flush=True)
print("to stderr", file=sys.stderr)
import atexit
atexit.register(print, "at the end", flush=True)
{"exit": lambda: sys.exit(3), "words": lambda: sys.exit("no"), "error": lambda: 1 / 0, "end": lambda: None,
 "signal": lambda: os.kill(os.getpid(), 9), "interrupt": lambda: os.kill(os.getpid(), 2)}[sys.argv[1]]()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "words", "error", "end", "signal", "interrupt"])
def test_what_is_forked_is_what_is_spawned(how, tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    environment = {**ENVIRONMENT, "ADAMD_PROBE": "of this test"}
    spawned = subprocess.Popen(
        [sys.executable, "-m", "probe", how, "x y"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    forked = fork_server().fork("probe", [how, "x y"], environment)
    first, *rest = forked.stdout.read().splitlines()
    told, *others = spawned.stdout.read().splitlines()
    assert json.loads(first) == json.loads(told)
    # A traceback has the frames of what runs a module in it, and these differ.
    assert [line for line in rest if line[:1] != " "] == [line for line in others if line[:1] != " "]
    assert forked.wait(10) == spawned.wait(10) == forked.poll()
    forked.stdout.close()
    spawned.stdout.close()


def test_its_outputs_come_apart_where_that_is_asked(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    forked = fork_server().fork("probe", ["words", ""], ENVIRONMENT, apart=True)
    with forked.stdout, forked.stderr:
        _, *rest = forked.stdout.read().splitlines()
        assert rest == ["at the end"]
        assert forked.stderr.read() == "to stderr\nno\n"
    assert forked.wait(10) == 1


def test_what_is_aborted_shows_its_stacks_where_the_environment_says_so(tmp_path, monkeypatch):
    """As the interpreter does at its start; `commanded` shows by it where a command hangs."""
    (tmp_path / "probe.py").write_text("import os\ndef hangs():\n    os.abort()\nhangs()\n")
    monkeypatch.chdir(tmp_path)
    forked = fork_server().fork("probe", [], {**ENVIRONMENT, "PYTHONFAULTHANDLER": "1"}, apart=True)
    with forked.stdout, forked.stderr:
        said = forked.stderr.read()
    assert forked.wait(10) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in said and "probe.py" in said and "in hangs" in said


def parent(server):
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_server_ends_with_the_status_and_the_words_that_it_has_when_spawned(tmp_path):
    one = Server(tmp_path / "one").start()
    assert parent(one) == fork_server().pid
    pid = one.pid
    one.kill()
    assert one.process.returncode == one.process.poll() == -signal.SIGKILL
    assert not Path(f"/proc/{pid}").exists()
    one.process.terminate()  # no signal to a process that is gone, and no error
    assert one.restart().stop() == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one = Server(tmp_path / "two", port=taken.getsockname()[1])
        with pytest.raises(RuntimeError, match=r"did not start:[^\0]*choose another --port"):
            one.start()
    assert one.process.returncode == 1


def test_one_whose_libraries_would_load_otherwise_is_spawned(tmp_path):
    one = Server(tmp_path / "one", env={"GRPC_VERBOSITY": "ERROR", "ADAMD_MAX_BODY_BYTES": 1_000_000}).start()
    assert parent(one) == os.getpid()
    assert one.stop() == 0
    import sklearn  # noqa: F401 - sets variables of OpenMP's; so do other tests, before or after this one

    assert fork_server().serves("adamd_service", {**os.environ, **ENVIRONMENT, "ADAMD_MAX_BODY_BYTES": "1"})
    assert not fork_server().serves("adamd_service", {**ENVIRONMENT, "GRPC_TRACE": "all"})
    assert not fork_server().serves("adamd_service", {k: v for k, v in ENVIRONMENT.items() if k != "PATH"})
    assert not fork_server().serves("device.serving", ENVIRONMENT)


def test_nothing_lives_where_it_is_forked(server):
    """A thread, of gRPC's say, is not there after a fork, and a lock that it held is never let go."""
    assert os.listdir(f"/proc/{fork_server().pid}/task") == [str(fork_server().pid)]


OWNER = """
import sys, time
from servers import Server, fork_server
one = Server(sys.argv[1]).start()
print(fork_server().pid, one.pid, one.store_pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["pytest", "fork server"])
def test_nothing_is_left_of_who_is_killed(victim, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "data"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as owner:
        children = list(map(int, owner.stdout.readline().split()))
        if victim == "fork server":
            os.kill(children[0], signal.SIGKILL)
        else:
            owner.kill()
        deadline = time.monotonic() + 60
        while any(lives(pid) for pid in children):
            assert time.monotonic() < deadline, children
            time.sleep(0.02)
        owner.kill()


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_pidfds_servers_are_spawned_and_that_is_said(tmp_path, monkeypatch, pytestconfig):
    mine = str(Path(servers.__file__).parent / "conftest.py")
    [plugin] = [one for one in pytestconfig.pluginmanager.get_plugins() if getattr(one, "__file__", "") == mine]
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(servers, "fork_server", fork_server.__wrapped__)
    one = Server(tmp_path / "one").start()
    assert parent(one) == os.getpid()
    assert one.stop() == 0
    said = []
    plugin.pytest_terminal_summary(type("Reporter", (), {"write_line": said.append}))
    assert len(said) == 1 and "spawned" in said[0] and "os.pidfd_open is not on this machine" in said[0]
