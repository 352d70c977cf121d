"""Servers forked from a process that has loaded everything: ready in a fifth of a second instead of two seconds.

Run as a program, this file is the fork server: it imports adamd, loads the kernels, and forks a child for each request that
comes through its socket. The child takes the environment, the directory, the output and the arguments that it was
given, and runs the module as `python -m` does, down to the interpreter's end. Nothing that lives is there before a
fork: no thread of Python's, no event loop, no channel or server of gRPC's. When the socket closes, because its pytest
ended or was killed, the fork server ends, and Linux kills what is left of its children.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile

MODULE = "adamd_service"
# Read when a server starts, not when it is imported; pytest's; scikit-learn's, which sets them when a test imports it, for
# an OpenMP that no server loads; read when a line is printed; the interpreter's at its start, and `become` does the same.
HARMLESS = "ADAMD_", "PYTEST_CURRENT_TEST", "KMP_", "COLUMNS", "PYTHONFAULTHANDLER"
PR_SET_PDEATHSIG = 1
LONGEST = 200_000  # bytes of a request: one message, so no more than a socket's buffer
LOADED = 120  # seconds in which it has loaded everything: the first time on a machine, kernels are compiled

# -- the side of the tests


def missing():
    """Why there can be no fork server on this machine; None where there can."""
    for name in ("pidfd_open", "fork"):
        if not hasattr(os, name):
            return f"os.{name} is not on this machine"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:  # an old kernel, or a sandbox that forbids it
        return f"os.pidfd_open does not work here: {error.strerror}"
    return None


class ForkServer:
    """The process that forks, for servers whose environment differs from `environment` in what is `HARMLESS` alone."""

    def __init__(self, environment):
        self.environment = dict(environment)
        self._log = tempfile.TemporaryFile("w+")  # what it says: an import that fails
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=self._log,
                stderr=self._log,
                env=self.environment,
            )

    @property
    def pid(self):
        return self._process.pid

    def serves(self, module, environment):
        """Whether a fork is what a new process would be: what else a library reads at its import, it has read."""
        mine, other = self.environment, environment
        differing = {name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)}
        return module == MODULE and all(name.startswith(HARMLESS) for name in differing)

    def fork(self, module, words, environment, apart=False):
        """Start `python -m module *words`; what it writes is in its `stdout`, as text, errors in its `stderr` if `apart`."""
        request = {"module": module, "words": words, "environment": environment, "directory": os.getcwd()}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        stdout, stderr = open(reading), None
        errors = os.dup(writing)
        if apart:
            os.close(errors)
            reading, errors = os.pipe()
            stderr = open(reading)
        try:
            with theirs, open(writing, "wb") as out, open(errors, "wb") as err:
                fds = [out.fileno(), err.fileno(), theirs.fileno()]
                socket.send_fds(self._control, [json.dumps(request).encode()], fds)
            return Forked(ours, stdout, stderr)
        except (OSError, EOFError) as error:
            for one in filter(None, (ours, stdout, stderr)):
                one.close()
            self._log.seek(0)
            raise RuntimeError(f"the fork server did not fork ({error!r}):\n{self._log.read()[-5000:]}") from None

    def close(self):
        """End it, and with it whatever lives of its children."""
        self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait(30)
        self._log.close()


class Forked:
    """A child of the fork server, for its tests what `subprocess.Popen` is for a child of theirs."""

    def __init__(self, told, stdout, stderr):
        self.stdout, self.stderr, self.returncode = stdout, stderr, None
        self._told = told
        told.settimeout(LOADED)
        message, fds, _, _ = socket.recv_fds(told, 64, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            raise EOFError("no answer")
        self.pid, (self._pidfd,) = int(message), fds

    def poll(self):
        """The exit status, once it has ended; minus the signal's number where one ended it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                message = self._told.recv(64)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"adamd, process {self.pid}", timeout) from None
            if not message:
                raise RuntimeError(f"the fork server ended before process {self.pid} did")
            self.returncode = int(message)
            self._told.close()
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


# -- the side of the fork server


def load():
    """Import what `adamd serve` imports, and load the kernels that it loads: all that a start does before it acts."""
    for name in ("rich.console", "rich.table", "typer", "adamd_service.serve"):  # the command itself runs in the child
        importlib.import_module(name)
    poller = importlib.import_module("adamd.wire.poller")
    with contextlib.suppress(ModuleNotFoundError), poller.chosen():  # as serve does, and without gRPC, as serve
        importlib.import_module("adamd_service.grpc.server")
    numpy = importlib.import_module("numpy")
    importlib.import_module("adamd_service.optim").warm_up((numpy.dtype("float32"), numpy.dtype("float64")))


def main(control):
    """Fork a child for each request. In a child, this goes on to what it was asked to run, and returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's, which then closes the socket
    with open(__file__) as one:  # what the first compiles, on a new machine, the others find
        fcntl.flock(one, fcntl.LOCK_EX)
        load()
    # Else each child's end walks through all of this once more, and copies its pages: 1.4 seconds of a processor, then 0.2.
    gc.collect()
    gc.freeze()
    children = {}  # pidfd -> its process id, and where its end is told
    with selectors.DefaultSelector() as waiting:
        waiting.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not control:
                    waiting.unregister(key.fileobj)
                    reap(key.fileobj, *children.pop(key.fileobj))
                    continue
                message, fds, _, _ = socket.recv_fds(control, LONGEST, 3, socket.MSG_CMSG_CLOEXEC)
                if not message:
                    return
                request, (out, err, told) = json.loads(message), fds
                parent, pid = os.getpid(), os.fork()
                if pid == 0:
                    forget(waiting, control, children, told)
                    end_with(parent)
                    return become(request, out, err)
                os.close(out)
                os.close(err)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, socket.socket(fileno=told)
                waiting.register(pidfd, selectors.EVENT_READ)
                with contextlib.suppress(OSError):  # nobody waits for it
                    socket.send_fds(children[pidfd][1], [str(pid).encode()], [pidfd])


def reap(pidfd, pid, told):
    """Take a child's exit status, and tell it."""
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with told, contextlib.suppress(OSError):
        told.send(str(os.waitstatus_to_exitcode(status)).encode())


def end_with(parent):
    """Have Linux kill this process when the fork server ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it was asked for
        os.kill(os.getpid(), signal.SIGKILL)


def forget(waiting, control, children, told):
    """Close what is the fork server's: a new process would not have it either."""
    waiting.close()
    control.close()
    os.close(told)
    for pidfd, (_, other) in children.items():
        os.close(pidfd)
        other.close()


def become(request, out, err):
    """Be the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in ((1, out), (2, err)):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    os.chdir(request["directory"])
    sys.path.insert(0, request["directory"])  # as -m does
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
