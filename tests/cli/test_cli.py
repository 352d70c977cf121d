"""The command, as a person types it."""

import os
import signal
import sys
import threading
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import adamd
from adamd_service import machine
from adamd_service.__main__ import _printable, _row, _sight
from adamd_service.serve import patiently
from adamd_service.settings import ServerSettings, refused
from servers import ENVIRONMENT, Server, commanded, ended, free_port, gone, launched

ADAMD = Path(sys.executable).parent / "adamd"


def adamd_command(*words, **environment):
    """Run `adamd *words`, forked, as the servers are; `test_version` and `test_help_teaches` run what pip installed."""
    return commanded(words, {**ENVIRONMENT, "COLUMNS": "120", **environment})


def installed(*words):
    return ended([ADAMD, *words], env={**os.environ, "COLUMNS": "120"})


@contextmanager
def watch(*words):
    """`adamd watch *words` while it runs, forked; in the end it is killed."""
    process = launched(["watch", *words], ENVIRONMENT, apart=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def refusal(*words, **environment):
    """What `adamd serve` says, on both outputs, where it has to refuse and to end with 1; forked, as the servers are."""
    process = launched(["serve", *words], {**ENVIRONMENT, **environment})
    hanging = threading.Timer(60, process.kill)  # a server that started after all
    hanging.start()
    try:
        said = process.stdout.read()
    finally:
        hanging.cancel()
        process.stdout.close()
    assert gone(process, 60) == 1, said
    return said


def test_help_teaches():
    told = installed("--help")
    assert told.returncode == 0
    for word in ("serve", "sessions", "watch", "demo", "version", "http://127.0.0.1:8000"):
        assert word in told.stdout
    assert installed().stdout.split() == told.stdout.split()  # no words: the help


@pytest.mark.parametrize("command", ["serve", "sessions", "watch", "demo"])
def test_each_command_has_its_help(command):
    told = adamd_command(command, "--help")
    assert told.returncode == 0 and "Usage:" in told.stdout


def test_serve_names_every_option_of_the_design():
    told = adamd_command("serve", "--help").stdout
    for option in (
        "--host",
        "--port",
        "--data-dir",
        "--redis-url",
        "--fsync",
        "--allow-lossy-store",
        "--store-trusted",
        "--cors-origin",
        "--allowed-host",
    ):
        assert option in told


def test_version():
    assert installed("version").stdout.strip() == version("adamd")


def test_sessions(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32), name="from-the-shell", labels={"who": "me"})
        session.step(np.ones(3, np.float32))
        for told in (adamd_command("sessions", "--url", server.url), adamd_command("sessions", ADAMD_URL=server.url)):
            assert told.returncode == 0
            assert "from-the-shell" in told.stdout and session.id in told.stdout
        session.delete(anyway=True)
    assert "from-the-shell" not in adamd_command("sessions", "--url", server.url).stdout


def test_sessions_in_a_line_each(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(12_345, np.float64), optimizer="adamw", durability="memory")
        told = adamd_command("sessions", ADAMD_URL=server.url)
        session.delete(anyway=True)
    (line,) = [line for line in told.stdout.splitlines() if session.id in line]
    assert line.split()[:7] == [session.id, "—", "0", "adamw", "12,345", "float64", "memory"]
    assert told.stdout.split()[:2] == ["id", "name"]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_sessions_and_watch_over_both(server, transport):
    url = server.grpc_url if transport == "grpc" else server.url
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32), name=f"watched-{transport}", lr=0.25)
        line = next(line for line in adamd_command("sessions", "--url", url).stdout.splitlines() if session.id in line)
        assert line.split()[:7] == [session.id, session.name, "0", "adam", "3", "float32", "committed"]
        with watch(session.name, "--url", url) as watching:
            assert watching.stdout.readline().split() == f"{session.name} step 0 lr 0.25".split()
            session.step(np.ones(3, np.float32), loss=0.5, lr=0.125)
            assert watching.stdout.readline().split() == f"{session.name} step 1 loss 0.5 lr 0.125".split()
            session.delete(anyway=True)
            assert watching.wait(60) == 1
            (said,) = watching.stderr.read().splitlines()  # and no word of losses
            assert "deleted" in said


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_watch_shows_the_lr_of_the_schedule_and_says_how_a_loss_is_told(server, transport):
    url = server.grpc_url if transport == "grpc" else server.url
    schedule = {"name": "linear", "total_steps": 4, "start_factor": 1, "end_factor": 0}
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32), lr=0.5, schedule=schedule)
        session.step(np.ones(3, np.float32))
        session.step(np.ones(3, np.float32))
        with watch(session.id, "--url", url) as watching:
            line = watching.stdout.readline()
            assert line.split() == f"{session.id} step 2 lr {session.info()['lr']:g} (linear)".split()
            assert " lr 0.25 " in line
            assert "session.step(gradient, loss=" in watching.stderr.readline()
            session.step(np.ones(3, np.float32), metrics={"accuracy": 0.75, "loss": 0.125})
            line = watching.stdout.readline()
            assert line.split() == f"{session.id} step 3 loss 0.125 accuracy 0.75 lr 0.125 (linear)".split()
            session.step(np.ones(3, np.float32))
            assert watching.stdout.readline().split()[:3] == f"{session.id} step 4".split()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
            assert watching.stderr.read() == ""  # it was said once
        session.delete(anyway=True)


