"""Arithmetic as a tree, and its one written form.

The written form uses digits, `+ - * / % **` and parentheses alone, which Python, calculators and
spreadsheets' formula parsers read alike (of these, `**` is Python's).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

Operator = Literal["+", "-", "*", "/", "%", "**"]
_PRECEDENCE: Final[dict[str, int]] = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "**": 4}
_NEGATION: Final = 3
_ATOM: Final = 5


@dataclass(frozen=True)
class Number:
    """A literal, never negative."""

    value: Decimal


@dataclass(frozen=True)
class Negative:
    """Minus something."""

    operand: Formula


@dataclass(frozen=True)
class Binary:
    """Two operands and an operator."""

    operator: Operator
    left: Formula
    right: Formula


Formula = Number | Negative | Binary


def written(formula: Formula) -> str:
    """The formula with no more parentheses than it needs."""
    match formula:
        case Number(value):
            return _digits(value)
        case Negative(operand):
            return f"-{_inside(operand, _NEGATION + 1)}"
        case Binary(operator, left, right):
            own = _PRECEDENCE[operator]
            # `**` binds to the right, the others to the left.
            left_least, right_least = (own + 1, own) if operator == "**" else (own, own + 1)
            return f"{_inside(left, left_least)} {operator} {_inside(right, right_least)}"


def operands(formula: Formula) -> int:
    """How many literals the formula holds."""
    match formula:
        case Number():
            return 1
        case Negative(operand):
            return operands(operand)
        case Binary(_, left, right):
            return operands(left) + operands(right)


def _inside(formula: Formula, least: int) -> str:
    text = written(formula)
    return text if _binding(formula) >= least else f"({text})"


def _binding(formula: Formula) -> int:
    match formula:
        case Number():
            return _ATOM
        case Negative():
            return _NEGATION
        case Binary(operator, _, _):
            return _PRECEDENCE[operator]


def _digits(value: Decimal) -> str:
    plain = f"{value:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
