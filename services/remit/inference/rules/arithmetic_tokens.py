"""Cuts a sentence into numbers, words and symbols for the arithmetic rule."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from remit.inference.rules.numerals import TENS, UNITS

Kind = Literal["number", "word", "symbol"]

_NUMBER: Final = (
    r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d{1,60})(?:\.\d{1,60})?(?:[eE][+-]?\d{1,2})?"
    r"(?!\w|\.\d|,\d{3}(?!\d))"
    r"|(?<![\w.])\.\d{1,60}(?!\w|\.\d)"
)
# A date is one word, not two subtractions.
_DATE: Final = r"\b\d{4}-\d\d?-\d\d?\b|\b\d\d?/\d\d?/\d{2,4}\b|\b\d{1,2}:\d\d\b"
_TOKEN: Final = re.compile(
    rf"(?P<date>{_DATE})|(?P<number>{_NUMBER})|(?P<word>\w+(?:'\w+)?)|(?P<symbol>\*\*|[^\w\s])"
)
_TIMES_SIGN: Final = re.compile(r"(?<=\d)(?<!\b0)(\s*)[xX](\s*)(?=[\d(.])")
_SYMBOLS: Final = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"}  # noqa: RUF001
_POSTFIX: Final = {"²": "squared", "³": "cubed"}
_CURRENCIES: Final = frozenset("$€£¥")


@dataclass(frozen=True)
class Token:
    """A number, a word in lower case, or a symbol, and where it stands in the text."""

    kind: Kind
    text: str
    start: int
    end: int

    @property
    def value(self) -> Decimal:
        """The number that a number token writes."""
        return Decimal(self.text.replace(",", ""))


def tokens_of(text: str) -> list[Token]:
    """The tokens in order; a currency sign before a number is left out."""
    # Each replacement keeps its length, so that positions stay those of `text`.
    spaced = _TIMES_SIGN.sub(r"\1*\2", text)
    found = [token for match in _TOKEN.finditer(spaced) if (token := _token(match))]
    return _without_hyphens(_without_currency(found))


def _token(match: re.Match[str]) -> Token:
    text = match.group()
    if match.lastgroup == "number":
        return Token("number", text, match.start(), match.end())
    if match.lastgroup == "symbol":
        return Token("symbol", _SYMBOLS.get(text, text), match.start(), match.end())
    return Token("word", _POSTFIX.get(text, text.lower()), match.start(), match.end())


def _without_currency(tokens: list[Token]) -> list[Token]:
    return [
        token
        for token, after in itertools.zip_longest(tokens, tokens[1:])
        if not (token.text in _CURRENCIES and after is not None and after.kind == "number")
    ]


def _without_hyphens(tokens: list[Token]) -> list[Token]:
    """Joins "twenty-three": the hyphen between a ten and a unit is no minus."""
    kept: list[Token] = []
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else None
        after = tokens[position + 1] if position + 1 < len(tokens) else None
        if not (before and after and _is_hyphen(before, token, after)):
            kept.append(token)
    return kept


def _is_hyphen(before: Token, token: Token, after: Token) -> bool:
    adjacent = before.end == token.start and token.end == after.start
    return adjacent and token.text == "-" and before.text in TENS and after.text in UNITS
