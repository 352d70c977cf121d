"""Each language's resume example survives kills of itself and of the server, with an undisturbed run's bits."""

import os
import signal
import struct
import subprocess
import sys

import pytest
from installed import EXAMPLES, ROOT, need, output

import adamd
from servers import Server

pytestmark = pytest.mark.languages
STEPS = 186  # until the rule holds
FIRST, SECOND = 25, 90  # the steps at which it is killed


def python(server, tmp_path):
    return [sys.executable, EXAMPLES / "python" / "resume.py"], server.url


def python_over_grpc(server, tmp_path):
    return [sys.executable, EXAMPLES / "python" / "resume.py"], server.grpc_url


def shell(server, tmp_path):
    need("curl", "awk")
    return [EXAMPLES / "resume.sh"], server.url


def node(server, tmp_path):
    need("node")
    return ["node", EXAMPLES / "node" / "resume.mjs"], server.url


def cpp(server, tmp_path):
    need("make", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    output("make", "-j2", "-f", EXAMPLES / "cpp" / "Makefile", "resume", cwd=tmp_path)
    return [tmp_path / "resume"], server.grpc_url


def fortran(server, tmp_path):
    need("gfortran", "make", "curl-config")
    makefile = EXAMPLES / "fortran" / "Makefile"
    output("make", "-B", "-f", makefile, f"VPATH={EXAMPLES / 'fortran'}", "resume", cwd=tmp_path)
    return [tmp_path / "resume"], server.url


def java(server, tmp_path):
    need("java", "javac")
    return ["java", EXAMPLES / "java" / "Resume.java"], server.url


def r(server, tmp_path):
    need("Rscript")
    return ["Rscript", EXAMPLES / "r" / "resume.R"], server.url


def octave(server, tmp_path):
    need("octave-cli", "curl")
    return ["octave-cli", "--no-gui", EXAMPLES / "octave" / "resume.m"], server.url


def openapi(server, tmp_path):
    interpreter = ROOT / ".venv-languages" / "bin" / "python"
    need(interpreter)
    made = tmp_path / "adamd-client"
    command = [interpreter.parent / "openapi-python-client", "generate", "--url", f"{server.url}/openapi.json"]
    output(*command, "--config", EXAMPLES / "openapi" / "config.yml", "--output-path", made)
    return ["env", f"PYTHONPATH={made}", interpreter, EXAMPLES / "openapi" / "resume.py"], server.url


@pytest.fixture(scope="module")
def mortal(tmp_path_factory):
    """A server of these tests' own, to be killed."""
    running = Server(tmp_path_factory.mktemp("mortal")).start()
    yield running
    assert running.stop() == 0, running.log()


def bits(line):
    """Of `step loss x y`: the step, and the bits of the rest."""
    step, *numbers = line.split()
    return int(step), struct.pack(">3d", *map(float, numbers)).hex()


def standing(url, name):
    """Where the session stands, as far as two runs can agree: and it is deleted."""
    with adamd.connect(url) as client:
        session = client.session(name)
        info = session.info()
        parameters = session.parameters().tobytes().hex()
        session.delete(anyway=True)
    return info["step"], info["stop"], info["progress"], parameters


@pytest.fixture(scope="module")
def undisturbed(server):
    """What the SDK prints where nobody kills anything, and where its session then stands."""
    *lines, last = output(sys.executable, EXAMPLES / "python" / "resume.py", server.url, "calm").splitlines()
    assert last == "stop target_loss" and len(lines) == STEPS
    return dict(map(bits, lines)), standing(server.url, "calm")


class Program:
    """A run of an example, in a process group of its own: what it starts (curl) dies with it."""

    def __init__(self, command):
        words = list(map(str, command))
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.lines = []

    def until(self, step):
        """Read on until it has printed this step."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.split()[0] == str(step):
                return
        raise AssertionError(f"it ended before step {step}: {self.lines[-3:]}")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.end()

    def end(self):
        """Returns how it ended; `lines` then are those that it printed in whole."""
        self.lines += self.process.stdout
        self.process.stdout.close()
        self.lines = [line for line in self.lines if line.endswith("\n")]
        return self.process.wait(60)


@pytest.mark.parametrize(
    "language",
    [python, python_over_grpc, shell, node, cpp, fortran, java, r, octave, openapi],
    ids=lambda one: one.__name__,
)
def test_it_goes_on_where_it_was_killed_and_stops_by_its_rule(language, mortal, undisturbed, tmp_path):
    told, stood = undisturbed
    name = f"run-{language.__name__.replace('_', '-')}"
    command, url = language(mortal, tmp_path)
    command = [*command, url, name]

    first = Program(command)
    first.until(FIRST)
    os.kill(mortal.pid, signal.SIGSTOP)  # so that it is killed with a step on its way, and not at its end
    assert first.kill() == -signal.SIGKILL
    mortal.restart()
    second = Program(command)
    second.until(SECOND)
    mortal.restart()  # under the program's feet
    assert second.end() == 0

    assert second.lines.pop().split() == ["stop", "target_loss"]
    before, after = [dict(map(bits, one.lines)) for one in (first, second)]
    assert not before.items() & after.items() and min(after) in (max(before) + 1, max(before) + 2)  # it went on
    assert (before | after).items() <= told.items() and len(before | after) >= STEPS - 1
    assert output(*command).split() == ["stop", "target_loss"]  # a finished run is finished
    assert standing(mortal.url, name) == stood
