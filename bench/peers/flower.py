"""Flower: `FedAdam` over replies that are there already, and whole rounds over its gRPC connections.

The aggregation is that of `flwr.serverapp`, as it is and with its one slip mended. The rounds are those of
`flwr.server.start_server` and `start_client`: deprecated, and Flower's quickest way over sockets, since its server
sends to clients that wait. What took its place asks in intervals: `SLEEPS`.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAdam as PushedFedAdam
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from bench.peers import turns
from bench.peers.turns import Floats

SLEEPS = {"HttpGrid.send_and_receive": 3.0, "SuperNode, for a message": 3.0, "SuperNode, for its reply": 0.5}  # seconds
Reduce: TypeAlias = Callable[[FedAdam, int, "list[Message]"], "ArrayRecord | None"]


class Reduced:
    """The replies of one round, aggregated again and again, from the parameters that came of the time before."""

    def __init__(self, parameters: Floats, replies: list[Message], reduce: Reduce) -> None:
        self._strategy = FedAdam()
        self._replies = replies
        self._reduce = reduce
        self._arrays: ArrayRecord | None = ArrayRecord({"vector": Array(parameters)})
        self._round = 0

    def prepare(self) -> None:
        assert self._arrays is not None
        self._round += 1
        # What `configure_train` does before it makes messages.
        self._strategy.current_arrays = {key: array.numpy() for key, array in self._arrays.items()}

    def step(self) -> None:
        self._arrays = self._reduce(self._strategy, self._round, self._replies)

    def answer(self) -> Floats:
        assert self._arrays is not None
        found: Floats = self._arrays["vector"].numpy().astype(np.float32)
        return found

    def close(self) -> None:
        self._replies, self._arrays = [], None


def as_it_is(strategy: FedAdam, number: int, replies: list[Message]) -> ArrayRecord | None:
    """Flower's own: its step size is a NumPy scalar, which makes float64 arrays of float32 ones."""
    arrays, _ = strategy.aggregate_train(number, replies)
    return arrays


def mended(strategy: FedAdam, number: int, replies: list[Message]) -> ArrayRecord | None:
    """The same lines with a step size that is a Python float, so that float32 stays float32."""
    arrays, _ = FedAvg.aggregate_train(strategy, number, replies)
    assert arrays is not None
    assert strategy.current_arrays is not None
    delta, strategy.m_t, mean = strategy._compute_deltat_and_mt(arrays)
    before = strategy.v_t or {key: np.zeros_like(value) for key, value in mean.items()}
    strategy.v_t = {
        key: strategy.beta_2 * value + (1 - strategy.beta_2) * delta[key] ** 2 for key, value in before.items()
    }
    corrected = np.sqrt(1 - strategy.beta_2 ** (number + 1.0)) / (1 - strategy.beta_1 ** (number + 1.0))
    rate = float(strategy.eta * corrected)
    return ArrayRecord(
        {
            key: Array(value + rate * strategy.m_t[key] / (np.sqrt(strategy.v_t[key]) + strategy.tau))
            for key, value in strategy.current_arrays.items()
        }
    )


def rows(parameters: Floats, trained: Floats) -> turns.Rows:
    """Make the replies. ``trained``: (clients, parameters), what each client's training made of them."""
    replies = [_reply(place, vector) for place, vector in enumerate(trained)]
    return {
        "Flower FedAdam": Reduced(parameters, replies, as_it_is),
        "Flower FedAdam, float32": Reduced(parameters, replies, mended),
    }


def _reply(place: int, vector: Floats) -> Message:
    asked = Message(RecordDict(), dst_node_id=place + 1, message_type="train")
    content = RecordDict(
        {"arrays": ArrayRecord({"vector": Array(vector)}), "metrics": MetricRecord({"num-examples": place + 1})}
    )
    return Message(content, reply_to=asked)


def rounds(shape: dict[str, int]) -> dict[str, Any]:
    """Run rounds with clients in another process; returns the seconds of each, from its beginning to the next one's."""
    began: list[float] = []

    def configured(number: int) -> dict[str, Any]:
        began.append(time.perf_counter())
        return {}

    clients = shape["clients"]
    strategy = PushedFedAdam(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(shape["parameters"], np.float32)]),
        on_fit_config_fn=configured,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    others = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.flower_clients", address, str(clients)], stdout=sys.stderr
    )
    try:
        start_server(server_address=address, config=ServerConfig(num_rounds=shape["rounds"] + 1), strategy=strategy)
        ended = time.perf_counter()
        others.wait(60)
    finally:
        others.kill()
        others.wait()
    return {"seconds": _between([*began, ended])[1:], "sleeps": SLEEPS}  # in the first round clients still connect


def _between(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def main() -> None:
    """Be the server, in whose name messages are made."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1
    turns.take(rows, {"Flower": os.getpid()}, rounds)


if __name__ == "__main__":
    main()
