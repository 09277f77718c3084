"""Whether a test file asserts that a metric moves, read from its source.

A metric that stays still in the mesh under test is vouched for by a test elsewhere. That the file
is there would say nothing: it must hold what `gained` says of the metric's series against a value
that is not 0.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def moves(series: Collection[str], module: str) -> bool:
    """Whether a test of this module (`tests/rpc/test_metrics`) asserts that one of these moves."""
    tree = ast.parse((_ROOT / f"{module}.py").read_text())
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return any(_moves(series, test) for test in functions if test.name.startswith("test_"))


def _moves(series: Collection[str], test: ast.AST) -> bool:
    watching = {name for name, watched in _watched(test) if watched in series}
    return any(name in watching and value != 0 for name, value in _asserted(test))


def _watched(test: ast.AST) -> Iterator[tuple[str, str]]:
    """The names in `name = gained("series", ...)`, with the series."""
    for node in ast.walk(test):
        match node:
            case ast.Assign(
                targets=[ast.Name(name)],
                value=ast.Call(func=ast.Name("gained"), args=[ast.Constant(str(watched))]),
            ):
                yield name, watched


def _asserted(test: ast.AST) -> Iterator[tuple[str, object]]:
    """The names in `assert name() == value`, with the value; also of several in a tuple."""
    for node in ast.walk(test):
        match node:
            case ast.Assert(test=ast.Compare() as compared):
                yield from _compared(compared)


def _compared(compared: ast.Compare) -> Iterator[tuple[str, object]]:
    match compared:
        case ast.Compare(left=ast.Tuple(left), comparators=[ast.Tuple(right)]):
            pairs = list(zip(left, right, strict=True))
        case ast.Compare(left=left, comparators=[right]):
            pairs = [(left, right)]
        case _:
            return
    for asked, told in pairs:
        match asked, told:
            case ast.Call(func=ast.Name(name), args=[]), ast.Constant(value):
                yield name, value
