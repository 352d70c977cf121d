"""What the parity tests share: hard data, and two kernels run side by side over the same steps."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, State, apply, check_gradient, parse_settings, plan

from .family import variants

FUSED = FusedKernel()
DRAWN = 1 << 21
DTYPES = [np.dtype("float32"), np.dtype("float64")]
ADAM = {
    "adam": {"name": "adam"},
    "adam coupled": {"name": "adam", "weight_decay": 0.1, "lr": 0.01},
    "adam amsgrad": {"name": "adam", "amsgrad": True},
    "adam coupled amsgrad": {"name": "adam", "weight_decay": 0.03, "amsgrad": True, "maximize": True},
    "adam eps 0": {"name": "adam", "eps": 0, "maximize": True},
    "adam amsgrad eps 0": {"name": "adam", "eps": 0, "amsgrad": True},
    "adamw": {"name": "adamw", "lr": 0.01},
    "adamw amsgrad": {"name": "adamw", "amsgrad": True, "betas": [0.8, 0.9]},
    "adamw maximize": {"name": "adamw", "maximize": True, "weight_decay": 0.5, "lr": 0.1},
    "adam hat": {"eps_form": "hat", "amsgrad": True},
    "adamw uncorrected": {"name": "adamw", "bias_correction": False},
}
# What surrounds any of them, as far as a setting alone asks for it.
AROUND = {
    "adam clipped and bounded": {
        "name": "adam",
        "lr": 0.5,
        "gradient_scale": 0.3,
        "clip_value": 0.01,
        "lower": -1,
        "upper": 0.75,
    },
    "adamw averaged": {"name": "adamw", "lr": 0.1, "ema_decay": 0.9, "maximize": True, "upper": 0.5},
}
VARIANTS = {**ADAM, **AROUND, **variants.VARIANTS}


def covering(cases, both=()):
    """Mark a test to take `case` and `dtype`: each case in one of the dtypes, in turn, those in `both` in both of them.

    What is left of the product is slow: a dtype changes the numbers' size in a kernel, and no choice that a text takes.
    """
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(
                case,
                dtype,
                id=f"{case}-{dtype}",
                marks=[] if (place + turn) % len(DTYPES) == 0 or case in both else pytest.mark.slow,
            )
            for place, case in enumerate(cases)
            for turn, dtype in enumerate(DTYPES)
        ],
    )


of_variants = covering(VARIANTS, both=("adam", *variants.FULLEST))


def unsigned(array):
    return array.view(f"u{array.itemsize}")


def differing(left, right):
    """How many bits patterns differ; a NaN equals a NaN, because the machine chooses its payload."""
    bits = unsigned(left) != unsigned(right)
    return int(np.count_nonzero(bits & ~(np.isnan(left) & np.isnan(right)))) if bits.any() else 0


def hard_parameters(rng, size, dtype):
    values = rng.standard_normal(size).astype(dtype)
    _sprinkle(rng, values, specials(dtype))
    return values


def hard_gradients(rng, size, steps, dtype) -> Iterator[np.ndarray]:
    """Gradients over many magnitudes. A sixteenth of the elements falls idle after the first, so that its moments decay into subnormals; some are
    exact zeros of both signs or subnormals from the start."""
    drawn = _drawn(dtype)
    idle = rng.random(size) < 1 / 16
    for step in range(steps):
        place = rng.integers(len(drawn) - size)
        gradient = drawn[place : place + size].copy()
        if step:
            gradient[idle] = 0.0 * gradient[idle]
        yield gradient


@functools.cache
def _drawn(dtype):
    """Values drawn once, of which every gradient is a piece: to draw them anew took longer than all that is tested with them."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    top = np.log2(float(info.max)) / 2 - 4
    magnitude = np.exp2(rng.normal(-8, 12, DRAWN).clip(-top, top))
    values = (magnitude * rng.choice([-1.0, 1.0], DRAWN)).astype(dtype)
    small = specials(dtype)
    _sprinkle(rng, values, small[np.abs(small) < 2.0**top])
    assert check_gradient(values, dtype.name, dtype) == -1
    values.flags.writeable = False
    return values


def specials(dtype):
    info = np.finfo(dtype)
    tiny, least = float(info.smallest_normal), float(info.smallest_subnormal)
    values = [
        0.0,
        tiny,
        2 * tiny,
        tiny / 2,
        least,
        3 * least,
        tiny * (1 + float(info.eps)),
        tiny * 10,
        float(info.max) ** 0.5 / 16,
        1.0,
    ]
    return np.array([sign * value for value in values for sign in (1, -1)], dtype)


def _sprinkle(rng, values, kinds):
    where = rng.random(len(values)) < 1 / 8
    values[where] = rng.choice(kinds, int(where.sum()))


def idle_gradients(rng, size, steps, dtype) -> Iterator[np.ndarray]:
    """One hard gradient, and then only zeros of both signs: what was moved falls asleep."""
    (gradient,) = hard_gradients(rng, size, 1, dtype)
    yield gradient
    for _ in range(steps - 1):
        yield rng.choice(np.array([0.0, -0.0], dtype), size)


def run_both(raw, dtype, size, steps, left, right, seed=0, start=None, gradients=hard_gradients):
    """(elements compared, bits patterns that differ) over `steps` steps, all arrays, after each step."""
    rng = np.random.default_rng(seed)
    settings = parse_settings(raw)
    one = start.copy() if start else State.fresh(hard_parameters(rng, size, dtype), 1, settings)
    other = one.copy()
    out = np.empty_like(one.params)
    compared = different = 0
    for gradient in gradients(rng, len(one.params), steps, dtype):
        updates = plan(settings, ["w"], one.counts, [True], dtype, one.carried)
        flags = [
            apply(state, gradient, updates, [0, len(gradient)], into, kernel)
            for state, into, kernel in [(one, None, left), (other, out, right)]
        ]
        different += flags[0] != flags[1]
        for name, array in one.arrays.items():
            compared += len(array)
            different += differing(array, other.arrays[name])
        different += differing(one.params, out)
    assert (one.counts, one.carried) == (other.counts, other.carried)
    return compared, different
