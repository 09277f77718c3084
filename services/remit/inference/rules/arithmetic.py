"""Finds the formulas in a sentence and decides whether arithmetic is what is asked for.

Numbers with a sign between them are not always a question ("from 3 - 4 pm", "24/7"). A formula
counts when words say that it is one ("times", "the sum of"), when the sentence asks for a value,
when the signs mean nothing else, or when nothing but the formula is said. A formula of which only a
part was understood does not count: half an answer would be a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from remit.inference.rules.arithmetic_cursor import NoFormula
from remit.inference.rules.arithmetic_grammar import Grammar
from remit.inference.rules.arithmetic_tokens import Token, tokens_of
from remit.inference.rules.formula import Binary, Formula, Number, written
from remit.inference.rules.vocabulary import vocabulary

MAX_CLAUSE_TOKENS: Final = 400
"""Longer clauses are prose; the scan is quadratic at worst."""

_MAX_LIST_TOKENS: Final = 40
_MAX_SEPARATORS: Final = 6
_CUE: Final = re.compile(
    r"\b(what(?:'s|’s|s| is| are| do| does| would| will)?|how (?:much|many)|calculate|compute"  # noqa: RUF001
    r"|evaluate|work out|figure out|solve|results? of|values? of|answers? to|simplify"
    r"|tell me|give me|do the maths?)\b",
    re.IGNORECASE,
)
_FILLERS: Final = vocabulary(
    "please kindly hey hi hello ok okay so now then and also me the a is are of to it "
    "you can could would just quick quickly thanks thank equal equals make makes "
    "answer result"
)
_BEFORE_UNFINISHED: Final = vocabulary("+ - * / ** % ( √ ^ =")
_AFTER_UNFINISHED: Final = vocabulary(
    "+ * / ** % ( ^ plus minus times divided multiplied modulo mod squared cubed percent"
)
_PLAIN_SIGNS: Final = frozenset({"*", "**", "+"})
_NESTING: Final = frozenset({"+", "-", "*", "/", "%", "**"})


@dataclass(frozen=True)
class FoundFormula:
    """A formula and the part of the text that says it, end exclusive."""

    formula: Formula
    start: int
    end: int

    @property
    def text(self) -> str:
        """The formula in its written form."""
        return written(self.formula)


def formulas_in(text: str) -> list[FoundFormula]:
    """All formulas that `text` asks to be worked out, in order."""
    tokens = tokens_of(text)
    if len(tokens) > MAX_CLAUSE_TOKENS:
        return []
    spans = _spans(tokens)
    alone = _nothing_else(tokens, spans)
    return [
        FoundFormula(span.formula, tokens[span.first].start, tokens[span.end - 1].end)
        for span in spans
        if alone or span.strong or _asks(text, tokens, span) or _only_plain_signs(tokens, span)
    ]


@dataclass(frozen=True)
class _Span:
    formula: Formula
    first: int
    end: int
    strong: bool


def _spans(tokens: Sequence[Token]) -> list[_Span]:
    spans: list[_Span] = []
    at = 0
    while at < len(tokens):
        span = _span_at(tokens, at)
        if span is not None and _is_whole(tokens, span):
            spans.append(span)
        at = span.end if span is not None else at + 1
    return spans


def _span_at(tokens: Sequence[Token], start: int) -> _Span | None:
    """The longest formula with at least one operation that begins at `start`."""
    readings = [
        span
        for separators in _separations(tokens, start)
        if (span := _read(tokens, start, separators)) is not None
    ]
    return max(readings, key=lambda span: span.end, default=None)


def _separations(tokens: Sequence[Token], start: int) -> list[frozenset[int]]:
    """Ways to take the next "and"s, the likeliest first: as parts of numbers or between them.

    "The sum of one hundred and five" needs one that separates: the last one that helps.
    """
    end = min(start + _MAX_LIST_TOKENS, len(tokens))
    found = [at for at in range(start, end) if tokens[at].text == "and"][:_MAX_SEPARATORS]
    return [frozenset(), *(frozenset({at}) for at in reversed(found)), frozenset(found)]


def _read(tokens: Sequence[Token], start: int, separators: frozenset[int]) -> _Span | None:
    grammar = Grammar(tokens, start, separators)
    try:
        formula = grammar.continued()
    except NoFormula:
        return None
    if not _computes(formula):
        return None
    return _Span(formula, start, grammar.position, grammar.strong)


def _computes(formula: Formula) -> bool:
    return not isinstance(formula, Number) and not (
        not isinstance(formula, Binary) and not _computes(formula.operand)
    )


def _is_whole(tokens: Sequence[Token], span: _Span) -> bool:
    """Whether the formula neither goes on nor began before what was understood."""
    before = tokens[span.first - 1] if span.first else None
    after = tokens[span.end] if span.end < len(tokens) else None
    if before is not None and (
        before.text in _BEFORE_UNFINISHED
        or (before.kind == "word" and before.end == tokens[span.first].start)
    ):
        return False
    return after is None or not _goes_on(tokens, span.end)


def _goes_on(tokens: Sequence[Token], end: int) -> bool:
    after = tokens[end]
    following = tokens[end + 1] if end + 1 < len(tokens) else None
    if after.text in {"=", "equals"}:  # an equation to check or to solve
        return following is not None and (
            following.kind == "number" or (len(following.text) == 1 and following.text.isalpha())
        )
    if after.text == "-":  # else a dash before a remark
        return following is not None and (following.kind == "number" or len(following.text) == 1)
    return after.text in _AFTER_UNFINISHED


def _nothing_else(tokens: Sequence[Token], spans: Sequence[_Span]) -> bool:
    covered = {at for span in spans for at in range(span.first, span.end)}
    return all(
        at in covered or token.kind == "symbol" or token.text in _FILLERS
        for at, token in enumerate(tokens)
    )


def _asks(text: str, tokens: Sequence[Token], span: _Span) -> bool:
    start, end = tokens[span.first].start, tokens[span.end - 1].end
    return _CUE.search(text, 0, start) is not None or text[end:].lstrip().startswith("=")


def _only_plain_signs(tokens: Sequence[Token], span: _Span) -> bool:
    """Whether all signs mean arithmetic by themselves: "3 * 4", yet not "3 - 4" or "24/7"."""
    signs = {token.text for token in tokens[span.first : span.end]} & _NESTING
    return bool(signs) and signs <= _PLAIN_SIGNS
