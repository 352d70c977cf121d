"""``adamd selftest``: is what this machine computes what every other machine computes, and at what speed?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adamd_service.device.gpu import Gpu
from adamd_service.device.measure import copy_bandwidth, update_bytes, update_seconds
from adamd_service.device.spread import Spread
from adamd_service.optim import FAMILY, Cpu, Device, ReferenceKernel, State, parse_settings, plan
from adamd_service.optim import updates_from_json as read
from adamd_service.optim import updates_to_json as written

SIZE, STEPS, IDLE_STEPS = 100_003, 12, 1_000  # elements; a length that no width divides
QUICK: Final = "adam", "adamw"
DTYPES: Final = np.dtype(np.float32), np.dtype(np.float64)
MEASURED_ELEMENTS = 100_000_000  # elements, or what fits
EXPECTED_SHARE = 0.9  # of the copy bandwidth, on a GPU
REFERENCE: Final = Cpu(ReferenceKernel())  # the texts themselves on NumPy


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. well: None where nothing was owed."""

    what: str
    detail: str
    well: bool | None


def selftest(device: Device, say: Callable[[str], None], *, quick: bool = False) -> bool:
    """Tell line by line how the device compares with the reference; returns whether every bit was right.

    quick: Adam and AdamW alone, and no measurement.
    """
    say(f"adamd selftest on {device.described}")
    well = True
    for finding in _findings(device, quick):
        mark = {True: "ok  ", False: "FAIL", None: "note"}[finding.well]
        say(f"{mark}  {finding.what}: {finding.detail}")
        well = well and finding.well is not False
    if well:
        say(f"Verdict: {device.described} computes what every other machine computes, bit for bit.")
    else:
        say(f"Verdict: {device.described} does NOT compute what other machines compute. Do not serve with it.")
    return well


def _findings(device: Device, quick: bool) -> Iterator[Finding]:
    for name in QUICK if quick else FAMILY:
        for dtype in DTYPES:
            yield _parity(device, name, dtype)
    for dtype in DTYPES:
        yield _idle(device, dtype)
    for dtype in DTYPES:
        yield _replay(device, dtype)
    if not quick:
        gpus = device.gpus if isinstance(device, Spread) else (device,)
        for gpu in gpus:
            yield _gpu_speed(gpu) if isinstance(gpu, Gpu) else _cpu_speed(gpu)


