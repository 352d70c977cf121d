"""Law 4: the fused kernel equals the reference bit for bit.

The control: every way to get it slightly wrong is seen.
"""

import functools
import inspect
import textwrap
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, parse_settings, plan
from adamd_service.optim.family import FAMILY, adam
from adamd_service.optim.kernels.numba_kernel import render
from adamd_service.optim.scalars import of_session

from .family import mutations, variants
from .parity import (
    ADAM,
    DTYPES,
    FUSED,
    VARIANTS,
    differing,
    hard_gradients,
    hard_parameters,
    idle_gradients,
    of_variants,
    run_both,
    specials,
)

REFERENCE = ReferenceKernel()


@of_variants
def test_fused_equals_reference(case, dtype):
    compared, different = run_both(VARIANTS[case], dtype, 4099, 12, REFERENCE, FUSED)
    assert compared >= 4099 * 12 * (1 + len(parse_settings(VARIANTS[case]).arrays))
    assert different == 0


def test_every_choice_is_taken_both_ways():
    taken = {}
    for raw in VARIANTS.values():
        parsed = parse_settings(raw)
        for scalars in of_session(parsed, np.dtype("float64")):
            for part in scalars.rule.parts:
                for choice, value in part.choices.items():
                    taken.setdefault((part.text, choice), set()).add(value)
    without = {FAMILY[name].text for name in ("yogi", "fedadagrad")}
    assert {text for text, _ in taken} | without == {one.text for one in FAMILY.values()}
    assert all(values == {False, True} for values in taken.values()), taken


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [*ADAM, *variants.FULLEST])
def test_fused_equals_reference_at_length(variant, dtype, capsys):
    compared, different = run_both(VARIANTS[variant], dtype, 1_000_003, 50, REFERENCE, FUSED, seed=1)
    with capsys.disabled():
        print(f"\n{variant} {dtype}: {compared:,} elements compared, {different} differ")
    assert different == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["adam", *variants.FULLEST])  # a thousand steps of the reference take their time
def test_fused_equals_reference_over_a_thousand_idle_steps(variant, dtype):
    assert run_both(VARIANTS[variant], dtype, 61, 1000, REFERENCE, FUSED, gradients=idle_gradients)[1] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_idle_parameters_reach_plus_zero_in_both(dtype):
    """About 830 steps at beta1 = 0.9 in float32 (7 000 in float64: there beta is smaller); m and v must be flushed, not linger as subnormals."""
    raw = {"betas": [0.9, 0.95] if dtype == np.float32 else [0.5, 0.5]}
    states = [State.fresh(np.array([1.0, -2.0, 3.0], dtype), 1, parse_settings({})) for _ in range(2)]
    parsed = parse_settings(raw)
    for step in range(2200):
        gradient = np.array([1.0, -1.0, 1e-3] if step == 0 else [0.0, 0.0, -0.0], dtype)
        updates = plan(parsed, ["w"], states[0].counts, [True], dtype)
        for state, kernel in zip(states, [REFERENCE, FUSED], strict=True):
            apply(state, gradient, updates, [0, 3], None, kernel)
        for name in ("exp_avg", "exp_avg_sq"):
            moments = states[0].arrays[name]
            assert not np.any((moments != 0) & (np.abs(moments) < np.finfo(dtype).smallest_normal))
    for name, array in states[0].arrays.items():
        assert differing(array, states[1].arrays[name]) == 0
    assert (
        states[1].slots["exp_avg"].tobytes() == states[1].slots["exp_avg_sq"].tobytes() == bytes(3 * dtype.itemsize)
    )  # +0, not -0


def number(low, high):
    return st.floats(low, high, allow_nan=False)


overrides = st.fixed_dictionaries(
    {},
    optional={
        "lr": number(0, 10),
        "betas": st.tuples(number(0, 0.99999), number(0, 0.99999)).map(list),
        "eps": st.sampled_from([0, 1e-8, 1e-30, 1, 0.1]),
        "weight_decay": st.one_of(st.just(0), number(0, 2)),
        "maximize": st.booleans(),
    },
)


