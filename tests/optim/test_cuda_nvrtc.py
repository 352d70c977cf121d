"""NVRTC compiles every kernel, without a driver; and its PTX holds only arithmetic that rounds to nearest by itself."""

import re
from dataclasses import replace

import numpy as np
import pytest

from adamd_service.device.nvrtc import CompileError, nvrtc
from adamd_service.optim.kernels.cuda_source import OPTIONS

from .cuda_parity import CASES, kernel_of
from .parity import DTYPES

pytestmark = pytest.mark.nvrtc
ARCHES = ["75", "80", "90"]
# All that may happen to a float: anything else (fma, mad, rcp, rsqrt, ex2, min, max, cvt, .ftz, .approx, .full, .sat) is
# an offence, also what no one has thought of.
ALLOWED = re.compile(
    r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)|neg\.f(32|64)|setp\.(lt|le|gt|ge|eq|ne|neu|ltu|leu|gtu|geu|equ|nan|num)\.f(32|64)|selp\.f(32|64)"
    r"|mov\.f(32|64)|(ld|st)(\.global|\.param)?(\.nc)?(\.v[24])?\.f(32|64)"
)
LOGICAL = re.compile(r"setp\.[a-z]+\.(and|or|xor)\.f(32|64)")


def offences(ptx):
    """The instructions on floats that are not allowed, and every flush or approximation wherever it stands."""
    found = []
    for line in ptx.splitlines():
        words = re.sub(r"//.*", "", line).strip().removeprefix("{").split()
        if words and words[0].startswith("@"):
            words = words[1:]
        if not words or words[0].startswith("."):
            continue
        name = words[0].rstrip(";")
        floating = re.search(r"\.f(16|32|64)|\.bf16|\.tf32", name)
        if (floating and not ALLOWED.fullmatch(name) and not LOGICAL.fullmatch(name)) or re.search(
            r"\.(ftz|approx|full|sat)\b|^(fma|mad\.f|ex2|call)", name
        ):
            found.append(name)
    return found


def arithmetic(ptx):
    return set(re.findall(r"\b(?:add|sub|mul|div|sqrt)\.rn\.f\d\d", ptx))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_compiles_and_rounds_each_operation_by_itself(case, dtype):
    kernel, _ = kernel_of(*CASES[case], dtype)
    for arch in ARCHES:
        ptx = nvrtc().ptx(kernel.source, f"compute_{arch}", OPTIONS)
        assert offences(ptx) == []
        assert f".visible .entry {kernel.name}(" in ptx
        assert f"mul.rn.f{8 * dtype.itemsize}" in arithmetic(ptx)
        code = nvrtc().cubin(kernel.source, f"sm_{arch}", OPTIONS)
        assert code[:4] == b"\x7fELF"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_read_and_written_16_bytes_at_a_time(dtype):
    kernel, _ = kernel_of(*CASES["adam"], dtype)
    ptx = nvrtc().ptx(kernel.source, "compute_80", OPTIONS)
    kind = f"v{16 // dtype.itemsize}"
    assert len(re.findall(rf"\bld(?:\.global)?(?:\.nc)?\.{kind}\.", ptx)) >= 4  # p, g, m, v
    assert len(re.findall(rf"\bst(?:\.global)?\.{kind}\.", ptx)) >= 4  # p, m, v, out


# The controls: each is what an option or a careless generator would do, and the check has to see it.


def plain(source):
    """The same source with plain operators, which options may then contract and flush."""
    defined = "".join(
        f"#define __{p}{n}_rn(a, b) ((a) {o} (b))\n"
        for p in "fd"
        for n, o in [("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")]
    )
    return f"{defined}#define __fsqrt_rn(a) sqrtf(a)\n{source}"


CONTROLS = {
    "plain operators contract by default": (plain, ("--std=c++17",), "fma.rn"),
    "flushed": (lambda source: source, (*OPTIONS, "-ftz=true"), "ftz"),
    "approximate division": (plain, (*OPTIONS, "-prec-div=false"), "div"),
    "approximate square root": (plain, (*OPTIONS, "-prec-sqrt=false"), "sqrt"),
    "fast math": (plain, ("--std=c++17", "-use_fast_math"), "ftz"),
    "an fma by hand": (
        lambda s: s.replace("__fadd_rn(__fmul_rn(row.b1, m), ", "__fmaf_rn(row.b1, m, "),
        OPTIONS,
        "fma",
    ),
    "rounded to zero": (lambda s: s.replace("__fadd_rn", "__fadd_rz"), OPTIONS, "add.rz"),
    "a maximum": (lambda s: s.replace("((v_1 < row.tiny) ? row.zero : v_1)", "fmaxf(v_1, row.zero)"), OPTIONS, "max"),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_the_check_sees(control):
    change, options, seen = CONTROLS[control]
    kernel, _ = kernel_of(*CASES["adam"], np.dtype("float32"))
    wrong = replace(kernel, source=change(kernel.source))
    ptx = nvrtc().ptx(wrong.source, "compute_80", options)
    assert any(seen in name for name in offences(ptx)), offences(ptx)


def test_the_intrinsics_hold_against_every_option_but_flushing():
    """So what an option may do to the arithmetic is one thing, and OPTIONS say no to it."""
    kernel, _ = kernel_of(*CASES["adam"], np.dtype("float32"))
    assert (
        offences(
            nvrtc().ptx(
                kernel.source, "compute_80", ("--std=c++17", "-fmad=true", "-prec-div=false", "-prec-sqrt=false")
            )
        )
        == []
    )


def test_a_wrong_source_gives_the_compilers_words():
    with pytest.raises(CompileError, match=r"adamd\.cu\(1\): error.*identifier"):
        nvrtc().ptx("void f() { nowhere; }", "compute_80", OPTIONS)
    with pytest.raises(CompileError, match="compute_1"):
        nvrtc().ptx("", "compute_1", OPTIONS)