@pytest.mark.parametrize("transport", ["http", pytest.param("grpc", marks=pytest.mark.slow)])
def test_a_watch_says_once_that_the_server_is_away_and_goes_on_when_it_is_back(server_factory, transport):
    server = server_factory()
    url = server.grpc_url if transport == "grpc" else server.url
    with adamd.connect(server.url, timeout=adamd.Timeout(total=60)) as client:
        session = client.create(np.zeros(3, np.float32), name="watched")
        session.step(np.ones(3, np.float32), loss=0.5)
        with watch("watched", "--url", url) as watching:
            assert watching.stdout.readline().split()[:5] == "watched step 1 loss 0.5".split()
            server.kill()
            away = watching.stderr.readline()
            assert f"watched: no answer from {url} (" in away and "waiting until it is back" in away
            server.restart()
            session.step(np.ones(3, np.float32), loss=0.25)
            line = watching.stdout.readline().split()
            while line[2] == "1":  # where it stood when the server came back
                line = watching.stdout.readline().split()
            assert line[:5] == "watched step 2 loss 0.25".split()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
            assert watching.stderr.read() == ""


def test_a_watch_ends_in_order(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32))
        with watch(session.id, "--url", server.grpc_url) as watching:
            watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
        session.delete(anyway=True)


def test_no_server_there():
    url = f"http://127.0.0.1:{free_port()}"
    told = adamd_command("sessions", "--url", url)
    assert told.returncode == 1
    assert f"no adamd server answers at {url} (connection refused)" in told.stderr
    assert "adamd serve" in told.stderr and "ADAMD_URL" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_watch_without_a_server_says_so_and_not_that_it_waits(scheme):
    url = f"{scheme}://127.0.0.1:{free_port()}"
    told = adamd_command("watch", "run-7", "--url", url)
    assert (told.returncode, told.stdout) == (1, "")
    first, second = told.stderr.splitlines()
    assert first.startswith(f"adamd: no adamd server answers at {url} (") and "adamd serve" in second
    assert "wait" not in told.stderr


def test_who_asks_another_machine_is_not_told_to_start_a_server_here():
    told = adamd_command("sessions", "--url", "http://no-such-host.invalid:8000")
    assert told.returncode == 1 and "no adamd server answers at http://no-such-host.invalid:8000" in told.stderr
    assert "Start one here" not in told.stderr and "--url" in told.stderr


def test_what_would_steer_a_terminal_is_not_shown():
    told = _printable("run\x1b[2J\r\n-7 ü")
    assert told == "run\ufffd[2J\ufffd\ufffd-7 ü"
    sight = {"step": 1, "settings": {}, "lr": 0.5, "metrics": {"\x1b]0;x\x07": 1.0}, "diverged": False}
    assert "\x1b" not in _sight("run-7", sight) and "lr 0.5" in _sight("run-7", sight)
    assert not any("\x1b" in cell.plain for cell in _row({"id": "s_1", "name": "\x1b[31mred"}))


@pytest.mark.parametrize("command", [["sessions"], ["watch", "run-7"]])
@pytest.mark.parametrize("asked", ["http", "grpc"])
def test_the_other_protocols_port_is_told(server, asked, command):
    url, right = f"http://127.0.0.1:{server.grpc_port}", server.grpc_url
    if asked == "grpc":
        url, right = f"grpc://127.0.0.1:{server.port}", server.url
    told = adamd_command(*command, "--url", url)
    assert (told.returncode, told.stdout) == (1, "")
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"adamd: {url}: ") and right in line


