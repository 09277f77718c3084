"""The words and signs of arithmetic, and what each one does."""

from __future__ import annotations

from typing import Final

from remit.inference.rules.formula import Operator

ADDITIVE: Final[dict[str, Operator]] = {
    "+": "+",
    "-": "-",
    "plus": "+",
    "added to": "+",
    "minus": "-",
    "less": "-",
    "take away": "-",
}
RELATIVE: Final[dict[str, Operator]] = {
    "increased by": "+",
    "raised by": "+",
    "decreased by": "-",
    "reduced by": "-",
}
MULTIPLICATIVE: Final[dict[str, Operator]] = {
    "*": "*",
    "/": "/",
    "times": "*",
    "multiplied by": "*",
    "multiplied with": "*",
    "divided by": "/",
    "over": "/",
    "modulo": "%",
    "modulus": "%",
    "mod": "%",
}
POWERS: Final = (
    "**",
    "raised to the power of",
    "raised to the power",
    "to the power of",
    "to the power",
    "raised to",
)
# These also stand between numbers without meaning arithmetic: they prove nothing alone.
WEAK: Final = frozenset({"+", "-", "*", "/", "%", "**", "over", "less", "raised to"})
DENOMINATORS: Final = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "hundredth": 100,
}
MULTIPLES: Final = {"double": 2, "twice": 2, "triple": 3, "thrice": 3, "quadruple": 4}
PERCENT: Final = ("%", "percent", "per cent")
PRONOUNS: Final = ("it", "that", "this", "the result", "the answer", "the sum", "the total")
