"""Sessions with rounds, by the bare client: what is done by hand, and what many clients do."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bench.clock import Floats
from bench.processes import Service
from bench.sessions import Bare

# Flower's FedAdam: its defaults, and its bias correction.
FEDADAM = {"name": "fedadam", "form": "flower", "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-3}
Kind = Literal["delta", "parameters"]


def open_session(
    bare: Bare, parameters: Floats, rounds: dict[str, Any], optimizer: dict[str, Any] | None = None
) -> str:
    """Make a session with rounds; returns its path."""
    layout = [{"name": "vector", "shape": [len(parameters)]}]
    asked = {"layout": layout, "dtype": "float32", "optimizer": optimizer or FEDADAM, "rounds": rounds}
    path = f"/v1/sessions/{bare.json('POST', '/v1/sessions', asked)['id']}"
    bare.raw("PUT", f"{path}/parameters", parameters)
    return path


class ClosedByHand:
    """Rounds of contributions that are all there, durable, before the round is closed; the closing is timed."""

    def __init__(self, name: str, service: Service, kind: Kind, parameters: Floats, trained: Sequence[Floats]) -> None:
        self.name = name
        self._bare = Bare(service)
        # One more than will come: nothing closes before it is asked to.
        asked = {"quorum": len(trained) + 1, "min_contributions": 1, "deadline_s": 3600}
        self._path = open_session(self._bare, parameters, asked)
        self._kind: Kind = kind
        self._parameters = parameters
        self._trained = trained
        self._round = 1

    def prepare(self) -> None:
        """Send every contribution."""
        for place, vector in enumerate(self._trained):
            body = vector - self._parameters if self._kind == "delta" else vector
            target = f"{self._path}/rounds/{self._round}/contributions/ward-{place:03}"
            self._bare.contribute(target, memoryview(body).cast("B"), self._kind, place + 1)

    def step(self) -> float:
        """Close the round; returns the seconds until its step is committed, and the new parameters can be had."""
        began = time.perf_counter()
        closed = self._bare.json("POST", f"{self._path}/rounds/{self._round}/close")
        seconds = time.perf_counter() - began
        counted = sum(one["counted"] for one in closed["contributions"])
        if closed["step"] != self._round or counted != len(self._trained):
            raise SystemExit(f"{self.name}: {counted} contributions made step {closed['step']}")
        self._round += 1
        return seconds

    def answer(self) -> Floats:
        """Return the parameters."""
        return self._bare.parameters(self._path, np.empty_like(self._parameters))

    def close(self) -> None:
        """Delete the session."""
        self._bare.json("DELETE", self._path)
        self._bare.close()


def work(service: Service, path: str, client: str, parameters: int, rounds: int) -> None:
    """Be one client: pull, add a little, contribute, until the rounds are over."""
    bare, held = Bare(service), np.zeros(parameters, np.float32)
    while True:
        task = bare.json("GET", f"{path}/rounds/current?client={client}&wait_s=30")
        if task is None:  # nothing for it yet
            continue
        if task["kind"] == "stop" or task["round"] > rounds:
            break
        bare.parameters(path, held)
        held += np.float32(1e-3)
        target = f"{path}/rounds/{task['round']}/contributions/{client}"
        bare.contribute(target, memoryview(held).cast("B"), "parameters", 1)
    bare.close()


def main() -> None:
    """Run all clients of one session, a thread each: as Flower's run in `bench.peers.flower_clients`."""
    asked = json.loads(sys.argv[1])
    service = Service("adamd", 0, asked["host"], asked["port"])
    given = asked["path"], asked["parameters"], asked["rounds"]
    threads = [
        threading.Thread(target=work, args=(service, given[0], f"ward-{place:03}", *given[1:]))
        for place in range(asked["clients"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
