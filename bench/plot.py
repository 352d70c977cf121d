"""The picture of a run: every contender's time by size, and how many times the floor that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.run import Measured

# By what it is: grey what nothing can be faster than, one colour for adamd, another for each kind of peer.
STYLES: dict[str, tuple[str, str]] = {
    "floor": ("#777777", ":"),
    "kernel": ("#777777", "-."),
    "memory": ("#0a7d8c", "-"),
    "memory, gRPC stream": ("#0a7d8c", "--"),
    "committed, everysec": ("#1f4e9e", "--"),
    "committed, always": ("#1f4e9e", "-"),
    "naive, always": ("#c0392b", "-"),
    "torch RPC": ("#d35400", "-"),
    "MXNet dist_async": ("#8e44ad", "-"),
    "Ray actor": ("#b8860b", "-"),
    "local Adam, default": ("#2e8b57", "-"),
    "local Adam, fused": ("#2e8b57", "--"),
}


def picture(path: Path, sizes: Sequence[Measured], machine: str) -> None:
    """Write it as a PNG: medians, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    times, ratios = figure.subplots(1, 2)
    for name, (colour, line) in STYLES.items():
        measured = [one for one in sizes if name in one.times]
        if not measured:
            continue
        at = [one.parameters for one in measured]
        medians = [_median(one, name) for one in measured]
        beside = [_median(one, "floor") + _median(one, "kernel") for one in measured]
        look = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3.5, "linewidth": 1.6, "label": name}
        times.plot(at, [1000 * seconds for seconds in medians], **look)
        if name not in ("floor", "kernel"):
            ratios.plot(at, [one / other for one, other in zip(medians, beside, strict=True)], **look)
    ratios.axhline(1, color="#777777", linestyle=":", linewidth=1.2)
    for axes, said in ((times, "one step, ms (median)"), (ratios, "times (floor + kernel)")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("parameters, float32")
        axes.set_ylabel(said)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(f"Adam over loopback: the gradient up, the parameters down. {machine}", fontsize=11)
    figure.savefig(path)


def _median(measured: Measured, name: str) -> float:
    return median(t for one in measured.times[name] for t in one)
