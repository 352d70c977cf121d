"""Law 4 for the CUDA source: compiled as C++, it equals the reference bit for bit.

Every way to get it slightly wrong is seen.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adamd_service.optim.kernels.cuda_source import blocks, cuda_kernel
from adamd_service.optim.recurrence.language import Recurrence, TextError, specialise

from .cuda_host import EXACT, run
from .cuda_parity import (
    CASES,
    FULLEST,
    hyper_of,
    kernel_of,
    placed,
    random_scalars,
    reference,
    run_both,
    settled_scalars,
)
from .parity import DTYPES, covering, differing, hard_gradients, hard_parameters

ADAM = "adam"
FMA = " fma " in Path("/proc/cpuinfo").read_text()


@covering(CASES, both=FULLEST.values())
def test_the_source_on_this_cpu_equals_the_reference(case, dtype):
    compared, different = run_both(case, dtype, 1031, 8)
    assert compared >= 1031 * 8
    assert different == 0
    assert run_both(case, dtype, 509, 4, settled=False, seed=3)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FULLEST.values())
def test_the_source_equals_the_reference_at_length(case, dtype, capsys):
    compared, different = run_both(case, dtype, 1_000_003, 50, seed=1, grid=(1, 1))
    with capsys.disabled():
        print(f"\n{case} {dtype}: {compared:,} elements compared, {different} differ")
    assert different == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 1000])
def test_every_length_and_alignment(size, dtype):
    """The wide path peels what lies before the first 16-byte place and after the last; arrays that are aligned otherwise take the other path."""
    for skew in range(16 // dtype.itemsize):
        for grid in ((1, 1), (3, 2)):
            assert run_both(ADAM, dtype, size, 2, skew=skew, grid=grid)[1] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [pytest.param(one, marks=[] if one == ADAM else pytest.mark.slow) for one in CASES])
def test_1000_idle_steps(case, dtype):
    """After one gradient only zeros of both signs: moments decay through the subnormals on both sides alike."""
    optimizer, choices = CASES[case]
    kernel, _ = kernel_of(optimizer, choices, dtype)
    arrays = {"p": np.linspace(-2, 2, 64, dtype=dtype)} | {name: np.zeros(64, dtype) for name, _ in optimizer.arrays}
    mine = {name: array.copy() for name, array in arrays.items()}
    carried = dict(optimizer.carried)
    rng = np.random.default_rng(2)
    subnormal = 0
    for t in range(1, 1002):
        gradient = rng.standard_normal(64).astype(dtype) if t == 1 else rng.choice([0.0, -0.0], 64).astype(dtype)
        scalars, carried = settled_scalars(optimizer, t, carried, dtype)
        reference(optimizer, choices, arrays, gradient, scalars)
        constants = {"tiny": np.finfo(dtype).smallest_normal, "zero": dtype.type(0)}
        run(kernel, [{**scalars, **constants, **mine, "g": gradient}], 1, 1)
        for name, array in arrays.items():
            assert differing(array, mine[name]) == 0, (name, t)
            if name != "p":  # a parameter may be subnormal; what decays beside it may not
                subnormal += int(np.count_nonzero((array != 0) & (np.abs(array) < np.finfo(dtype).smallest_normal)))
    assert subnormal == 0


def test_one_launch_updates_many_rows_each_with_its_own_scalars():
    dtype = np.dtype("float32")
    optimizer, choices = CASES[ADAM]
    kernel, _ = kernel_of(optimizer, choices, dtype)
    rng = np.random.default_rng(4)
    rows, wanted, told = [], [], []
    constants = {"tiny": np.finfo(dtype).smallest_normal, "zero": dtype.type(0)}
    for size in [0, 1, 5, 300, 64, 7]:
        arrays = {"p": hard_parameters(rng, size, dtype)} | {
            name: np.zeros(size, dtype) for name, _ in optimizer.arrays
        }
        [gradient] = hard_gradients(rng, size, 1, dtype)
        scalars = random_scalars(optimizer, rng, dtype)
        if size == 64:
            arrays["p"][17] = np.inf
        rows.append({**scalars, **constants, **{n: a.copy() for n, a in arrays.items()}, "g": gradient})
        told.append(reference(optimizer, choices, arrays, gradient, scalars))
        wanted.append(arrays)
    assert run(kernel, rows, 3, 2) == told == [False, False, False, False, True, False]
    for row, arrays in zip(rows, wanted, strict=True):
        assert all(differing(row[name], array) == 0 for name, array in arrays.items() if name in kernel.arrays)


def test_a_row_may_name_its_elements():
    """sparse-lazy: element i of g goes to element index[i]; the others are not touched."""
    dtype = np.dtype("float64")
    optimizer, choices = CASES[ADAM]
    kernel, _ = kernel_of(optimizer, choices, dtype)
    rng = np.random.default_rng(5)
    arrays = {"p": rng.standard_normal(100)} | {name: np.zeros(100) for name, _ in optimizer.arrays}
    mine = {name: array.copy() for name, array in arrays.items()}
    index = np.sort(rng.choice(100, 31, replace=False)).astype(np.uint32)
    gradient = rng.standard_normal(31)
    scalars, _ = settled_scalars(optimizer, 1, {}, dtype)
    part = {name: array[index] for name, array in arrays.items()}
    reference(optimizer, choices, part, gradient, scalars)
    for name, array in arrays.items():
        array[index] = part[name]
    constants = {"tiny": np.finfo(dtype).smallest_normal, "zero": dtype.type(0)}
    run(kernel, [{**scalars, **constants, **mine, "g": gradient, "index": index}])
    assert all(differing(array, mine[name]) == 0 for name, array in arrays.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("watched", ["p", "v"])
def test_divergence_is_told_wherever_it_is(watched, dtype):
    optimizer, choices = CASES[ADAM]
    kernel, _ = kernel_of(optimizer, choices, dtype)
    scalars, _ = settled_scalars(optimizer, 1, {}, dtype)
    scalars |= {"tiny": np.finfo(dtype).smallest_normal, "zero": dtype.type(0)}
    for index in range(-1, 11):  # before, inside and after the wide groups; -1 is nowhere
        for value in (np.inf, -np.inf, np.nan):
            row = scalars | {name: placed(np.zeros(11, dtype), 1) for name in ("p", "m", "v", "g")}
            if index >= 0:
                row[watched][index] = value
            assert run(kernel, [row]) == [
                index >= 0 and not (watched == "v" and value == -np.inf)
            ]  # flushed: below tiny


def test_a_grid_is_as_wide_as_its_longest_row():
    kernel, _ = kernel_of(*CASES[ADAM], np.dtype("float32"))
    assert [blocks(kernel, size, 64) for size in (0, 1, 1024, 1025, 10**9)] == [1, 1, 1, 2, 64]


# The controls: what a compiler, an option or a careless generator would do. Parity has to see each.

PLAIN = """
#define CONTROL
#include <cmath>
#define __fadd_rn(a, b) ((a) + (b))
#define __fsub_rn(a, b) ((a) - (b))
#define __fmul_rn(a, b) ((a) * (b))
#define __fdiv_rn(a, b) ((a) / (b))
#define __fsqrt_rn(a) std::sqrt(a)
#define __dadd_rn(a, b) ((a) + (b))
#define __dsub_rn(a, b) ((a) - (b))
#define __dmul_rn(a, b) ((a) * (b))
#define __ddiv_rn(a, b) ((a) / (b))
#define __dsqrt_rn(a) std::sqrt(a)
"""
FLUSHING = """
#define CONTROL
#include <cmath>
#include <limits>
template <typename T> static inline T flushed(T x) { return std::fabs(x) < std::numeric_limits<T>::min() ? std::copysign(T(0), x) : x; }
#define DEFINE(T, p) \\
static inline T __##p##add_rn(T a, T b) { return flushed<T>(flushed(a) + flushed(b)); } \\
static inline T __##p##sub_rn(T a, T b) { return flushed<T>(flushed(a) - flushed(b)); } \\
static inline T __##p##mul_rn(T a, T b) { return flushed<T>(flushed(a) * flushed(b)); } \\
static inline T __##p##div_rn(T a, T b) { return flushed<T>(flushed(a) / flushed(b)); } \\
static inline T __##p##sqrt_rn(T a) { return flushed<T>(std::sqrt(flushed(a))); }
DEFINE(float, f)
DEFINE(double, d)
"""
APPROXIMATE = PLAIN.replace("((a) / (b))", "((a) * (1 / (b)))")
LOOSE = tuple(flag for flag in EXACT if "contract" not in flag)
# What -ffast-math stands for, but for its startup code, which would let the whole process flush subnormals from here on.
FAST = tuple(
    f"-f{name}"
    for name in (
        "associative-math",
        "reciprocal-math",
        "finite-math-only",
        "no-signed-zeros",
        "no-trapping-math",
        "no-math-errno",
    )
)
CONTROLS = {
    "contracted": [((*LOOSE, "-ffp-contract=fast", "-mfma"), PLAIN)],
    # What GCC makes of the licence depends on the level: each dtype is changed at one of the two.
    "reassociated, NaN and -0 ignored": [((*EXACT, *FAST), PLAIN), ((*EXACT, "-O3", "-mrecip=all", *FAST), PLAIN)],
    "subnormals flushed": [(EXACT, FLUSHING)],
    "divided by a reciprocal": [(EXACT, APPROXIMATE)],
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("control", CONTROLS)
def test_parity_sees_what_a_compiler_might_do(control, dtype):
    if control == "contracted" and not FMA:
        pytest.skip("this CPU has no fused multiply-add to contract into")
    ways = [
        {"flags": flags, "before": before, "seed": seed} for flags, before in CONTROLS[control] for seed in range(2)
    ]
    assert sum(run_both("adam-coupled", dtype, 2048, 6, **way)[1] for way in ways) > 0


def test_the_controls_differ_by_nothing_else():
    """Plain operators without contraction are the same bits: it is the option that the control above catches."""
    assert run_both("adam-coupled", np.dtype("float32"), 2048, 6, before=PLAIN)[1] == 0


MISTAKES = {
    "> as >=": ("(v_2 > v_max)", "(v_2 >= v_max)"),
    "tail not updated": (
        "const unsigned long long rest = row.size - groups * 4;",
        "const unsigned long long rest = head;",
    ),
    "head not updated": ("? i : i + groups * 4;", "? i + 1 : i + groups * 4;"),
    "reassociated": ("mul_rn(row.one_minus_b2, __fmul_rn(g, g))", "mul_rn(__fmul_rn(row.one_minus_b2, g), g)"),
    "v not flushed": ("(v_1 < row.tiny) ? row.zero : v_1", "v_1"),
    "divergence not told": ("diverged[blockIdx.y] = 1u", "diverged[blockIdx.y] = 0u"),
    "out not written": ("if (row.out) *(", "if (0) *("),
    "v_max not stored": ("row.v_max[at] = v_max_one", "row.v_max[at] = row.v_max[at]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_parity_sees_a_mistake_in_the_source(mistake):
    dtype, old_new = np.dtype("float32"), MISTAKES[mistake]
    kernel, _ = kernel_of(*CASES["adam-amsgrad"], dtype)
    assert kernel.source.count(old_new[0]) == 1
    wrong = replace(kernel, source=kernel.source.replace(*old_new))
    ways = [{"skew": skew, "settled": settled} for skew in range(3) for settled in (True, False)] + [{"infinite": True}]
    assert sum(run_both("adam-amsgrad", dtype, 67, 6, kernel=wrong, **way)[1] for way in ways) > 0
    assert sum(run_both("adam-amsgrad", dtype, 67, 6, **way)[1] for way in ways) == 0


def test_what_has_no_cuda_is_refused():
    def with_statement(text):
        made = specialise(CASES[ADAM][0].text, {"coupled": False, "amsgrad": False})
        name, _, expression = text.partition(" = ")
        return replace(made, statements=((name, ast.parse(expression, mode="eval").body), *made.statements))

    for text, reason in {
        "a = b": "no CUDA for b",
        "a = p + (m < v)": "is bool, wanted float",
        "a = p & m": "is float, wanted bool",
        "a = where(m, p, m)": "is float, wanted bool",
        "a = p ** m": "no CUDA for",
        "a = 1.0 * p": "no CUDA for 1.0",
    }.items():
        with pytest.raises(TextError, match=re.escape(reason)):
            cuda_kernel(with_statement(text), np.dtype("float32"), ("p",))


def test_logic_and_negation_are_expressible():
    statements = ast.parse("a = -p\nb = (a < m) | (m >= v)\np = where(b & (a != v), a, p)").body
    made = Recurrence("logic", ("p", "m", "v"), (), tuple((s.targets[0].id, s.value) for s in statements), ("p",))
    kernel = cuda_kernel(replace(made, arrays=("p", "g", "m", "v")), np.dtype("float64"), ("p",))
    rng = np.random.default_rng(6)
    p, m, v = (rng.choice([-1.0, 0.0, -0.0, 1.0, 2.0, np.nan], 400) for _ in range(3))
    wanted = np.where(((-p < m) | (m >= v)) & (-p != v), -p, p)
    run(kernel, [{"p": p, "g": np.zeros(400), "m": m, "v": v}])
    assert differing(p, wanted) == 0


def test_every_member_of_the_family_is_covered():
    from adamd_service.optim.family import FAMILY

    assert {optimizer.text for optimizer, _ in CASES.values()} == {one.text for one in FAMILY.values()}
    assert all(hyper_of(one).lr for one in FAMILY.values())
