"""A session of any optimizer beside the server's: the same steps by the readable reference, in this process."""

import numpy as np

from adamd.wire import safetensors
from adamd_service.optim import (
    FAMILY,
    Raw,
    ReferenceKernel,
    State,
    apply,
    at_step,
    merge_settings,
    parse_settings,
    plan,
    settings_of,
)

SHAPES = {"bias": (5,), "empty": (0,), "matrix": (40, 7), "scalar": ()}
NAMES = list(SHAPES)
# Settings that an optimizer has arrays or choices for, beside its defaults.
MORE = {"amsgrad": True, "momentum": 0.9, "nesterov": True, "centered": True, "weight_decay": 0.05, "maximize": True}
MORE |= {"decoupled_weight_decay": True, "initial_accumulator_value": 0.25, "warmup_steps": 4, "dampening": 0.0}
MORE |= {"eps_form": "hat", "lr_decay": 0.1, "momentum_decay": 0.01, "r": 0.5, "form": "flower"}


def variants():
    """(name, settings) of every optimizer: its defaults, and as much as it has beside them."""
    for name, optimizer in FAMILY.items():
        yield f"{name}-plain", {"optimizer": name}
        yield f"{name}-more", {"optimizer": name, **{key: MORE[key] for key in MORE if key in settings_of(optimizer)}}


VARIANTS = dict(variants())


class Twin:
    """What a session's state has to be after the same steps."""

    def __init__(self, start, settings, dtype="float32"):
        named = {"name": settings["optimizer"], **{key: value for key, value in settings.items() if key != "optimizer"}}
        self.settings = parse_settings(named)
        sizes = [int(np.prod(SHAPES[name])) for name in NAMES]
        self.bounds = [0, *np.cumsum(sizes).tolist()]
        self.dtype = np.dtype(dtype)
        flat = np.concatenate([np.asarray(start[name], dtype).reshape(-1) for name in NAMES])
        self.state = State.fresh(flat, len(NAMES), self.settings)
        self.number = 0

    def change(self, settings):
        """A step's or a PATCH's settings."""
        self.settings = merge_settings(self.settings, settings)

    def step(self, gradient):
        """gradient: dict of arrays, without those that are left out."""
        self.number += 1
        present = [name in gradient for name in NAMES]
        parts = [np.asarray(gradient[name], self.dtype).reshape(-1) for name in NAMES if name in gradient]
        joined = np.concatenate(parts)
        at = at_step(self.settings, self.number, Raw.of(joined, self.dtype), self.dtype)
        updates = plan(self.settings, NAMES, self.state.counts, present, self.dtype, self.state.carried, at)
        apply(self.state, joined, updates, self.bounds, None, ReferenceKernel())

    def differing(self, exported):
        """Names of what is not the same, bit for bit, in an exported state."""
        header = safetensors.read_header(memoryview(exported))
        found = {}
        for stored in header.tensors:
            array, _, name = stored.tensor.name.partition(":")
            part = memoryview(exported)[header.data_start + stored.start : header.data_start + stored.end]
            found.setdefault("params" if array == "param" else array, {})[name] = bytes(part)
        wanted = {array: {} for array in self.state.arrays}
        for array, flat in self.state.arrays.items():
            for index, name in enumerate(NAMES):
                wanted[array][name] = flat[self.bounds[index] : self.bounds[index + 1]].tobytes()
        if set(found) != set(wanted):
            return [f"arrays {sorted(found)}, wanted {sorted(wanted)}"]
        return [
            f"{array}:{name}" for array in wanted for name in NAMES if found[array].get(name) != wanted[array][name]
        ]


def begun(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(count, seed=1):
    """Steps in which now and then a tensor is left out."""
    rng = np.random.default_rng(seed)
    for step in range(count):
        made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        if step % 3 == 1:
            del made["bias"]
        yield made
