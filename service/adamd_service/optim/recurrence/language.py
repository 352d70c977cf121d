"""What a recurrence is, each written once, and what specialises and joins them for a kernel.

A recurrence is a restricted Python function. Its own signature says what it is made of: the arrays are positional-only,
the scalars ordinary, the choices keyword-only. Its body is straight-line ``name = expression`` without literals;
``where`` and ``sqrt`` are the only calls, and ``if`` may only ask for a choice. So the same text runs on NumPy arrays
as the reference, and its specialised form (the choices decided, `specialise`) becomes the loop of the CPU kernel. Each
operator is one IEEE operation, rounded by itself: no kernel may contract or reassociate.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

Operand: TypeAlias = Any  # an array of the session's dtype, or one scalar of it
Text: TypeAlias = Callable[..., tuple[Operand, ...]]


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


class Signature(NamedTuple):
    """What a text is made of, in its own order; returned are the names that it ends with."""

    name: str
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    choices: tuple[str, ...]
    returned: tuple[str, ...]


@cache
def signature(text: Text) -> Signature:
    """What `text` declares. Raises TextError where it is no recurrence."""
    tree = _parsed(text)
    last = tree.body[-1]
    if not isinstance(last, ast.Return):
        raise TextError(f"{tree.name} does not end in a return")
    return Signature(
        tree.name,
        tuple(argument.arg for argument in tree.args.posonlyargs),
        tuple(argument.arg for argument in tree.args.args),
        tuple(argument.arg for argument in tree.args.kwonlyargs),
        tuple(_returned(last)),
    )


def specialise(text: Text, choices: Mapping[str, bool]) -> Recurrence:
    """Decide the choices of `text` (all of them, by name) and drop what they leave unused.

    Raises TextError where the text breaks the restrictions above, or a choice is missing or unknown.
    """
    declared = signature(text)
    if set(declared.choices) != set(choices):
        raise TextError(f"{declared.name} has the choices {sorted(declared.choices)}, not {sorted(choices)}")
    tree = _parsed(text)
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    statements = tuple(_statement(line) for line in _decide(body[:-1], choices))
    assigned = {name for name, _ in statements}
    read = _read(statements)
    return Recurrence(
        name="_".join([declared.name, *(name for name in sorted(choices) if choices[name])]),
        arrays=tuple(name for name in declared.arrays if name in read),
        scalars=tuple(name for name in declared.scalars if name in read),
        statements=statements,
        results=tuple(name for name in declared.returned if name in assigned),
    )


def join(parts: Sequence[Recurrence]) -> Recurrence:
    """One recurrence after the other, on one element; g is theirs to pass on, and no result.

    Raises TextError where a name that one makes for itself is an array or a scalar of another: it would be overwritten.
    """
    for one in parts:
        own = {name for name, _ in one.statements} - set(one.arrays) - set(one.results)
        for other in parts:
            if clash := own & {*other.arrays, *other.scalars}:
                raise TextError(f"{one.name} makes {sorted(clash)}, which {other.name} reads")
    return Recurrence(
        name="_".join(part.name for part in parts),
        arrays=tuple(dict.fromkeys(name for part in parts for name in part.arrays)),
        scalars=tuple(dict.fromkeys(name for part in parts for name in part.scalars)),
        statements=tuple(statement for part in parts for statement in part.statements),
        results=tuple(dict.fromkeys(name for part in parts for name in part.results if name != "g")),
    )


def _parsed(text: Text) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(text))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TextError("a recurrence is a plain function")
    return tree


def _read(statements: Iterable[tuple[str, ast.expr]]) -> set[str]:
    return {node.id for _, expression in statements for node in ast.walk(expression) if isinstance(node, ast.Name)}


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
