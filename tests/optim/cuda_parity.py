"""Shared by the tests of the CUDA source: every recurrence with every choice, and the reference."""

import inspect
import itertools

import numpy as np

from adamd_service.optim.family import FAMILY, Hyper
from adamd_service.optim.kernels.cuda_source import cuda_kernel
from adamd_service.optim.recurrence.language import specialise

from .cuda_host import EXACT, run
from .parity import differing, hard_gradients, hard_parameters, specials


def options(optimizer):
    """Every combination of the text's choices, as dicts; those that its own rules never make are tested all the same."""
    names = inspect.getfullargspec(optimizer.text).kwonlyargs
    return [dict(zip(names, taken, strict=True)) for taken in itertools.product([False, True], repeat=len(names))]


# One case for each text and each of its choices. AdamW shares Adam's; FedAdam and FedYogi share Adam's and Yogi's, and
# leave the cases to these, whose scalars are the fuller ones.
CASES = {
    f"{optimizer.text.__name__}{''.join('-' + name for name, taken in choices.items() if taken)}": (optimizer, choices)
    for optimizer in sorted(FAMILY.values(), key=lambda one: not one.name.startswith("fed"))
    for choices in options(optimizer)
}

# Of each text, the case with the most of its choices taken.
FULLEST = {
    optimizer.text: max(
        (case for case in CASES if CASES[case][0].text is optimizer.text), key=lambda case: sum(CASES[case][1].values())
    )
    for optimizer in FAMILY.values()
}


def kernel_of(optimizer, choices, dtype):
    watched = ("p", *(text for text, array in optimizer.arrays if array in optimizer.nonnegative))
    return cuda_kernel(specialise(optimizer.text, choices), dtype, watched), watched


def hyper_of(optimizer):
    return Hyper(**{name: value for name, value in optimizer.settings.items() if name in Hyper._fields})


def settled_scalars(optimizer, t, carried, dtype):
    """The scalars of update t with the default settings (and a weight decay), rounded to the dtype; carried after."""
    hyper = hyper_of(optimizer)._replace(weight_decay=0.03)
    exact, after = optimizer.scalars(hyper, t, carried)
    return {name: dtype.type(value) for name, value in exact.items()}, after


def random_scalars(optimizer, rng, dtype):
    """Any numbers at all in (-1, 1]: the bits must be the same whatever they mean."""
    names = inspect.getfullargspec(optimizer.text).args
    return {name: dtype.type(rng.uniform(-0.2, 1.0)) for name in names}


def start(optimizer, dtype, size, rng):
    """p and the state arrays: hard values, and in a half of them the edges that comparisons decide; the last eighth of
    the parameters, which run_both never gives a gradient, is mostly subnormal."""
    arrays = {"p": hard_parameters(rng, size, dtype)}
    arrays["p"][size - size // 8 :] = rng.choice(specials(dtype), size // 8)
    for name, array in optimizer.arrays:
        values = np.zeros(size, dtype)
        values[: size // 2] = rng.choice(specials(dtype), size // 2)
        if array in optimizer.nonnegative:
            values = np.abs(values)
            values[size // 2 :] = -0.0
        arrays[name] = values
    return arrays


def reference(optimizer, choices, arrays, gradient, scalars):
    """One update by the text itself; the arrays are changed in place. Says whether a watched one is not finite."""
    info = np.finfo(gradient.dtype)
    text = optimizer.text
    spec = inspect.getfullargspec(text)
    positional = [name for name in inspect.signature(text).parameters if name in arrays or name == "g"]
    constants = {"tiny": info.smallest_normal, "zero": gradient.dtype.type(0)}
    named = [{**scalars, **constants}[name] for name in spec.args if name not in positional]
    with np.errstate(all="ignore"):
        results = text(*[gradient if name == "g" else arrays[name] for name in positional], *named, **choices)
    for name, result in zip([name for name in positional if name != "g"], results, strict=True):
        arrays[name][:] = result
    watched = ["p", *(t for t, a in optimizer.arrays if a in optimizer.nonnegative)]
    return not all(bool(np.isfinite(arrays[name]).all()) for name in watched)


def run_both(
    case,
    dtype,
    size,
    steps,
    *,
    seed=0,
    settled=True,
    kernel=None,
    flags=EXACT,
    before="",
    skew=0,
    grid=(2, 3),
    infinite=False,
):
    """(elements compared, bit patterns that differ) between the text on NumPy and the CUDA source on this CPU.

    skew: elements by which the arrays begin beside a 16-byte place (g and out alike), so that the wide path peels.
    """
    optimizer, choices = CASES[case]
    made, watched = kernel_of(optimizer, choices, dtype)
    made = kernel or made
    rng = np.random.default_rng(seed)
    arrays = start(optimizer, dtype, size, rng)
    if infinite:
        arrays["p"][size // 2] = np.inf
    mine = {name: placed(array, skew) for name, array in arrays.items()}
    out = placed(np.zeros(size, dtype), skew)
    carried = dict(optimizer.carried)
    compared = different = 0
    for t, gradient in enumerate(hard_gradients(rng, size, steps, dtype), 1):
        gradient[size - size // 8 :] = rng.choice([0.0, -0.0], size // 8)
        if settled:
            scalars, carried = settled_scalars(optimizer, t, carried, dtype)
        else:
            scalars = random_scalars(optimizer, rng, dtype)
        wanted = watched_now(optimizer, choices, arrays, gradient, scalars, made, watched)
        constants = {"tiny": np.finfo(dtype).smallest_normal, "zero": dtype.type(0)}
        row = {**scalars, **constants, **mine, "g": placed(gradient, skew), "out": out}
        [told] = run(made, [row], *grid, flags, before)
        different += told != wanted
        for name, array in arrays.items():
            compared += size
            different += differing(array, mine[name])
        different += differing(arrays["p"], out)
    return compared, different


def watched_now(optimizer, choices, arrays, gradient, scalars, kernel, watched):
    """The reference's step; an array that this choice does not keep (v_max without amsgrad) is not watched."""
    reference(optimizer, choices, arrays, gradient, scalars)
    here = [name for name in watched if name in kernel.arrays]
    return not all(bool(np.isfinite(arrays[name]).all()) for name in here)


def placed(values, skew):
    """A copy that begins `skew` elements after a 16-byte place."""
    room = np.empty(len(values) + 16 // values.itemsize + skew, values.dtype)
    ahead = (-room.ctypes.data % 16) // values.itemsize + skew
    inside = room[ahead : ahead + len(values)]
    inside[:] = values
    assert not len(values) or (inside.ctypes.data - skew * values.itemsize) % 16 == 0
    return inside
