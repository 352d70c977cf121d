"""The recurrences, each written once, and what specialises them for a kernel.

A recurrence is a restricted Python function. Its own signature says what it is made of: the arrays are positional-only,
the scalars ordinary, the choices keyword-only. Its body is straight-line ``name = expression`` without literals;
``where`` and ``sqrt`` are the only calls, and ``if`` may only ask for a choice. So the same text runs on NumPy arrays
as the reference, and its specialised form (the choices decided, `specialise`) becomes the loop of the CPU kernel. Each
operator is one IEEE operation, rounded by itself: no kernel may contract or reassociate.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy import sqrt, where

Operand: TypeAlias = Any  # an array of the session's dtype, or one scalar of it
Text: TypeAlias = Callable[..., tuple[Operand, ...]]


def adam(
    p: Operand,
    g: Operand,
    m: Operand,
    v: Operand,
    v_max: Operand,
    /,
    sign: Operand,
    b1: Operand,
    one_minus_b1: Operand,
    b2: Operand,
    one_minus_b2: Operand,
    wd: Operand,
    decay: Operand,
    step_size: Operand,
    sqrt_bc2: Operand,
    eps: Operand,
    tiny: Operand,
    zero: Operand,
    *,
    coupled: bool,
    amsgrad: bool,
) -> tuple[Operand, ...]:
    r"""Adam, AdamW and AMSGrad, with eps outside the square root and bias correction, as `torch.optim.Adam` has it.

        g_t = sign g_t  (+ wd p_{t-1}, coupled)
        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2,          v_max_t = max(v_max_{t-1}, v_t)
        p_t = (1 - lr wd) p_{t-1} - lr / (1 - b1^t) * m_t / (sqrt(v_t or v_max_t) / sqrt(1 - b2^t) + eps)

    Sources: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2
    (`decay` = 1 - lr wd, 1 for Adam); Reddi et al. 2018, arXiv:1904.09237, algorithm 2 (`v_max`, over the uncorrected v
    as torch takes it).

    Arrays: p parameters, g gradient, m and v moments, v_max (unused without `amsgrad`), all of one shape and of the
    session's dtype. Scalars: of the same dtype, see `scalars.Scalars`; `tiny` is its smallest normal number: m and v
    below it become +0, because idle parameters reach subnormals, where a CPU crawls and GPU builds flush. Where d is 0
    (eps may be) the quotient is 0. `coupled` is off where wd is 0, so that g stays g: adding 0*p would turn -0 into +0
    and an infinite p into NaN.

    Returns the new (p, m, v, v_max). Raises nothing: NaN and infinity pass through and are the caller's to see.
    """
    g = sign * g
    if coupled:
        g = g + wd * p
    p = decay * p
    m = b1 * m + one_minus_b1 * g
    v = b2 * v + one_minus_b2 * (g * g)
    m = where((-tiny < m) & (m < tiny), zero, m)
    v = where(v < tiny, zero, v)
    s = v
    if amsgrad:
        v_max = where(v > v_max, v, v_max)
        s = v_max
    d = sqrt(s) / sqrt_bc2 + eps
    q = where(d == zero, zero, m / d)
    p = p - step_size * q
    return p, m, v, v_max


class TextError(ValueError):
    """A recurrence holds something that not every kernel could express."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A recurrence with its choices decided: straight-line, so that a kernel is a walk over `statements`.

    name: the text's name and the choices taken, an identifier. arrays: those read, in the text's order. scalars: those
    read. statements: (name, expression) in order. results: the arrays written.
    """

    name: str
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    statements: tuple[tuple[str, ast.expr], ...]
    results: tuple[str, ...]


def specialise(text: Text, choices: Mapping[str, bool]) -> Recurrence:
    """Decide the choices of `text` (all of them, by name) and drop what they leave unused.

    Raises TextError where the text breaks the restrictions above, or a choice is missing or unknown.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(text))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TextError("a recurrence is a plain function")
    declared = {argument.arg for argument in tree.args.kwonlyargs}
    if declared != set(choices):
        raise TextError(f"{tree.name} has the choices {sorted(declared)}, not {sorted(choices)}")
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    *lines, last = _decide(body, choices)
    if not isinstance(last, ast.Return):
        raise TextError(f"{tree.name} does not end in a return")
    statements = tuple(_statement(line) for line in lines)
    assigned = {name for name, _ in statements}
    read = {node.id for _, expression in statements for node in ast.walk(expression) if isinstance(node, ast.Name)}
    return Recurrence(
        name="_".join([tree.name, *(name for name in sorted(choices) if choices[name])]),
        arrays=tuple(argument.arg for argument in tree.args.posonlyargs if argument.arg in read),
        scalars=tuple(argument.arg for argument in tree.args.args if argument.arg in read),
        statements=statements,
        results=tuple(name for name in _returned(last) if name in assigned),
    )


def _decide(body: Iterable[ast.stmt], choices: Mapping[str, bool]) -> list[ast.stmt]:
    """The statements that the choices leave."""
    kept: list[ast.stmt] = []
    for line in body:
        if not isinstance(line, ast.If):
            kept.append(line)
        elif isinstance(line.test, ast.Name) and line.test.id in choices:
            kept += _decide(line.body if choices[line.test.id] else line.orelse, choices)
        else:
            raise TextError(f"if {ast.unparse(line.test)}: only a choice may be asked for")
    return kept


def _statement(line: ast.stmt) -> tuple[str, ast.expr]:
    match line:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            _require_expressible(value)
            return name, value
    raise TextError(f"not a plain assignment: {ast.unparse(line)}")


def _returned(last: ast.Return) -> list[str]:
    elements = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    names = [element.id for element in elements if isinstance(element, ast.Name)]
    if len(names) != len(elements):
        raise TextError("a recurrence returns names")
    return names


def _require_expressible(node: ast.expr) -> None:
    """Raise TextError unless NumPy, Numba and CUDA C all have this expression with the same rounding."""
    match node:
        case ast.Name():
            return
        case ast.BinOp(
            left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.BitAnd() | ast.BitOr(), right=right
        ):
            children = [left, right]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            children = [operand]
        case ast.Compare(
            left=left, ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() | ast.Eq() | ast.NotEq()], comparators=[right]
        ):
            children = [left, right]
        case (
            ast.Call(func=ast.Name(id="where"), args=[_, _, _], keywords=[])
            | ast.Call(func=ast.Name(id="sqrt"), args=[_], keywords=[])
        ):
            children = node.args
        case _:
            raise TextError(f"not expressible in every kernel: {ast.unparse(node)}")
    for child in children:
        _require_expressible(child)
