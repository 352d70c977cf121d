"""Writes CUDA source for a recurrence: one kernel updates many rows in place, each a slice of a session's arrays.

The text of `recurrence.Recurrence` is walked once: every operator becomes the intrinsic that rounds to nearest by
itself (`__fmul_rn`, CUDA Math API, "single precision intrinsics"), which no compiler contracts, comparisons give bool,
`where` is ?:. So the arithmetic is that of the reference whatever the options say; `OPTIONS` keep subnormals besides.
The source is also C++: the tests compile it for the host and compare it with the reference bit for bit.

Pure: nothing here needs a GPU, a driver or CuPy.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from adamd_service.optim.recurrence.language import Recurrence, TextError

OPTIONS: Final = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "--std=c++17")
THREADS: Final = 256  # of a block
WIDE: Final = 16  # bytes that one thread loads at once where all arrays of a row are aligned alike

_PREFIX: Final = {"float32": "f", "float64": "d"}
_TYPE: Final = {"float32": "float", "float64": "double"}
_ARITHMETIC: Final[dict[type[ast.operator], str]] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_LOGIC: Final[dict[type[ast.operator], str]] = {ast.BitAnd: "&", ast.BitOr: "|"}
_COMPARED: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """One kernel's source, and how its table of rows is laid out.

    name: the entry, ``void name(const name_row* rows, unsigned int* diverged)``, launched with blocks of THREADS
    threads and a grid of (as many as fill the chip, rows); row i is updated by the blocks with blockIdx.y = i, which
    set diverged[i] to 1 where a watched result is NaN or infinite.
    row: the table's dtype. Its fields are `p` and the other arrays of the recurrence (addresses of element 0 of the
    slice), `out` (an address that receives the new p, or 0), `index` (an address of uint32: element i of g goes to
    element index[i] of the others; or 0 where g lies beside p), `size` (elements of g), and the scalars by name.
    """

    name: str
    source: str
    dtype: np.dtype[Any]
    row: np.dtype[Any]
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]


def cuda_kernel(recurrence: Recurrence, dtype: np.dtype[Any], watched: tuple[str, ...]) -> CudaKernel:
    """The kernel of `recurrence` for float32 or float64 arrays.

    watched: the results of which a NaN or an infinity is told. Raises TextError for a name that is used before it is
    assigned, or an operation on the wrong kind of value.
    """
    name = f"{recurrence.name}_{dtype.name}"
    # p and g first, and an array that is written without being read has its place too.
    arrays = tuple(dict.fromkeys(["p", "g", *recurrence.arrays, *recurrence.results]))
    fields = [*arrays, "out", "index", "size"]
    row = np.dtype([(field, "<u8") for field in fields] + [(s, dtype) for s in recurrence.scalars], align=True)
    source = _source(name, replace(recurrence, arrays=arrays), dtype, watched)
    return CudaKernel(name, source, dtype, row, arrays, recurrence.scalars)


def blocks(kernel: CudaKernel, size: int, most: int) -> int:
    """How many blocks a row of `size` elements takes, at most `most`: a thread has WIDE bytes of each array."""
    lanes = WIDE // kernel.dtype.itemsize
    return max(1, min(most, -(-size // (lanes * THREADS))))


def _source(name: str, recurrence: Recurrence, dtype: np.dtype[Any], watched: Sequence[str]) -> str:
    kind, lanes = _TYPE[dtype.name], WIDE // dtype.itemsize
    arrays, written = recurrence.arrays, recurrence.results
    lines = _Lines(dtype, recurrence)
    body = [*lines.statements(), *(f"{array} = {lines.now(array)};" for array in written), lines.diverged(watched)]
    constness = {array: "" if array in written else "const " for array in arrays}
    members = [*(f"{constness[a]}{kind}* {a};" for a in arrays), f"{kind}* out;", "const unsigned int* index;"]
    members += ["unsigned long long size;", *(f"{kind} {scalar};" for scalar in recurrence.scalars)]
    skews = " | ".join(f"((unsigned long long)row.{array} ^ base)" for array in arrays if array != "p") or "0"
    parameters = ", ".join(f"{constness[a]}{kind}& {a}" for a in arrays)
    load = [f"{name}_wide {a}_wide = *(const {name}_wide*)(row.{a} + at);" for a in arrays]
    lane = ", ".join(f"{a}_wide.lane[k]" for a in arrays)
    one = [f"{kind} {a}_one = row.{a}[{'from' if a == 'g' else 'at'}];" for a in arrays]
    return f"""\
struct {name}_row {{
    {_joined(members)}
}};

struct __align__({WIDE}) {name}_wide {{
    {kind} lane[{lanes}];
}};

static __device__ __forceinline__ bool {name}_element(const {name}_row& row, {parameters}) {{
    {_joined(body)}
}}

