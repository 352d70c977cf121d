"""``python -m bench.kernels``: the fused Adam beside torch's, in one process, on one and on two threads.

Needs torch 2.13 in the environment that runs it (`.venv-torch` of `.ci/run` has it).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from statistics import median

import numpy as np

from adamd_service.optim import FusedKernel, Kernel, SlicedKernel, State, apply, parse_settings, plan
from bench.clock import Floats
from bench.processes import machine

SIZES = {1_000_000: 40, 10_000_000: 20, 50_000_000: 8}  # parameters -> rounds
OWED = 0.95  # torch's time ÷ ours, at least
WARM, BLOCK = 3, 10  # updates of one side in a row: those before the clock, and those timed
# Seconds between two blocks: OpenMP's threads spin for milliseconds after torch's update, on the core that ours needs.
PAUSE = 0.05


def main() -> None:
    """Print a table in Markdown; the exit status says whether what is owed is there."""
    print(f"{machine()}; medians of rounds in which each takes {BLOCK} updates in a row, in turns; float32\n")
    print("| parameters | threads | torch, fused: ms | adamd: ms | torch ÷ adamd | ≥ 0.95 |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    held = True
    with ThreadPoolExecutor(1) as threads:
        kernels: dict[int, Kernel] = {1: FusedKernel(), 2: SlicedKernel(FusedKernel(), threads, 2)}
        for (parameters, rounds), count in product(SIZES.items(), kernels):
            torchs, ours = _times(parameters, rounds, count, kernels[count])
            ratio = median(theirs / mine for theirs, mine in zip(torchs, ours, strict=True))
            held = held and ratio >= OWED
            said = "yes" if ratio >= OWED else "**no**"
            print(f"| {parameters:,} | {count} | {_ms(torchs)} | {_ms(ours)} | {ratio:.2f} | {said} |", flush=True)
    raise SystemExit(not held)


def _ms(times: list[float]) -> str:
    return f"{1000 * median(times):.2f}"


def _times(parameters: int, rounds: int, count: int, kernel: Kernel) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(parameters)
    start, gradient = (random.standard_normal(parameters, np.float32) for _ in range(2))
    steps = _torch(start, gradient, count), _adamd(start, gradient, kernel)
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = list(zip(steps, found, strict=True))
        for step, times in order if number % 2 else reversed(order):
            time.sleep(PAUSE)
            times.append(_block(step))
    return found


def _block(step: Callable[[], object]) -> float:
    """Return the mean seconds of a few updates, after some that bring caches and threads to their steady state."""
    for _ in range(WARM):
        step()
    began = time.perf_counter()
    for _ in range(BLOCK):
        step()
    return (time.perf_counter() - began) / BLOCK


def _adamd(start: Floats, gradient: Floats, kernel: Kernel) -> Callable[[], None]:
    settings = parse_settings({"name": "adam"})
    state = State.fresh(start, 1, settings)

    def step() -> None:
        updates = plan(settings, ("vector",), state.counts, (True,), state.params.dtype)
        apply(state, gradient, updates, (0, len(start)), None, kernel)

    return step


def _torch(start: Floats, gradient: Floats, threads: int) -> Callable[[], object]:
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    parameter.grad = torch.from_numpy(gradient.copy())
    torch.set_num_threads(threads)
    step: Callable[[], object] = torch.optim.Adam([parameter], fused=True).step
    return step


if __name__ == "__main__":
    main()