def hard(rng: np.random.Generator, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values of many magnitudes whose squares are finite; an eighth are zeros of both signs, subnormals and their
    neighbours.
    """
    info = np.finfo(dtype)
    top = np.log2(float(info.max)) / 2 - 4
    values: NDArray[Any] = (np.exp2(rng.normal(-8, 12, size).clip(-top, top)) * rng.choice([-1.0, 1.0], size)).astype(
        dtype
    )
    tiny = float(info.smallest_normal)
    edges = np.array([0.0, tiny, tiny / 2, 2 * tiny, float(info.smallest_subnormal), 1.0], dtype)
    where = rng.random(size) < 1 / 8
    values[where] = rng.choice(np.concatenate([edges, -edges]), int(where.sum()))
    return values


def _differing(first: State, second: State) -> tuple[int, int]:
    """Return (elements compared, bit patterns that differ); a NaN equals a NaN, whose payload is the machine's."""
    compared = different = 0
    for name, array in first.arrays.items():
        other = second.arrays[name]
        kind = f"u{array.itemsize}"
        both = np.isnan(array) & np.isnan(other)
        different += int(np.count_nonzero((array.view(kind) != other.view(kind)) & ~both))
        compared += len(array)
    return compared, different


def _shown(what: str, compared: int, different: int) -> Finding:
    return Finding(what, f"{compared:,} elements compared, {different:,} differ", different == 0)


def _parity(device: Device, name: str, dtype: np.dtype[Any]) -> Finding:
    rng = np.random.default_rng(1)
    settings = parse_settings({"name": name})
    device.prepare(settings, dtype)
    state = State.fresh(hard(rng, SIZE, dtype), 1, settings)
    truth = state.copy()
    out = np.empty_like(state.params)
    compared = different = 0
    for _ in range(STEPS):
        gradient = hard(rng, SIZE, dtype)
        updates = plan(settings, ["all"], truth.counts, [True], dtype, truth.carried)
        report = device.apply(state, gradient, updates, [0, SIZE], out)
        different += report != REFERENCE.apply(truth, gradient, updates, [0, SIZE], None)
        device.fetch(state)
        counted = _differing(state, truth)
        compared, different = compared + counted[0], different + counted[1]
        different += int(out.tobytes() != state.params.tobytes())
    return _shown(f"{name} {dtype}", compared, different)


def _idle(device: Device, dtype: np.dtype[Any]) -> Finding:
    """One gradient, then zeros of both signs: what decays goes through where subnormals begin."""
    rng = np.random.default_rng(2)
    settings = parse_settings({"name": "adam", "betas": [0.9, 0.95] if dtype.itemsize == 4 else [0.5, 0.5]})
    state = State.fresh(hard(rng, 1000, dtype), 1, settings)
    truth = state.copy()
    for step in range(IDLE_STEPS + 1):
        gradient = hard(rng, 1000, dtype) if step == 0 else rng.choice([0.0, -0.0], 1000).astype(dtype)
        updates = plan(settings, ["all"], truth.counts, [True], dtype, truth.carried)
        device.apply(state, gradient, updates, [0, 1000], None)
        REFERENCE.apply(truth, gradient, updates, [0, 1000], None)
    device.fetch(state)
    return _shown(f"{IDLE_STEPS:,} idle steps {dtype}", *_differing(state, truth))


def _replay(device: Device, dtype: np.dtype[Any]) -> Finding:
    """A log that is written on the device and on the CPU in turn is replayed by the other."""
    rng = np.random.default_rng(3)
    settings = parse_settings({"name": "adamw", "amsgrad": True})
    first = State.fresh(hard(rng, SIZE, dtype), 1, settings)
    start, log = first.copy(), []
    worker: Device = device
    for _ in range(STEPS):
        gradient = hard(rng, SIZE, dtype)
        updates = plan(settings, ["all"], first.counts, [True], dtype, first.carried)
        worker.apply(first, gradient, updates, [0, SIZE], None)
        log.append((gradient, written(updates)))
        worker.fetch(first)
        first = first.copy()  # as a snapshot goes to another machine
        worker = REFERENCE if worker is device else device
    states = []
    for replayer in (device, REFERENCE):
        state = start.copy()
        for gradient, record in log:
            updates = read(record, settings.optimizer, settings.arrays, dtype)
            replayer.apply(state, gradient, updates, [0, SIZE], None)
        replayer.fetch(state)
        states.append(state)
    compared = [_differing(first, state) for state in states]
    return _shown(f"log replayed across devices {dtype}", sum(n for n, _ in compared), sum(d for _, d in compared))


def _gpu_speed(gpu: Gpu) -> Finding:
    dtype = DTYPES[0]
    settings = parse_settings({})
    size = min(MEASURED_ELEMENTS, gpu.runtime.free() // 32)
    [update] = plan(settings, ["all"], [0], [True], dtype)
    copied = copy_bandwidth(gpu.runtime, 8 * size, 10)
    moved = update_bytes(gpu, update.scalars) * size / update_seconds(gpu, update.scalars, size, 10)
    return _speed(f"Adam on {gpu.described}, {size:,} float32", moved, copied, expected=EXPECTED_SHARE)


def _cpu_speed(device: Device) -> Finding:
    dtype, size = DTYPES[0], 10_000_000
    settings = parse_settings({})
    state = State.fresh(np.zeros(size, dtype), 1, settings)
    gradient, into = np.ones(size, dtype), np.empty(size, dtype)
    [update] = plan(settings, ["all"], [0], [True], dtype)
    copied = 2 * gradient.nbytes / _best(lambda: np.copyto(into, gradient))
    moved = 28 * size / _best(lambda: device.apply(state, gradient, [update], [0, size], None))
    return _speed(f"Adam on {device.described}, {size:,} float32", moved, copied, expected=None)


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _speed(what: str, moved: float, copied: float, expected: float | None) -> Finding:
    ratio = moved / copied
    words = f"{moved / 1e9:,.1f} GB/s, {ratio:.2f} of a copy's {copied / 1e9:,.1f} GB/s"
    if expected is not None:
        words += f" ({'as it should be' if ratio >= expected else f'slow: {expected} is owed'})"
    return Finding(what, words, None)
