"""Trains two equal models, one through adamd and one by torch's Adam, and draws both curves."""

import copy
import sys

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import adamd.torch


def train_both(model, loss_of, batches, lr, session=None):
    """Return the trained model and the losses of both runs, step by step."""
    twin = copy.deepcopy(model)
    remote = adamd.torch.Adam(model.named_parameters(), lr=lr, session=session)
    local = torch.optim.Adam(twin.parameters(), lr=lr)
    curves = {"adamd.torch.Adam": [], "torch.optim.Adam": []}
    for number, batch in enumerate(batches, 1):
        for trained, optimizer, losses in zip((model, twin), (remote, local), curves.values(), strict=True):
            optimizer.zero_grad()
            loss = loss_of(trained, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if number % 50 == 0:
            print(f"step {number}: " + ", ".join(f"{name} {losses[-1]:.4f}" for name, losses in curves.items()))
    remote.close()
    return model, curves


def draw(path, curves, title):
    """Write the curves as a PNG, and say how far they are apart at most."""
    ours, theirs = curves.values()
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = range(1, len(ours) + 1)
    for (name, losses), look in zip(curves.items(), ({"linewidth": 3, "alpha": 0.4}, {"linewidth": 1}), strict=True):
        top.plot(steps, losses, label=name, color="#0a7d8c" if name.startswith("adamd") else "#c0392b", **look)
    top.set_ylabel("loss (cross-entropy)")
    top.set_ylim(bottom=0)
    top.set_title(title, fontsize=11)
    top.legend(frameon=False)
    # The same arithmetic in another order: the last bit of a float32, which training then carries on.
    bottom.semilogy(steps, [max(abs(one - other), 1e-9) for one, other in zip(ours, theirs, strict=True)], color="#555")
    bottom.set_ylabel("difference")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    print(f"last losses {ours[-1]:.4f} and {theirs[-1]:.4f}, at most {apart:.2g} apart in {len(ours)} steps: {path}")


def steps_and_path(steps, path):
    """Return what the command line asks for: [steps] [path of the PNG]."""
    given = sys.argv[1:]
    return int(given[0]) if given else steps, given[1] if given[1:] else path
