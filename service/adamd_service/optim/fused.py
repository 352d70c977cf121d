"""The CPU kernel: the recurrence inlined into one loop and compiled by Numba, one pass over memory, without the GIL.

It also writes the answer (`out`) and sees non-finite results in that same pass, because a pass of its own for either
would cost as much as the update.
"""

import ast
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from adamd_service.optim.compiled import Compiled, compile_loop
from adamd_service.optim.gradient import compile_scans
from adamd_service.optim.kernel import Block
from adamd_service.optim.narrowing import compile_narrowing
from adamd_service.optim.recurrence import Recurrence, Text, adam, specialise
from adamd_service.optim.scalars import Scalars, typed
from adamd_service.optim.widening import compile_widening

CONSTANTS = "tiny", "zero"


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """The compiled form of `text`; see `kernel.Kernel` for the contract. A variant is compiled when it is first needed,
    see `warm_up`.
    """

    text: Text = adam

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update the block in place; True where a p or a v is now NaN or infinite."""
        dtype = block.p.dtype
        values = typed(scalars, dtype)
        loop = _loop(self.text, dtype, scalars.wd != 0.0, block.v_max is not None, block.out is not None)
        arrays = [array for array in block if array is not None]
        return bool(loop(*arrays, *values, *_constants(dtype)))


def warm_up(dtypes: Iterable[np.dtype[Any]], progress: Callable[[str], None] | None = None) -> None:
    """Compile every specialisation for the session dtypes given (or load it from the cache), so that no step waits for
    a compiler.
    """
    say = progress or (lambda _: None)
    say("gradients")
    compile_scans()
    compile_widening()
    compile_narrowing()
    for dtype, (coupled, amsgrad, with_out) in product(dtypes, product((False, True), repeat=3)):
        say(f"{dtype.name} adam{' coupled' * coupled}{' amsgrad' * amsgrad}{' with answer' * with_out}")
        _loop(adam, dtype, coupled, amsgrad, with_out)


@cache
def _constants(dtype: np.dtype[Any]) -> tuple[np.floating[Any], ...]:
    return np.finfo(dtype).smallest_normal, dtype.type(0)


@cache
def _loop(text: Text, dtype: np.dtype[Any], coupled: bool, amsgrad: bool, with_out: bool) -> Compiled:
    import numba

    recurrence = specialise(text, {"coupled": coupled, "amsgrad": amsgrad})
    name = f"{recurrence.name}{'_out' * with_out}_{dtype.name}"
    scalar = numba.from_dtype(dtype)
    # The gradient may be a view of received bytes, which NumPy marks read-only.
    arrays = [numba.types.Array(scalar, 1, "C", readonly=array == "g") for array in recurrence.arrays]
    arrays += [numba.types.Array(scalar, 1, "C")] * with_out
    signature = (*arrays, *[scalar] * (len(Scalars._fields) + len(CONSTANTS)))
    return compile_loop(render(recurrence, name, with_out), name, signature)


def render(recurrence: Recurrence, name: str, with_out: bool) -> str:
    """The source of a loop over (arrays…, [out], every scalar, tiny, zero) that returns whether a p or a v became NaN
    or infinite.

    Everything is assigned to a local first and stored at the end, so that the compiler sees one load and one store for
    each array.
    """
    stored = [(f"{result}_array", result) for result in recurrence.results] + [("out_array", "p")] * with_out
    arguments = (
        [f"{array}_array" for array in recurrence.arrays] + ["out_array"] * with_out + [*Scalars._fields, *CONSTANTS]
    )
    lines = [
        *(f"{array} = {array}_array[i]" for array in recurrence.arrays),
        *(
            f"{target} = {ast.unparse(_Scalar().visit(deepcopy(expression)))}"
            for target, expression in recurrence.statements
        ),
        *(f"{array}[i] = {result}" for array, result in stored),
        # x - x is 0 for every finite x and NaN for the others; `|` on booleans vectorises where a branch or a float sum
        # does not.
        "diverged = diverged | (p - p != zero) | (v - v != zero)",
    ]
    head = [f"def {name}({', '.join(arguments)}):", "    diverged = False", "    for i in range(p_array.size):"]
    return "\n".join([*head, *(f"        {line}" for line in lines), "    return diverged", ""])


class _Scalar(ast.NodeTransformer):
    """One element at a time, `where` is a conditional expression, which the compiler turns into a select."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "where":
            condition, then, otherwise = node.args
            return ast.IfExp(test=condition, body=then, orelse=otherwise)
        return node
