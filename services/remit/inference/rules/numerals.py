"""English numerals: "one hundred and twenty-three point five" and "3 million" as exact decimals."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

_SMALL: Final = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS: Final = {word: value for value, word in enumerate(_SMALL)} | {"nought": 0, "nil": 0}
TENS: Final = {word: 10 * value for value, word in enumerate(_TENS, start=2)} | {"fourty": 40}
SCALES: Final = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
    "trillion": 1_000_000_000_000,
}
_PLURALS: Final = {f"{scale}s": scale for scale in SCALES}
_GROUP_LIMIT: Final = 1_000


def read_numeral(words: Sequence[str], start: int) -> tuple[Decimal, int] | None:
    """The longest numeral in words that begins at `start`, and where it ends; None if none does."""
    reader = _Reader(words, start)
    whole = reader.whole()
    if whole is None:
        return None
    return reader.with_fraction(Decimal(whole)), reader.position


def scale_of(word: str) -> int | None:
    """What a scale word such as "million" multiplies by; None for any other word."""
    return SCALES.get(_PLURALS.get(word, word))


class _Reader:
    """Reads one numeral; `position` stands behind what was understood."""

    def __init__(self, words: Sequence[str], start: int) -> None:
        self._words = words
        self.position = start

    def whole(self) -> int | None:
        """Groups with their scales, such as two million / five thousand / sixty."""
        total, ceiling = 0, None
        while (group := self._group(bound=ceiling, joined=ceiling is not None)) is not None:
            scale = self._scale(ceiling)
            total += group * scale
            ceiling = scale
            if scale == 1:
                break
        return total if ceiling is not None else None

    def with_fraction(self, whole: Decimal) -> Decimal:
        """`whole` with the digits that follow "point", if any do."""
        digits = ""
        if self._peek() == "point":
            end = self.position + 1
            while (digit := UNITS.get(self._peek(end - self.position), 10)) < 10:
                digits, end = digits + str(digit), end + 1
            self.position = end if digits else self.position
        return whole + Decimal(f"0.{digits or 0}")

    def _peek(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self._words[at] if at < len(self._words) else ""

    def _scale(self, ceiling: int | None) -> int:
        scale = scale_of(self._peek())
        if scale is None or scale == 100 or (ceiling is not None and scale >= ceiling):
            return 1
        self.position += 1
        return scale

    def _group(self, bound: int | None, *, joined: bool) -> int | None:
        """A number below 1000, such as "three hundred and four"; may follow an "and"."""
        begin = self.position
        after_and = joined and self._peek() == "and"
        self.position += after_and
        value = self._article_scale() if self._peek() in {"a", "an"} else self._below_hundred()
        if value is not None and value < 100 and scale_of(self._peek()) == 100:
            self.position += 1
            value = value * 100 + (self._joined_below_hundred() or 0)
        if value is None or (bound is not None and value >= min(bound, _GROUP_LIMIT)):
            self.position = begin
            return None
        if after_and and (value >= 100 or scale_of(self._peek()) is not None):
            # "And" stands before the last part below 100 alone; else a new number begins.
            self.position = begin
            return None
        return value

    def _article_scale(self) -> int | None:
        """The 1 of "a hundred" and "a dozen"; the article alone is no number."""
        if scale_of(self._peek(1)) is None:
            return None
        self.position += 1
        return 1

    def _joined_below_hundred(self) -> int | None:
        begin = self.position
        if self._peek() == "and":
            self.position += 1
        value = self._below_hundred()
        if value is None:
            self.position = begin
        return value

    def _below_hundred(self) -> int | None:
        word = self._peek()
        if word in UNITS:
            self.position += 1
            return UNITS[word]
        if word in TENS:
            self.position += 1
            unit = UNITS.get(self._peek(), 0)
            if 0 < unit < 10:
                self.position += 1
                return TENS[word] + unit
            return TENS[word]
        return None
