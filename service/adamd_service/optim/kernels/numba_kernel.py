"""The CPU kernel: the recurrence inlined into one loop and compiled by Numba, one pass over memory, without the GIL.

It also writes the answer (`out`) and sees non-finite results in that same pass, because a pass of its own for either
would cost as much as the update.
"""

import ast
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final

import numpy as np

from adamd_service.optim.gradients.half_precision import compile_narrowing, compile_widening
from adamd_service.optim.gradients.norm import compile_norm
from adamd_service.optim.gradients.scan import compile_scans
from adamd_service.optim.kernels.protocol import Block, slices_of
from adamd_service.optim.kernels.reference import ReferenceKernel
from adamd_service.optim.numba_cache import Compiled, compile_loop
from adamd_service.optim.recurrence.rule import CONSTANTS, Rule
from adamd_service.optim.scalars import Scalars, of_session
from adamd_service.optim.settings import Settings, parse_settings

_REFERENCE: Final = ReferenceKernel()
WARM: Final = "adam", "adamw"  # one text, compiled in all of its variants before a server is ready
# Loops of one process: 2 MB each that Numba never gives back, and half a second of a processor. Settings of all kinds
# would ask for 6,080 (1,520 rules, in two dtypes, with an answer or without), and clients choose the settings.
MOST: Final = 256
SPARE: Final = 1 << 14  # elements at once by the reference: what it makes in between stays in the processor's cache
_LOOPS: Final[dict[tuple[Rule, bool, np.dtype[Any]], Compiled]] = {}  # what this process has compiled, or loaded


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """The compiled form of a rule; see `kernel.Kernel` for the contract. A variant is compiled when it is first needed,
    see `warm_up` and `prepare`. Beyond `MOST` of them the reference takes its place: slower, and the same bits.
    """

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update the block in place; True where something watched is now NaN or infinite."""
        p, g, arrays, out = block
        loop = loop_of(scalars.rule, out is not None, p.dtype)
        if loop is None:
            return max((_REFERENCE(part, scalars) for part in slices_of(block, SPARE)), default=False)  # all of them
        return bool(loop(p, g, *arrays, *(() if out is None else (out,)), *scalars.typed))


def warm_up(dtypes: Iterable[np.dtype[Any]], progress: Callable[[float], None] = lambda share: None) -> None:
    """Compile Adam and AdamW for the session dtypes given (or load them from the cache), so that no step of theirs
    waits for a compiler. The others are compiled where a session of theirs is made: all of the family would be minutes.
    ``progress`` is told the share that is done.
    """
    variants = product(dtypes, product((0.0, 0.01), (False, True)))
    work: list[Callable[[], None]] = [compile_scans, compile_widening, compile_narrowing, compile_norm]
    for dtype, (weight_decay, amsgrad) in variants:
        settings = parse_settings({"name": "adam", "weight_decay": weight_decay, "amsgrad": amsgrad})
        work.append(partial(prepare, settings, dtype))
    for done, compile_one in enumerate(work, 1):
        compile_one()
        progress(done / len(work))


def prepare(settings: Settings, dtype: np.dtype[Any]) -> None:
    """Compile what a session with these settings will run, whether a step asks for its parameters or not."""
    for scalars, with_out in product(of_session(settings, dtype), (False, True)):
        loop_of(scalars.rule, with_out, dtype)


def loop_of(rule: Rule, with_out: bool, dtype: np.dtype[Any]) -> Compiled | None:
    """The compiled loop over (p, g, the state arrays…, [out], the scalars…, tiny, zero); None where it is not there,
    and `MOST` others are.
    """
    key = rule, with_out, dtype
    loop = _LOOPS.get(key)
    if loop is None and len(_LOOPS) < MOST:
        loop = _LOOPS[key] = _compile(rule, with_out, dtype)
    return loop


def _compile(rule: Rule, with_out: bool, dtype: np.dtype[Any]) -> Compiled:
    import numba

    name = f"{rule.recurrence.name}{'_out' * with_out}_{dtype.name}"
    scalar = numba.from_dtype(dtype)
    # The gradient may be a view of received bytes, which NumPy marks read-only.
    arrays = [numba.types.Array(scalar, 1, "C", readonly=array == "g") for array in ("p", "g", *rule.arrays)]
    arrays += [numba.types.Array(scalar, 1, "C")] * with_out
    signature = (*arrays, *[scalar] * (len(rule.scalars) + len(CONSTANTS)))
    return compile_loop(render(rule, name, with_out, dtype), name, signature)


def render(rule: Rule, name: str, with_out: bool, dtype: np.dtype[Any]) -> str:
    """The source of a loop over (p, g, the state arrays…, [out], every scalar, tiny, zero) that returns whether one
    that the rule watches became NaN or infinite.

    Everything is assigned to a local first and stored at the end, so that the compiler sees one load and one store for
    each array.
    """
    recurrence, word = rule.recurrence, f"uint{8 * dtype.itemsize}"
    stored = [(f"{result}_array", result) for result in recurrence.results] + [("out_array", "p")] * with_out
    arguments = (
        [f"{array}_array" for array in ("p", "g", *rule.arrays)]
        + ["out_array"] * with_out
        + [*rule.scalars, *CONSTANTS]
    )
    lines = [
        *(f"{array} = {array}_array[i]" for array in recurrence.arrays),
        *(
            f"{target} = {ast.unparse(_Scalar().visit(deepcopy(expression)))}"
            for target, expression in recurrence.statements
        ),
        *(f"{array}[i] = {result}" for array, result in stored),
        # x - x is +0, whose bits are all 0, for every finite x and NaN for the others. `|` on words vectorises where a
        # branch or a float sum does not, and costs less than on comparisons.
        f"seen = {word}({' | '.join(['seen', *(f'{dtype}({one} - {one}).view({word})' for one in rule.watched)])})",
    ]
    head = [
        f"def {name}({', '.join(arguments)}):",
        f"    zero = {dtype}(0)",  # a select of what the compiler knows to be 0 is a mask
        f"    seen = {word}(0)",
        "    for i in range(p_array.size):",
    ]
    return "\n".join([*head, *(f"        {line}" for line in lines), "    return seen != 0", ""])


class _Scalar(ast.NodeTransformer):
    """One element at a time, `where` is a conditional expression, which the compiler turns into a select."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "where":
            condition, then, otherwise = node.args
            return ast.IfExp(test=condition, body=then, orelse=otherwise)
        return node
