"""The tables of rounds: times, what was owed, and what many contributors saw."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench import ratios
from bench.rounds import Ran
from bench.tabular import Table, ms

# What is compared with what at the sizes of a whole run, and what it may be at most.
OWED: tuple[tuple[str, str, float | None], ...] = (
    ("closed, deltas", "Flower FedAdam", 0.2),
    ("closed, parameters", "Flower FedAdam", 0.2),
    ("closed, deltas", "Flower FedAdam, float32", None),
    ("closed, parameters", "Flower FedAdam, float32", None),
    ("reduce and FedAdam", "Flower FedAdam", 0.15),
    ("reduce and FedAdam", "Flower FedAdam, float32", None),
    ("adamd median", "np.median", 0.5),
)
GROWTH = 1.2  # times what few clients take


def tables(ran: Ran) -> list[Table]:
    """Return all of them."""
    made = [_times(ran), _owed(ran), _growth(ran)]
    if ran.whole:
        made.append(_whole(ran))
    if ran.contributed:
        made.append(_contributed(ran))
    return made


def _times(ran: Ran) -> Table:
    body = [[name, _cell(seconds)] for name, seconds in ran.times.items()]
    body += [[f"{name}: {why}", "absent"] for name, why in ran.absent.items()]
    shape = f"{ran.reduction.clients} contributions of {ran.reduction.parameters:,}"
    return Table([shape, "ms: median / worst"], body)


def _owed(ran: Ran) -> Table:
    body = []
    for ours, other, bound in OWED:
        if ours in ran.times and other in ran.times:
            value = ratios.paired(ran.times[ours], ran.times[other])
            body.append([f"{ours} ÷ {other}", *_held(value, bound)])
    return Table(["ratio (median of paired turns)", "bound", "measured", "holds"], body)


def _growth(ran: Ran) -> Table:
    few, *more = ran.grown
    body = [[f"{few.clients} clients", f"{few.server:,.0f} / {few.store:,.0f}", "", "", ""]]
    for one in more:
        value = (one.server + one.store) / (few.server + few.store)
        told = f"{one.server:,.0f} / {one.store:,.0f}"
        body.append([f"{one.clients} clients", told, *_held(value, GROWTH)])
    return Table(["memory for a round, at most", "MB: server / store", "bound", "÷ few", "holds"], body)


def _whole(ran: Ran) -> Table:
    assert ran.federation is not None
    ours = ran.whole["adamd"]
    body = [[name, _cell(seconds), f"{median(ours) / median(seconds):.2f}"] for name, seconds in ran.whole.items()]
    body += [[f"{name} sleeps between two looks", f"up to {seconds:g} s", ""] for name, seconds in ran.sleeps.items()]
    shape = f"{ran.federation.clients} clients of {ran.federation.parameters:,} over sockets, a round"
    return Table([shape, "ms: median / worst", "adamd ÷ it"], body)


def _contributed(ran: Ran) -> Table:
    one = ran.contributed
    assert one is not None
    p50, p99 = (ms(1000 * one.percentile(rank)) for rank in (50, 99))
    body = [
        [
            f"{one.contributors:,} contributors of {one.parameters:,}, {len(one.rounds)} rounds",
            f"{len(one.seconds):,}",
            f"{p50} / {p99}",
            _cell(one.rounds),
            *(
                f"{before:,.0f} / {after:,.0f} / {one.peak[name]:,.0f}"
                for name, (before, after) in one.resident.items()
            ),
        ]
    ]
    head = ["all counted, no error", "contributions", "ms: p50 / p99", "a round, ms: median / worst"]
    return Table([*head, *(f"{name}, MB: early / late / peak" for name in one.resident)], body)


def _held(value: float, bound: float | None) -> list[str]:
    if bound is None:
        return ["", f"{value:.2f}", ""]
    return [f"≤ {bound:g}", f"{value:.2f}", "yes" if value <= bound else "**no**"]


def _cell(seconds: Sequence[float]) -> str:
    return f"{ms(1000 * median(seconds))} / {ms(1000 * max(seconds))}"
