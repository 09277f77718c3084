"""The calculator's language: text in, a program for a stack machine out.

Precedence is Python's: `+ -`, then `* / // %`, then unary minus, then `**` from the right. On top
of that: `^` means `**`, `5!` is a factorial, and `%` that no operand follows is a percentage, so
that `15% of 240` and `200 + 15%` (200.15) read as they stand. A program is flat, so evaluating it
needs no recursion; reading it recurses at most `MAX_DEPTH` levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

MAX_CHARS: Final = 1_000
MAX_DEPTH: Final = 60
MAX_EXPONENT_OF_LITERAL: Final = 3_000
"""Powers of ten that a number such as `1e300` may name."""

StepKind = Literal["number", "constant", "unary", "binary", "call"]

_TOKEN: Final = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9]*)"
    r"|(?P<sign>\*\*|//|[-+*/%^()!,])"
    r"|(?P<space>[ \t\r\n\u00a0]+)"
)
_TYPOGRAPHIC: Final = str.maketrans("\u00d7\u00b7\u00f7\u2212\u2013", "**/--")
"""Signs of times, dot, division, minus and en dash, which people paste."""
_ADDITIVE: Final = 10
_MULTIPLICATIVE: Final = 20
_UNARY: Final = 30
_INFIX: Final = {
    "+": _ADDITIVE,
    "-": _ADDITIVE,
    "*": _MULTIPLICATIVE,
    "/": _MULTIPLICATIVE,
    "//": _MULTIPLICATIVE,
    "%": _MULTIPLICATIVE,
    "of": _MULTIPLICATIVE,
}
_POWERS: Final = frozenset({"**", "^"})


class ExpressionError(ValueError):
    """An expression that has no value, and why. It repeats nothing of the expression itself."""


@dataclass(frozen=True)
class Step:
    """One instruction: push a number or constant, or replace operands on the stack by a result.

    `name` is the operator, constant or function; `count` how many operands a call takes.
    """

    kind: StepKind
    name: str = ""
    value: Fraction = Fraction(0)
    count: int = 0


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int  # of its first character, from 1


def parse(text: str) -> tuple[Step, ...]:
    """The program of an expression.

    Raises:
        ExpressionError: it is longer, deeper or larger than the bounds above, or no expression; the
            message tells the position of the fault, in characters from 1.

    """
    if len(text) > MAX_CHARS:
        message = f"must have at most {MAX_CHARS} characters"
        raise ExpressionError(message)
    parser = _Parser(_tokens(text))
    return parser.program()


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    plain = text.translate(_TYPOGRAPHIC)
    while position < len(plain):
        match = _TOKEN.match(plain, position)
        if match is None:
            message = f"has a character that does not belong there at position {position + 1}"
            raise ExpressionError(message)
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match.group().lower(), position + 1))
        position = match.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


class _Parser:
    """Precedence climbing; emits the steps of operands before those of their operator."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._steps: list[Step] = []

    def program(self) -> tuple[Step, ...]:
        self._expression(0)
        if self._token.kind != "end":
            raise self._unexpected()
        return tuple(self._steps)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _accept(self, *texts: str) -> bool:
        found = self._token.kind != "number" and self._token.text in texts
        self._next += found
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            message = f"needs '{text}' at position {self._token.position}"
            raise ExpressionError(message)

    def _unexpected(self) -> ExpressionError:
        if self._token.kind == "end":
            return ExpressionError("ends where a number was expected")
        return ExpressionError(f"cannot be understood from position {self._token.position} on")

    def _expression(self, least: int) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            message = f"is nested deeper than {MAX_DEPTH} levels"
            raise ExpressionError(message)
        self._operand()
        while _INFIX.get(self._infix(), -1) >= least:
            operator = self._take().text
            self._expression(_INFIX[operator] + 1)
            self._steps.append(Step("binary", "*" if operator == "of" else operator, count=2))
        self._depth -= 1

    def _infix(self) -> str:
        return self._token.text if self._token.kind in {"sign", "name"} else ""

    def _operand(self) -> None:
        """A signed power: `-2 ** 2` is -(2 ** 2), and `2 ** -1` is a half."""
        if self._token.text in {"-", "+"}:
            sign = self._take().text
            self._expression(_UNARY)
            self._steps.append(Step("unary", sign, count=1))
            return
        self._primary()
        self._postfixes()
        if self._token.text in _POWERS:
            self._take()
            self._expression(_UNARY)
            self._steps.append(Step("binary", "**", count=2))

    def _postfixes(self) -> None:
        while True:
            if self._accept("!"):
                self._steps.append(Step("call", "factorial", count=1))
            elif self._token.text == "%" and not self._operand_follows():
                self._take()
                self._steps.append(Step("unary", "%", count=1))
            else:
                return

    def _operand_follows(self) -> bool:
        """Whether the token after this one begins an operand: then `%` is modulo.

        A sign does not count: `20% - 5` is a percentage; modulo by a negative number takes
        parentheses.
        """
        after = self._tokens[self._next + 1]
        return (
            after.kind == "number"
            or after.text == "("
            or (after.kind == "name" and after.text != "of")
        )

    def _primary(self) -> None:
        token = self._token
        if token.kind == "number":
            self._take()
            self._steps.append(Step("number", value=_literal(token)))
        elif token.kind == "name" and token.text not in _INFIX:
            self._named()
        elif self._accept("("):
            self._expression(0)
            self._expect(")")
        else:
            raise self._unexpected()

    def _named(self) -> None:
        name = self._take().text
        if not self._accept("("):
            self._steps.append(Step("constant", name))
            return
        count = 0
        if not self._accept(")"):
            count = self._arguments()
        self._steps.append(Step("call", name, count=count))

    def _arguments(self) -> int:
        self._expression(0)
        count = 1
        while self._accept(","):
            self._expression(0)
            count += 1
        self._expect(")")
        return count


def _literal(token: _Token) -> Fraction:
    _, _, exponent = token.text.partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT_OF_LITERAL:
        message = f"has a number out of range at position {token.position}"
        raise ExpressionError(message)
    return Fraction(token.text)
