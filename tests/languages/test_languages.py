"""Every example runs against a real server, and prints the same bits as the SDK does, at every step."""

import json
import os
import socket
import struct
import subprocess
import sys
import urllib.request

import pytest
from installed import EXAMPLES, MODULES, ROOT, need, output, site

import adamd

pytestmark = pytest.mark.languages


def bits(printed):
    """Step -> the bits of its two parameters; text is compared as the float64 that it names."""
    lines = [line.split() for line in printed.splitlines()]
    return {int(step): struct.pack(">2d", float(x), float(y)).hex() for step, x, y in lines}


@pytest.fixture(scope="session")
def wanted(server):
    """What the SDK prints."""
    told = bits(output(sys.executable, EXAMPLES / "python" / "rosenbrock.py", server.url))
    assert list(told) == list(range(1, 21)) and len(set(told.values())) == 20
    return told


@pytest.fixture(autouse=True)
def tidy(server):
    """Each example leaves nothing behind."""
    yield
    with adamd.connect(server.url) as client:
        assert [one["name"] for one in client.sessions()] == []


def test_a_bit_more_or_less_is_seen(wanted):
    x = struct.unpack(">d", bytes.fromhex(wanted[20])[:8])[0]
    y = struct.unpack(">d", bytes.fromhex(wanted[20])[8:])[0]
    assert bits(f"20 {x!r} {y:.17g}")[20] == wanted[20]
    assert bits(f"20 {x:.15g} {y!r}")[20] != wanted[20]


def test_what_is_absent_fails_where_all_must_be_there(monkeypatch):
    monkeypatch.setenv("ADAMD_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-compiler"):
        need("curl", "no-such-compiler")
    monkeypatch.delenv("ADAMD_REQUIRE_ALL")
    with pytest.raises(pytest.skip.Exception, match="no-such-compiler"):
        need("curl", "no-such-compiler")


def test_the_standard_library(server, wanted):
    assert bits(output(sys.executable, EXAMPLES / "python" / "plain.py", server.url)) == wanted


def test_a_client_written_from_the_text_alone_survives_the_server(server_factory, wanted):
    """kill -9 under way, again and again: the same bits, each step once."""
    server = server_factory()
    command = [sys.executable, EXAMPLES / "python" / "plain.py", server.url, "survivor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        lines = []
        for line in client.stdout:
            lines.append(line)
            if len(lines) in (3, 7, 12):
                server.restart()
    assert client.returncode == 0
    assert bits("".join(lines)) == wanted and len(lines) == 20


def test_curl(server, wanted):
    need("curl", "awk")
    assert bits(output(EXAMPLES / "curl.sh", server.url)) == wanted


def test_node_over_http(server, wanted):
    need("node")
    assert bits(output("node", EXAMPLES / "node" / "http.mjs", server.url)) == wanted


def test_the_sdk_over_grpc(server, wanted):
    assert bits(output(sys.executable, EXAMPLES / "python" / "rosenbrock.py", server.grpc_url)) == wanted


def test_node_over_grpc(server, wanted):
    need("node", MODULES / "@grpc")
    assert bits(output("node", EXAMPLES / "node" / "grpc.mjs", server.grpc_url)) == wanted


def test_cpp_over_grpc(server, wanted, tmp_path):
    need("make", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    output("make", "-j2", "-f", EXAMPLES / "cpp" / "Makefile", cwd=tmp_path)
    assert bits(output(tmp_path / "rosenbrock", server.grpc_url)) == wanted


def test_fortran(server, wanted, tmp_path):
    need("gfortran", "make", "curl-config")
    output("make", "-B", "-f", EXAMPLES / "fortran" / "Makefile", f"VPATH={EXAMPLES / 'fortran'}", cwd=tmp_path)
    assert bits(output(tmp_path / "rosenbrock", server.url)) == wanted


def test_java(server, wanted):
    """The JDK's client asks for HTTP/2 by an Upgrade of its first request; nothing here tells it not to."""
    need("java", "javac")
    example = EXAMPLES / "java" / "Rosenbrock.java"
    assert bits(output("java", example, server.url)) == wanted
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(["java", example, f"http://127.0.0.1:{listening.getsockname()[1]}"])
        try:
            listening.settimeout(60)
            with listening.accept()[0] as sock:
                assert b"Upgrade: h2c" in sock.recv(10_000)
        finally:
            process.kill()
            process.wait(60)


def test_r(server, wanted):
    need("Rscript")
    assert bits(output("Rscript", EXAMPLES / "r" / "rosenbrock.R", server.url)) == wanted


def test_octave(server, wanted):
    need("octave-cli", "curl")
    assert bits(output("octave-cli", "--no-gui", EXAMPLES / "octave" / "rosenbrock.m", server.url)) == wanted


def test_a_client_made_from_the_openapi_document(server, wanted, tmp_path):
    python = ROOT / ".venv-languages" / "bin" / "python"
    need(python)
    made = tmp_path / "adamd-client"
    command = [python.parent / "openapi-python-client", "generate", "--url", f"{server.url}/openapi.json"]
    told = output(*command, "--config", EXAMPLES / "openapi" / "config.yml", "--output-path", made)
    assert "arning" not in told  # nothing of the document is lost
    calls = {path.stem for path in (made / "adamd_client" / "api" / "sessions").glob("*.py")} - {"__init__"}
    assert len(calls) == 10
    environment = {**os.environ, "PYTHONPATH": str(made)}
    assert bits(output(python, EXAMPLES / "openapi" / "rosenbrock.py", server.url, env=environment)) == wanted


# -- in a real Chromium


def browse(url, *flags):
    """Open a page; returns what it shows."""
    need("node", "chromium", MODULES / "playwright-core")
    command = ["node", ROOT / "tests" / "languages" / "drive.cjs", url, *flags]
    return json.loads(output(*command, env={**os.environ, "NODE_PATH": str(MODULES)}))


def test_a_web_page(server_factory, wanted):
    with site(EXAMPLES / "browser") as origin:
        shown = browse(f"{origin}/?url={server_factory('--cors-origin', origin).url}")
        assert shown["title"] == "done", shown
        assert bits("\n".join(line for line in shown["text"].splitlines() if line[:1].isdigit())) == wanted


def test_a_web_page_that_nobody_allowed(server):
    with site(EXAMPLES / "browser") as origin:
        shown = browse(f"{origin}/?url={server.url}")
    assert shown["title"] == "failed" and any("CORS" in line for line in shown["said"]), shown


def test_a_hostile_web_page_changes_nothing(server):
    with adamd.connect(server.url) as client, site(ROOT / "tests" / "languages") as origin:
        session = client.create([1.0, 2.0])
        before = session.chain
        shown = browse(f"{origin}/hostile.html?url={server.url}&session={session.id}")
        assert shown["title"] == "done" and shown["text"].count(":") == 8, shown
        assert "basic" not in shown["text"] and "cors 2" not in shown["text"]  # it read nothing
        assert [one["id"] for one in client.sessions()] == [session.id]
        now = client.session(session.id)
        assert (now.chain, now.step_number) == (before, 0)
        session.delete(anyway=True)


def test_a_page_whose_name_was_made_to_lead_here_gets_nothing(server):
    port = server.url.rpartition(":")[2]
    shown = browse(f"http://evil.example:{port}/v1/info", "--host-resolver-rules=MAP evil.example 127.0.0.1")
    assert shown["status"] == 421 and "host_not_allowed" in shown["text"]
    with urllib.request.urlopen(f"http://localhost:{port}/v1/info") as answer:
        assert answer.status == 200