@settings(max_examples=80, deadline=None)
@given(
    base=overrides,
    name=st.sampled_from(["adam", "adamw"]),
    amsgrad=st.booleans(),
    group=overrides,
    sizes=st.lists(st.integers(0, 70), min_size=2, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    wire=st.sampled_from(["float16", "uint16", "same"]),
)
def test_random_settings_layouts_and_presence(base, name, amsgrad, group, sizes, seed, dtype, wire):
    parsed = parse_settings({**base, "name": name, "amsgrad": amsgrad, "groups": [{**group, "tensors": ["t1"]}]})
    rng = np.random.default_rng(seed)
    names = [f"t{index}" for index in range(len(sizes))]
    bounds = [0, *np.cumsum(sizes).tolist()]
    one = State.fresh(hard_parameters(rng, bounds[-1], dtype), len(sizes), parsed)
    other = one.copy()
    out = np.empty_like(one.params)
    for gradient in hard_gradients(rng, bounds[-1], 3, dtype):
        present = (rng.random(len(sizes)) < 0.7).tolist()
        if wire != "same":
            gradient = gradient.clip(-100, 100).astype(np.float16)
            gradient = gradient.view(np.uint16) & 0xBFFF if wire == "uint16" else gradient
        parts = [gradient[bounds[i] : bounds[i + 1]] for i in range(len(sizes)) if present[i]]
        joined = np.concatenate([gradient[:0], *parts])
        updates = plan(parsed, names, one.counts, present, dtype)
        diverged = apply(one, gradient, updates, bounds, None, REFERENCE, slice_size=1 << 20)
        assert apply(other, joined, updates, bounds, out, FUSED, slice_size=int(rng.integers(1, 40))) == diverged
        assert one.counts == other.counts
        assert differing(one.params, out) == 0
        for key, array in one.arrays.items():
            assert differing(array, other.arrays[key]) == 0, key


# The controls. Each mutation is one mistake that a kernel might make; parity has to see it.


def contracted(a, b, c):
    """a*b + c rounded once, as a fused multiply-add does (float64: in the 80 bits of x86, enough to differ)."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (wide(a) * wide(b) + wide(c)).astype(c.dtype)


MUTATIONS = {
    "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
    "contracted v": ("v = b2 * v + one_minus_b2 * (g * g)", "v = contracted(b2, v, one_minus_b2 * (g * g))"),
    "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
    "contracted decay": ("g = g + wd * p", "g = contracted(wd, p, g)"),
    "reassociated g*g": ("one_minus_b2 * (g * g)", "(one_minus_b2 * g) * g"),
    "reassociated d": ("d = sqrt(s) / sqrt_bc2 + eps", "d = (sqrt(s) + eps * sqrt_bc2) / sqrt_bc2"),
    "reciprocal": ("sqrt(s) / sqrt_bc2", "sqrt(s) * (b1 / b1 / sqrt_bc2)"),
    "reassociated q": ("p = p - step_size * q", "p = p - (step_size * m) / where(d == zero, b1 / zero, d)"),
    "lerp": ("m = b1 * m + one_minus_b1 * g", "m = m + one_minus_b1 * (g - m)"),
    "m not flushed": ("m = where((-tiny < m) & (m < tiny), zero, m)", "m = m"),
    "m flushed keeping the sign": (
        "where((-tiny < m) & (m < tiny), zero, m)",
        "where((-tiny < m) & (m < tiny), zero * m, m)",
    ),
    "v not flushed": ("v = where(v < tiny, zero, v)", "v = v"),
    "<= for < (v)": ("v = where(v < tiny, zero, v)", "v = where(v <= tiny, zero, v)"),
    "<= for < (m)": ("& (m < tiny)", "& (m <= tiny)"),
    "<= for < (-m)": ("(-tiny < m)", "(-tiny <= m)"),
    ">= for > (v_max)": ("where(v > v_max, v, v_max)", "where(v >= v_max, v, v_max)"),
    "q not guarded": ("q = where(d == zero, zero, m / d)", "q = m / d"),
    "decay subtracted": ("p = decay * p", "p = p - (b1 / b1 - decay) * p"),
    "decay taken twice": ("d = sqrt(s) / sqrt_bc2 + eps", "d = decay * (sqrt(s) / sqrt_bc2 + eps)"),
}


TEXTS = {adam.adam: MUTATIONS, **mutations.MUTATIONS}
MISTAKES = {f"{text.__name__}: {what}": (text, *how) for text, kinds in TEXTS.items() for what, how in kinds.items()}
# By these overrides a state array is halved exactly, so that 2*tiny becomes tiny itself.
HALVING = {"betas": [0.5, 0.5], "alpha": 0.5, "momentum": 0.5}
NAMES = {"contracted": contracted, "TINY": {dtype: np.finfo(dtype).smallest_normal for dtype in DTYPES}}


def mutated(text, old, new):
    """The reference with one line of a text changed."""
    source = textwrap.dedent(inspect.getsource(text))
    assert source.count(old) == 1
    names = {**vars(inspect.getmodule(text)), **NAMES}
    exec(source.replace(old, new), names)
    wrong = functools.update_wrapper(names[text.__name__], text)  # which says what its operands are

    def kernel(block, scalars):
        parts = tuple(replace(part, text=wrong) if part.text is text else part for part in scalars.rule.parts)
        return REFERENCE(block, scalars._replace(rule=replace(scalars.rule, parts=parts)))

    return kernel


def edge_state(settings, dtype):
    """Arrays that lie on the edges which the comparisons decide: the smallest normal number after one update, -0 in v_max."""
    size = 4096
    rng = np.random.default_rng(5)
    state = State.fresh(hard_parameters(rng, size, dtype), 1, settings)
    for name, array in state.slots.items():
        array[:] = rng.choice(specials(dtype), size)
        if name in settings.optimizer.nonnegative:
            array[:] = np.abs(array)
            array[: size // 2] = 0
    if "max_exp_avg_sq" in state.slots:
        state.slots["max_exp_avg_sq"][:] = -0.0
    return state


def opposed_state(settings, dtype):
    """A first moment that the first gradient nearly cancels, so that a rounding decides the sign (Lion's step)."""
    state = State.fresh(np.ones(2048, dtype), 1, settings)
    (gradient,) = hard_gradients(np.random.default_rng(0), 2048, 1, dtype)
    b1 = settings.hyper.betas[0]
    if "exp_avg" in state.slots:
        state.slots["exp_avg"][:] = dtype.type(1.0 - b1) * -gradient / dtype.type(b1)
    return state


def seen(text, kernel, dtype):
    """The bit patterns in which `kernel` differs from the fused one, in the first variant of `text` where any do, from
    a fresh or from an edge state; 0 where none do.
    """
    for raw in VARIANTS.values():
        parsed = parse_settings(raw)
        if parsed.optimizer.text is not text:
            continue
        halving = {name: value for name, value in HALVING.items() if name in parsed.document}
        if not parsed.document.get("momentum", True):
            del halving["momentum"]
        if parsed.optimizer.name == "fedadagrad":
            halving["betas"] = [0.5, 0.0]  # there is no second one
        edge = {**raw, **halving}
        with np.errstate(all="ignore"):
            different = run_both(raw, dtype, 2048, 6, kernel, FUSED)[1]
            different = different or run_both(edge, dtype, 0, 3, kernel, FUSED, start=edge_state(parsed, dtype))[1]
            different = different or run_both(raw, dtype, 0, 1, kernel, FUSED, start=opposed_state(parsed, dtype))[1]
        if different:
            return different
    return 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_parity_sees_a_mutation(mistake, dtype):
    text, old, new = MISTAKES[mistake]
    assert seen(text, mutated(text, old, new), dtype) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.__name__)
def test_parity_sees_nothing_without_a_mutation(text, dtype):
    assert seen(text, mutated(text, "    return p,", "    p = p; return p,"), dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_sees_fastmath(dtype):
    rule = plan(parse_settings({}), ["w"], [0], [True], dtype)[0].scalars.rule
    scalar = numba.from_dtype(dtype)
    namespace = {"sqrt": np.sqrt, **{name: getattr(np, name) for name in ("float32", "float64", "uint32", "uint64")}}
    exec(render(rule, "loose", False, dtype), namespace)
    signature = (*[numba.types.Array(scalar, 1, "C")] * 4, *[scalar] * (len(rule.scalars) + 2))
    loop = numba.njit([signature], fastmath=True, error_model="numpy")(namespace["loose"])

    def loose(block, scalars):
        return bool(loop(block.p, block.g, *block.arrays, *scalars.typed))

    assert run_both({}, dtype, 2048, 6, loose, FUSED)[1] > 0


def test_kernels_refuse_scalars_of_another_dtype():
    state = State.fresh(np.ones(4, np.float32), 1, parse_settings({}))
    updates = plan(parse_settings({}), ["w"], [0], [True], np.dtype("float64"))
    for kernel in (FusedKernel(), REFERENCE):
        with pytest.raises(ValueError, match="not rounded to float32"):
            apply(state, np.ones(4, np.float32), updates, [0, 4], None, kernel)
    assert state.counts == [0]


@pytest.mark.parametrize("kernel", [FUSED, REFERENCE], ids=["fused", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_divergence_is_told(kernel, dtype):
    size = 70
    for index in range(size):
        parameters = np.zeros(size, dtype)
        state = State.fresh(parameters, 1, parse_settings({"name": "adamw"}))
        updates = plan(parse_settings({"name": "adamw", "lr": 1.0}), ["w"], [0], [True], dtype)
        assert apply(state, np.ones(size, dtype), updates, [0, size], None, kernel) is False
        big = parse_settings({"name": "adamw", "lr": float(np.finfo(dtype).max) / 100, "weight_decay": 50})
        updates = plan(big, ["w"], [0], [True], dtype)
        state = State.fresh(parameters, 1, parse_settings({"name": "adamw"}))
        state.params[index] = 1000
        assert apply(state, np.zeros(size, dtype), updates, [0, size], None, kernel) is True
        state = State.fresh(parameters, 1, parse_settings({"name": "adamw"}))
        updates = plan(parse_settings({"name": "adamw"}), ["w"], [0], [True], dtype)
        state.slots["exp_avg_sq"][index] = np.inf  # the parameter stays finite: it moves no more
        assert apply(state, np.ones(size, dtype), updates, [0, size], None, kernel) is True
        assert np.isfinite(state.params).all()
