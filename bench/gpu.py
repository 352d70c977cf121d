"""``python -m bench.gpu``: times the update on a GPU and end to end, with the card and the date.

Kernel times are without the way to the card and back, beside the floor (the bytes that an update has to move, at the
card's own copy bandwidth) and torch's fused Adam on the same card, in turns. End to end is one update as the server
makes it: gradient up from host memory, parameters back. Small sessions: the same updates one by one and all at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from adamd_service.device.choose import DeviceRefused, device_of
from adamd_service.device.cupy_runtime import found
from adamd_service.device.gpu import Gpu, Step
from adamd_service.device.measure import copy_bandwidth, update_bytes, update_seconds
from adamd_service.device.runtime import Runtime
from adamd_service.optim import State, Update, parse_settings, plan

DTYPE = np.dtype(np.float32)
SIZES = 1_000_000, 10_000_000, 100_000_000, 1_000_000_000
SESSIONS, SMALL = 1_000, 10_000  # sessions, and the parameters of each
Row = tuple[str, ...]


def main(
    arguments: Sequence[str] | None = None, runtimes: Callable[[], Sequence[Runtime]] = found, page: Path | None = None
) -> None:
    """Measure and print the page; write it where `page` is given. ``make gpu`` keeps it in bench/GPU.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="PARAMETERS")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    asked = parser.parse_args(arguments)
    try:
        gpu = device_of(asked.device, None, _lost, print, runtimes)
    except DeviceRefused as error:
        raise SystemExit(f"bench.gpu: {error}") from None
    if not isinstance(gpu, Gpu):
        raise SystemExit(f"bench.gpu: {gpu.described}; wanted one GPU, as in --device cuda:0")
    try:
        lines = list(_page(gpu, asked.sizes, asked.sessions))
    finally:
        gpu.close()
    if page is not None:
        page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _lost(error: Exception) -> None:
    raise SystemExit(f"bench.gpu: the GPU is lost: {error}")


def _page(gpu: Gpu, sizes: Sequence[int], sessions: int) -> Iterator[str]:
    yield f"# adamd on {gpu.described}"
    yield f"\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Adam, float32. Owed: kernel ≥ 0.9 of the floor's speed at 100 M,"
    yield f"no slower than torch's fused Adam; {SESSIONS:,} sessions of {SMALL:,} at once ≥ 20 × one by one.\n"
    yield from _table(
        ("parameters", "floor, ms", "kernel, ms", "floor ÷ kernel", "torch fused, ms", "end to end, ms"),
        (_of_size(gpu, size) for size in sizes),
    )
    yield ""
    yield from _table(("sessions", "one by one, ms", "at once, ms", "times as fast"), [_crowd(gpu, sessions)])


def _table(head: Row, rows: Iterator[Row] | Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _of_size(gpu: Gpu, size: int) -> Row:
    if 16 * size > gpu.runtime.free():
        return (f"{size:,}", *["does not fit"] * 5)
    [update] = _planned(size)
    repeats = min(1_000, max(5, 200_000_000 // size))
    bandwidth = copy_bandwidth(gpu.runtime, 4 * size, repeats)
    floor = update_bytes(gpu, update.scalars) * size / bandwidth
    kernel = update_seconds(gpu, update.scalars, size, repeats)
    peer = _torch(gpu, size, repeats)
    whole = _end_to_end(gpu, size) if 12 * size < gpu.residences.limit else None
    return (
        f"{size:,}",
        _ms(floor),
        _ms(kernel),
        f"{floor / kernel:.2f}",
        "absent" if peer is None else _ms(peer),
        "does not fit" if whole is None else _ms(whole),
    )


def _planned(size: int) -> tuple[Update, ...]:
    return plan(parse_settings({}), ["all"], [0], [True], DTYPE)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def _torch(gpu: Gpu, size: int, repeats: int) -> float | None:
    """Return the seconds of a step of torch's fused Adam; None where torch or its CUDA is missing."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", getattr(gpu.runtime, "number", 0))
    parameter = torch.nn.Parameter(torch.zeros(size, device=device))
    parameter.grad = torch.ones(size, device=device)
    optimizer = torch.optim.Adam([parameter], fused=True)
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            optimizer.step()
        torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def _end_to_end(gpu: Gpu, size: int) -> float:
    settings = parse_settings({})
    state = State.fresh(np.zeros(size, DTYPE), 1, settings)
    gradient, out = np.ones(size, DTYPE), np.empty(size, DTYPE)
    times = []
    for _ in range(6):
        updates = plan(settings, ["all"], state.counts, [True], DTYPE)
        began = time.perf_counter()
        gpu.apply(state, gradient, updates, [0, size], out)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _crowd(gpu: Gpu, count: int) -> Row:
    settings = parse_settings({})
    states = [State.fresh(np.zeros(SMALL, DTYPE), 1, settings) for _ in range(count)]
    gradient = np.ones(SMALL, DTYPE)
    outs = [np.empty(SMALL, DTYPE) for _ in states]
    bounds = [0, SMALL]

    def one_by_one() -> None:
        for state, out in zip(states, outs, strict=True):
            updates = plan(settings, ["all"], state.counts, [True], DTYPE)
            gpu.apply(state, gradient, updates, bounds, out)

    def at_once() -> None:
        updates = [plan(settings, ["all"], state.counts, [True], DTYPE) for state in states]
        gpu.apply_all([Step(s, gradient, u, bounds, o) for s, u, o in zip(states, updates, outs, strict=True)])

    one_by_one()  # all of them come to the card
    slow, fast = min(_timed(one_by_one) for _ in range(3)), min(_timed(at_once) for _ in range(3))
    return f"{count:,} of {SMALL:,}", _ms(slow), _ms(fast), f"{slow / fast:.1f}"


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
