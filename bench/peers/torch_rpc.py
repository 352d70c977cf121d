"""A parameter server on torch's RPC (TensorPipe): two processes, ``torch.optim.Adam`` at one of them, a call a step."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.distributed import rpc

from bench.peers import turns
from bench.peers.turns import BETAS, EPS, LR, Floats

# The plain server, and what one writes who has read all of torch's documentation.
KINDS: dict[str, dict[str, bool]] = {"torch RPC": {}, "torch RPC, fused Adam": {"fused": True}}
SERVER = "server"
served: dict[str, Served] = {}  # at the server


class Served:
    """One vector at the server."""

    def __init__(self, parameters: torch.Tensor, options: dict[str, bool]) -> None:
        self._lock = threading.Lock()
        self._parameter = torch.nn.Parameter(parameters.clone())
        self._optimizer = torch.optim.Adam([self._parameter], lr=LR, betas=BETAS, eps=EPS, **options)

    def step(self, gradient: torch.Tensor) -> torch.Tensor:
        with self._lock:
            self._parameter.grad = gradient
            self._optimizer.step()
            found: torch.Tensor = self._parameter.detach()
            return found


def create(name: str, parameters: torch.Tensor, options: dict[str, bool]) -> None:
    """At the server: begin with these parameters."""
    served[name] = Served(parameters, options)


def step(name: str, gradient: torch.Tensor) -> torch.Tensor:
    """At the server: apply a gradient; returns the parameters."""
    return served[name].step(gradient)


def forget(name: str) -> None:
    """At the server."""
    del served[name]


class Remote:
    """One vector, from the client."""

    def __init__(self, name: str, parameters: Floats, gradient: Floats, options: dict[str, bool]) -> None:
        self._name = name
        self._gradient = torch.from_numpy(gradient)
        self._came = self._gradient
        rpc.rpc_sync(SERVER, create, (name, torch.from_numpy(parameters), options))

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self._came = rpc.rpc_sync(SERVER, step, (self._name, self._gradient))

    def answer(self) -> Floats:
        found: Floats = self._came.numpy()
        return found

    def close(self) -> None:
        rpc.rpc_sync(SERVER, forget, (self._name,))


def rows(parameters: Floats, gradient: Floats) -> turns.Rows:
    return {name: Remote(name, parameters, gradient, options) for name, options in KINDS.items()}


def load(shape: dict[str, int]) -> dict[str, Any]:
    """Step many vectors from many threads at once; returns the seconds of every step, and of the whole."""
    names = [f"load-{number}" for number in range(shape["sessions"])]
    gradient = torch.ones(shape["parameters"])
    for name in names:
        rpc.rpc_sync(SERVER, create, (name, torch.zeros(shape["parameters"]), KINDS["torch RPC"]))

    def client(number: int, steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            for name in names[number :: shape["clients"]]:
                began = time.perf_counter()
                rpc.rpc_sync(SERVER, step, (name, gradient))
                seconds.append(time.perf_counter() - began)
        return seconds

    with ThreadPoolExecutor(clients := shape["clients"]) as pool:
        list(pool.map(client, range(clients), [shape["warm"]] * clients))
        started = time.perf_counter()
        seconds = [one for many in pool.map(client, range(clients), [shape["steps"]] * clients) for one in many]
        whole = time.perf_counter() - started
    for name in names:
        rpc.rpc_sync(SERVER, forget, (name,))
    return {"seconds": seconds, "whole": whole}


def main() -> None:
    """Be the server, where a port is given; else start one, and be the client."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if sys.argv[1:]:
        os.environ["MASTER_PORT"] = sys.argv[1]
        rpc.init_rpc(SERVER, rank=0, world_size=2)
        rpc.shutdown()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ["MASTER_PORT"] = port
    server = subprocess.Popen([sys.executable, "-m", "bench.peers.torch_rpc", port], stdout=sys.stderr)
    try:
        rpc.init_rpc("client", rank=1, world_size=2)
        turns.take(rows, {"torch RPC, server": server.pid, "torch RPC, client": os.getpid()}, load)
        rpc.shutdown()
        server.wait(20)
    finally:
        server.kill()


if __name__ == "__main__":
    main()
