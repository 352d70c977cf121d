"""The command, as a person types it."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import adamd
from servers import ended, free_port

ADAMD = Path(sys.executable).parent / "adamd"


def adamd_command(*words, **environment):
    return ended([ADAMD, *words], env={**os.environ, "COLUMNS": "120", **environment})


def test_help_teaches():
    told = adamd_command("--help")
    assert told.returncode == 0
    for word in ("serve", "sessions", "watch", "demo", "version", "http://127.0.0.1:8000"):
        assert word in told.stdout
    assert adamd_command().stdout.split() == told.stdout.split()  # no words: the help


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
    assert adamd_command("version").stdout.strip() == version("adamd")


def test_sessions(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32), name="from-the-shell", labels={"who": "me"})
        session.step(np.ones(3, np.float32))
        for told in (adamd_command("sessions", "--url", server.url), adamd_command("sessions", ADAMD_URL=server.url)):
            assert told.returncode == 0
            assert "from-the-shell" in told.stdout and session.id in told.stdout
        session.delete()
    assert "from-the-shell" not in adamd_command("sessions", "--url", server.url).stdout


def test_sessions_in_a_line_each(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(12_345, np.float64), optimizer="adamw", durability="memory")
        told = adamd_command("sessions", ADAMD_URL=server.url)
        session.delete()
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
        watching = subprocess.Popen(
            [ADAMD, "watch", session.name, "--url", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert watching.stdout.readline().split() == f"{session.name} step 0 loss — lr 0.25".split()
            session.step(np.ones(3, np.float32), loss=0.5, lr=0.125)
            loss = "0.5" if transport == "grpc" else "—"
            assert watching.stdout.readline().split() == f"{session.name} step 1 loss {loss} lr 0.125".split()
            session.delete()
            assert watching.wait(60) == 1
            assert "deleted" in watching.stderr.read()
        finally:
            watching.kill()
            watching.communicate()


def test_a_watch_ends_in_order(server):
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(3, np.float32))
        watching = subprocess.Popen([ADAMD, "watch", session.id, "--url", server.grpc_url], stdout=subprocess.PIPE)
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
        watching.communicate()
        session.delete()


def test_no_server_there():
    url = f"http://127.0.0.1:{free_port()}"
    told = adamd_command("sessions", "--url", url)
    assert told.returncode == 1
    assert f"no adamd server answers at {url} (connection refused)" in told.stderr
    assert "adamd serve" in told.stderr and "ADAMD_URL" in told.stderr and "Traceback" not in told.stderr


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


def test_a_taken_port_is_told(server, tmp_path):
    told = adamd_command("serve", "--port", str(server.port), "--data-dir", str(tmp_path))
    assert told.returncode == 1
    assert "choose another --port" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "port"),
        (["--fsync", "never"], "fsync"),
        (["--redis-url", "ftp://x"], "redis://"),
        (["--log-level", "loud"], "log_level"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(words, said, tmp_path):
    told = adamd_command("serve", "--data-dir", str(tmp_path), *words)
    assert told.returncode == 1
    assert said in told.stderr and "Traceback" not in told.stderr


def test_a_data_directory_in_use_is_told(server):
    told = adamd_command("serve", "--port", "0", "--data-dir", str(server.data_dir))
    assert told.returncode == 1
    assert "another adamd uses" in told.stderr


def test_a_signal_ends_it_in_order(server_factory):
    one = server_factory()
    store = one.store_pid
    assert one.stop() == 0
    assert not Path(f"/proc/{store}").exists()
