"""A Ray actor that keeps a ``torch.optim.Adam``: arrays by Ray's shared memory, one remote call a step."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings

import numpy as np
import ray
import torch

from bench.peers import turns
from bench.peers.turns import BETAS, EPS, LR, Floats


@ray.remote
class Keeper:
    """The parameters and the optimizer, in a process of Ray's."""

    def __init__(self, parameters: Floats) -> None:
        # A large argument is a view of Ray's shared memory; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._parameter = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
        self._optimizer = torch.optim.Adam([self._parameter], lr=LR, betas=BETAS, eps=EPS)

    def step(self, gradient: Floats) -> Floats:
        self._parameter.grad = torch.from_numpy(gradient)
        self._optimizer.step()
        found: Floats = self._parameter.detach().numpy()
        return found


class Actor:
    """One actor, from its caller."""

    def __init__(self, parameters: Floats, gradient: Floats) -> None:
        self._keeper = Keeper.remote(parameters)  # type: ignore[attr-defined]  # Ray's decorator puts it there
        self._gradient = gradient
        self._came = gradient

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self._came = ray.get(self._keeper.step.remote(self._gradient))

    def answer(self) -> Floats:
        return np.asarray(self._came)

    def close(self) -> None:
        ray.kill(self._keeper)


def rows(parameters: Floats, gradient: Floats) -> turns.Rows:
    return {"Ray actor": Actor(parameters, gradient)}


def main() -> None:
    """Start a Ray of one's own, in a directory of one's own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    directory = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    try:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=1 << 30,
            _temp_dir=directory,
        )
        turns.take(rows, {"Ray, caller": os.getpid()})
        ray.shutdown()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