def test_help_shows_examples():
    told = adamd_command("serve", "--help").stdout
    assert "adamd serve --host 0.0.0.0 --data-dir /srv/adamd" in told
    assert "adamd serve --redis-url redis://" in told
    assert "adamd sessions --url http://localhost:8000" in adamd_command("sessions", "--help").stdout


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("port", ["--grpc-port", "0", "--port"]),
        ("grpc_port", ["--port", "0", "--grpc-port"]),
        ("port", ["--port", "0", "--grpc-port"]),
        ("grpc_port", ["--grpc-port", "0", "--port"]),
    ],
)
def test_a_taken_port_is_told_in_a_line_and_before_anything_starts(server, tmp_path, taken, words):
    port = str(getattr(server, taken))
    (line,) = refusal("--data-dir", str(tmp_path / "none"), *words, port).splitlines()
    assert not (tmp_path / "none").exists()
    protocol = "HTTP" if words[-1] == "--port" else "gRPC"
    assert f"cannot listen on 127.0.0.1 port {port} for {protocol}: the port is taken" in line
    assert f"choose another {words[-1]} (0 takes a free one" in line


def test_one_port_for_both_protocols_is_told(tmp_path):
    port = str(free_port())
    (line,) = refusal("--port", port, "--grpc-port", port, "--data-dir", str(tmp_path)).splitlines()
    assert f"port {port} for gRPC: the port is taken" in line


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_told(host, tmp_path):
    (line,) = refusal("--host", host, "--port", "0", "--data-dir", str(tmp_path)).splitlines()
    assert f"{host} is no address of this machine; choose another --host" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port is '70000'; wanted a port: a whole number from 0 to 65535"),
        (["--port", "eight"], "--port is 'eight'; wanted a port"),
        (["--grpc-port", "none"], "--grpc-port is 'none'; wanted a port: a whole number from 0 to 65535"),
        (["--fsync", "never"], "--fsync is 'never'; wanted always or everysec"),
        (["--device", "tpu"], "--device is 'tpu'; wanted auto, cpu, cuda, or cuda:N"),
        (["--redis-url", "ftp://x"], "redis://"),
        (["--log-level", "loud"], "--log-level is 'loud'; wanted debug, info, warning or error"),
        (["--cors-origin", "x"], "--cors-origin: 'x' is no origin"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(words, said, tmp_path):
    told = refusal("--data-dir", str(tmp_path), *words)
    assert said in told and "Traceback" not in told and "should" not in told


@pytest.mark.parametrize("option", ["--bulk-dir", "--data-dir"])
def test_a_bulk_directory_that_others_can_read_names_the_option_that_chose_it(option, tmp_path):
    data, chosen = tmp_path / "data", tmp_path / "vectors"
    there = chosen if option == "--bulk-dir" else data / "bulk"
    there.mkdir(mode=0o755, parents=True)
    words = ["--bulk-dir", str(chosen)] if option == "--bulk-dir" else []
    told = refusal("--port", "0", "--grpc-port", "off", "--data-dir", str(data), *words)
    assert f"cannot use {there}:" in told.replace("\n", "") and f"choose another {option}" in " ".join(told.split())


def test_a_bulk_directory_is_made_with_all_that_is_above_it(tmp_path):
    path = tmp_path / "not" / "there" / "yet"
    server = Server(tmp_path / "data", "--fsync", "everysec", "--bulk-dir", path).start()
    try:
        assert (path / "identity.json").exists()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "ADAMD_HOT_BYTES",
            "2XB",
            "ADAMD_HOT_BYTES is '2XB'; wanted a number of bytes, as in 2147483648, 2GB or 512MiB",
        ),
        ("ADAMD_PORT", "tcp://10.0.0.1:8000", "enableServiceLinks"),
        ("ADAMD_BULK_DIR", "", "ADAMD_BULK_DIR: it is empty; name a directory"),
    ],
)
def test_a_wrong_variable_is_told_in_a_line(name, value, said, tmp_path):
    (line,) = refusal("--data-dir", str(tmp_path), **{name: value}).splitlines()
    assert said in line


