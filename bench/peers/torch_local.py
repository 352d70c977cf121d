"""``torch.optim.Adam`` in the program itself, over one flat vector: what nobody has to send anywhere."""

from __future__ import annotations

import os

import torch

from bench.peers import turns
from bench.peers.turns import BETAS, EPS, LR, Floats

# What a CPU gets by default is neither foreach nor fused.
KINDS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Local:
    """One of torch's implementations."""

    def __init__(self, parameters: Floats, gradient: Floats, options: dict[str, bool]) -> None:
        self._parameter = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
        self._parameter.grad = torch.from_numpy(gradient)
        self._optimizer = torch.optim.Adam([self._parameter], lr=LR, betas=BETAS, eps=EPS, **options)

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self._optimizer.step()

    def answer(self) -> Floats:
        found: Floats = self._parameter.detach().numpy()
        return found

    def close(self) -> None:
        pass


def rows(parameters: Floats, gradient: Floats) -> turns.Rows:
    return {f"local Adam, {kind}": Local(parameters, gradient, options) for kind, options in KINDS.items()}


if __name__ == "__main__":
    turns.take(rows, {"torch, local": os.getpid()})
