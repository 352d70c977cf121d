"""MXNet's ``dist_async`` key-value store (ps-lite): scheduler, server with Adam on it, this worker. Push, pull."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from itertools import count

import mxnet

from bench.peers import turns
from bench.peers.turns import BETAS, EPS, LR, Floats


class Pushed:
    """One key of the store; the store keeps it after ``close``: it can forget none."""

    def __init__(self, store: mxnet.kv.KVStore, key: int, parameters: Floats, gradient: Floats) -> None:
        self._store = store
        self._key = key
        self._source = gradient
        self._gradient = mxnet.nd.array(gradient)
        self._came = mxnet.nd.array(parameters)
        store.init(key, self._came)

    def prepare(self) -> None:
        # A push keeps the array, and the pull then receives into it: a program has a new gradient for every step.
        self._gradient = mxnet.nd.array(self._source)
        self._gradient.wait_to_read()

    def step(self) -> None:
        self._store.push(self._key, self._gradient)
        self._store.pull(self._key, out=self._came)
        self._came.wait_to_read()

    def answer(self) -> Floats:
        found: Floats = self._came.asnumpy()
        return found

    def close(self) -> None:
        pass


def main() -> None:
    """Start scheduler and server; be the worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(DMLC_PS_ROOT_URI="127.0.0.1", DMLC_PS_ROOT_PORT=port, DMLC_NODE_HOST="127.0.0.1")
    os.environ.update(DMLC_INTERFACE="lo", DMLC_NUM_SERVER="1", DMLC_NUM_WORKER="1")
    # With such a role, the import serves until the worker has gone.
    others = {
        role: subprocess.Popen(
            [sys.executable, "-c", "import mxnet"], env={**os.environ, "DMLC_ROLE": role}, stdout=sys.stderr
        )
        for role in ("scheduler", "server")
    }
    os.environ["DMLC_ROLE"] = "worker"
    try:
        store, keys = mxnet.kv.create("dist_async"), count()
        store.set_optimizer(mxnet.optimizer.Adam(learning_rate=LR, beta1=BETAS[0], beta2=BETAS[1], epsilon=EPS))

        def rows(parameters: Floats, gradient: Floats) -> turns.Rows:
            return {"MXNet dist_async": Pushed(store, next(keys), parameters, gradient)}

        turns.take(rows, {"MXNet, server": others["server"].pid, "MXNet, worker": os.getpid()})
    except Exception:
        traceback.print_exc()
    finally:
        for process in others.values():
            process.kill()
        os._exit(0)  # an ordinary end waits for the scheduler


if __name__ == "__main__":
    main()