def test_every_setting_says_what_it_may_be():
    for name, field in ServerSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("given", "meant"),
    [("2GB", 2 * 10**9), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("8k", 8000), ("2147483648", 2**31)],
)
def test_sizes_are_read_as_people_write_them(monkeypatch, given, meant):
    for name in ("MAX_BODY_BYTES", "IN_FLIGHT_BYTES", "HOT_BYTES", "MEMORY_SESSION_BYTES", "IDLE_BUFFER_BYTES"):
        monkeypatch.setenv(f"ADAMD_{name}", given)
    monkeypatch.setenv("ADAMD_DEVICE_BYTES", given)
    monkeypatch.setenv("ADAMD_SNAPSHOT_PACE", given)
    made = ServerSettings()
    limits = made.limits()
    told = limits.body, limits.in_flight, limits.hot, limits.memory_sessions, limits.idle_buffers, made.device_bytes
    assert (*told, limits.snapshot_pace) == (meant,) * 7


@pytest.mark.parametrize("given", ["2XB", "-1", "0", "", "1e400", "nan", "2GB3", "0.2", "infGB"])
def test_what_is_no_size_is_refused(monkeypatch, given):
    monkeypatch.setenv("ADAMD_HOT_BYTES", given)
    with pytest.raises(ValidationError) as caught:
        ServerSettings()
    assert refused(caught.value, ()).startswith(f"ADAMD_HOT_BYTES is {given!r}; wanted a number of bytes")


def test_variables_that_nothing_reads_are_told(server_factory):
    others = {
        "ADAMD_URL": "http://127.0.0.1:9",
        "ADAMD_API_KEY": "x",
        "ADAMD_SERVICE_HOST": "10.0.0.1",
        "ADAMD_GRPC_SERVICE_PORT_HTTP": "1",
        "ADAMD_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    wrong = {"ADAMD_MAX_BODY_BYTE": "1", "adamd_fsink": "always", "ADAMD_XYZZY": ""}
    lines = server_factory(env={**others, **wrong}).lines
    assert [line for line in lines if "ADAMD_API_KEY" in line and "checks no key" in line]
    told = [line for line in lines if "is not known" in line]
    told = [line for line in told if any(name in line for name in (*others, *wrong))]
    assert [line.split()[3] for line in told] == ["ADAMD_MAX_BODY_BYTE", "ADAMD_XYZZY", "adamd_fsink"]
    assert "did you mean ADAMD_MAX_BODY_BYTES?" in told[0] and "did you mean ADAMD_FSYNC?" in told[2]


def test_the_kernels_are_told_only_where_they_take_long():
    said, now = [], iter([0.0, 1.0, 2.0, 2.5])
    quick = patiently(said.append, lambda: next(now))
    for share in (0.25, 0.5, 1.0):
        quick(share)
    assert said == []
    times = iter([0.0, 2.0, 5.0, 6.0, 9.0, 15.0])
    slow = patiently(said.append, lambda: next(times))
    for share in (0.1, 0.25, 0.3, 0.5, 1.0):
        slow(share)
    assert [line.split(": ")[-1] for line in said] == ["25%", "50%"]
    assert "first start on a machine" in said[0] and "first start" not in said[1]


def test_a_data_directory_in_use_is_told(server):
    told = adamd_command("serve", "--port", "0", "--data-dir", str(server.data_dir))
    assert told.returncode == 1
    assert "another adamd uses" in told.stderr


def test_a_bulk_directory_is_made_with_those_above_it(server_factory, tmp_path):
    """With everysec it is asked on which disk the directory will be, before it is there."""
    bulk = tmp_path / "disk" / "adamd" / "bulk"
    server_factory("--fsync", "everysec", "--bulk-dir", str(bulk))
    assert (bulk / "identity.json").is_file()


def test_a_signal_ends_it_in_order(server_factory):
    one = server_factory()
    store = one.store_pid
    assert one.stop() == 0
    assert not Path(f"/proc/{store}").exists()


def test_memory_is_the_control_groups_where_that_is_less(tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups, own = tmp_path / "groups", tmp_path / "own"
    assert machine.memory(groups, own) == physical
    (groups / "pods" / "one").mkdir(parents=True)
    (groups / "pods" / "one" / "memory.max").write_text("max\n")
    own.write_text("0::/pods/one\n")
    assert machine.memory(groups, own) == physical
    (groups / "pods" / "memory.max").write_text("123456789\n")  # of the group above
    assert machine.memory(groups, own) == 123456789
    (groups / "memory.max").write_text("1000000\n")  # as a container sees its own
    own.write_text("0::/\n")
    assert machine.memory(groups, own) == 1000000
    (groups / "memory" / "old").mkdir(parents=True)
    (groups / "memory" / "old" / "memory.limit_in_bytes").write_text("77777777\n")
    own.write_text("4:cpu,cpuacct:/x\n9:memory:/old\n")
    assert machine.memory(groups, own) == 77777777