extern "C" __global__ void __launch_bounds__({THREADS}) {name}(const {name}_row* rows, unsigned int* diverged) {{
    const {name}_row row = rows[blockIdx.y];
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    const unsigned long long base = (unsigned long long)row.p;
    unsigned long long skew = {skews};
    if (row.out) skew |= (unsigned long long)row.out ^ base;
    unsigned long long head = 0, groups = 0;
    if (!row.index && !(skew & {WIDE - 1})) {{
        head = (({WIDE} - (base & {WIDE - 1})) & {WIDE - 1}) / sizeof({kind});
        if (head > row.size) head = row.size;
        groups = (row.size - head) / {lanes};
    }}
    bool bad = false;
    for (unsigned long long i = first; i < groups; i += stride) {{
        const unsigned long long at = head + i * {lanes};
        {_joined(load, 2)}
        #pragma unroll
        for (int k = 0; k < {lanes}; ++k) bad |= {name}_element(row, {lane});
        {_joined([f"*({name}_wide*)(row.{a} + at) = {a}_wide;" for a in written], 2)}
        if (row.out) *({name}_wide*)(row.out + at) = p_wide;
    }}
    const unsigned long long rest = row.size - groups * {lanes};
    for (unsigned long long i = first; i < rest; i += stride) {{
        const unsigned long long from = i < head ? i : i + groups * {lanes};
        const unsigned long long at = row.index ? row.index[from] : from;
        {_joined(one, 2)}
        bad |= {name}_element(row, {", ".join(f"{a}_one" for a in arrays)});
        {_joined([f"row.{a}[at] = {a}_one;" for a in written], 2)}
        if (row.out) row.out[from] = p_one;
    }}
    if (bad) diverged[blockIdx.y] = 1u;
}}
"""


def _joined(lines: Sequence[str], depth: int = 1) -> str:
    return ("\n" + "    " * depth).join(lines)


class _Lines:
    """The statements in C++, each assigned once: the n-th value of `v` is `v_n`; the array's own element is `v`."""

    def __init__(self, dtype: np.dtype[Any], recurrence: Recurrence) -> None:
        self._prefix, self._kind = _PREFIX[dtype.name], _TYPE[dtype.name]
        self._recurrence = recurrence
        self._names = {array: array for array in recurrence.arrays}
        self._names |= {scalar: f"row.{scalar}" for scalar in recurrence.scalars}
        self._kinds = dict.fromkeys(self._names, self._kind)
        self._counts: dict[str, int] = {}

    def now(self, name: str) -> str:
        return self._names[name]

    def statements(self) -> Iterator[str]:
        for name, expression in self._recurrence.statements:
            value, kind = self._value(expression)
            self._counts[name] = self._counts.get(name, 0) + 1
            self._names[name], self._kinds[name] = f"{name}_{self._counts[name]}", kind
            yield f"const {kind} {self._names[name]} = {value};"

    def diverged(self, watched: Sequence[str]) -> str:
        """X - x is 0 for every finite x and NaN for the others."""
        seen = [name for name in watched if name in self._recurrence.results]
        terms = [f"(__{self._prefix}sub_rn({self.now(n)}, {self.now(n)}) != ({self._kind})0)" for n in seen]
        return f"return {' | '.join(terms) or 'false'};"

    def _value(self, node: ast.expr) -> tuple[str, str]:
        """The expression in C++ and its type."""
        match node:
            case ast.Name(id=name) if name in self._names:
                return self._names[name], self._kinds[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                operands = ", ".join(self._of(self._kind, side) for side in (left, right))
                return f"__{self._prefix}{_ARITHMETIC[type(op)]}_rn({operands})", self._kind
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _LOGIC:
                return f"({self._of('bool', left)} {_LOGIC[type(op)]} {self._of('bool', right)})", "bool"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{self._of(self._kind, operand)})", self._kind
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return f"({self._of(self._kind, left)} {_COMPARED[type(op)]} {self._of(self._kind, right)})", "bool"
            case ast.Call(func=ast.Name(id="where"), args=[condition, then, otherwise]):
                value, kind = self._value(then)
                return f"({self._of('bool', condition)} ? {value} : {self._of(kind, otherwise)})", kind
            case ast.Call(func=ast.Name(id="sqrt"), args=[operand]):
                return f"__{self._prefix}sqrt_rn({self._of(self._kind, operand)})", self._kind
        raise TextError(f"{self._recurrence.name}: no CUDA for {ast.unparse(node)}")

    def _of(self, kind: str, node: ast.expr) -> str:
        value, found = self._value(node)
        if found != kind:
            raise TextError(f"{self._recurrence.name}: {ast.unparse(node)} is {found}, wanted {kind}")
        return value
