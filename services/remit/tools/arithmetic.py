"""Evaluating the calculator's programs: exact where mathematics allows, and saying so where not.

A stack machine over `elementary`. What is exact is shown with all its digits, what is not with
`SHOWN_DIGITS`, and the answer says which it is.
"""

from __future__ import annotations

import decimal
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from remit.tools.elementary import (
    BINARY,
    CONSTANTS,
    CONTEXT,
    FUNCTIONS,
    UNARY,
    Number,
    as_decimal,
    bounded,
    too_large,
)
from remit.tools.expression import ExpressionError, Step

SHOWN_DIGITS: Final = 15
MAX_DECIMAL_PLACES: Final = 60
"""An exact fraction with more places is shown rounded, with the fraction beside it."""
MAX_FRACTION_CHARS: Final = 200


@dataclass(frozen=True)
class Answer:
    """A value in words: its decimal text, whether that is exact, and where not, its fraction.

    There is no fraction beside an irrational number, nor one longer than `MAX_FRACTION_CHARS`.
    """

    text: str
    exact: bool
    fraction: str | None = None


def evaluate(program: Sequence[Step]) -> Answer:
    """The value of a program made by `expression.parse`.

    Raises:
        ExpressionError: it has no value (division by zero, unknown name), or one out of bounds.

    """
    with decimal.localcontext(CONTEXT):
        try:
            stack: list[Number] = []
            for step in program:
                _perform(step, stack)
            return _answer(stack.pop())
        except (decimal.Overflow, OverflowError) as error:
            raise too_large() from error
        except (ZeroDivisionError, decimal.DivisionByZero) as error:
            raise ExpressionError("divides by zero") from error
        except decimal.InvalidOperation as error:
            raise ExpressionError("has no real value") from error


def _perform(step: Step, stack: list[Number]) -> None:
    match step.kind:
        case "number":
            stack.append(bounded(step.value))
        case "constant":
            stack.append(_constant(step.name))
        case "unary":
            stack.append(bounded(UNARY[step.name](stack.pop())))
        case "binary":
            right, left = stack.pop(), stack.pop()
            stack.append(bounded(BINARY[step.name](left, right)))
        case "call":
            operands = stack[len(stack) - step.count :]
            del stack[len(stack) - step.count :]
            stack.append(bounded(_call(step.name, operands)))


def _constant(name: str) -> Number:
    if name not in CONSTANTS:
        raise _unknown(name)
    return CONSTANTS[name]()


def _call(name: str, operands: list[Number]) -> Number:
    if name not in FUNCTIONS:
        raise _unknown(name)
    function = FUNCTIONS[name]
    if not function.least <= len(operands) <= function.most:
        expected = _count_text(function.least, function.most)
        message = f"gives {name} {len(operands)} values; it takes {expected}"
        raise ExpressionError(message)
    return function.apply(*operands)


def _count_text(least: int, most: float) -> str:
    if most == math.inf:
        return f"at least {least}"
    return str(least) if least == most else f"{least} or {most}"


def _unknown(name: str) -> ExpressionError:
    near = difflib.get_close_matches(name, [*FUNCTIONS, *CONSTANTS], n=1)
    suggestion = f"; did you mean {near[0]}?" if near else "."
    known = ", ".join(sorted([*FUNCTIONS, *CONSTANTS]))
    return ExpressionError(f"has an unknown name{suggestion} Known are: {known}")


def _answer(value: Number) -> Answer:
    if isinstance(value, Decimal):
        return Answer(_shown(value), exact=False)
    if value.denominator == 1:
        return Answer(str(value.numerator), exact=True)
    places = _decimal_places(value.denominator)
    if places is not None:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        sign = "-" if value < 0 else ""
        return Answer(f"{sign}{digits[:-places]}.{digits[-places:]}", exact=True)
    fraction = str(value)
    shown = fraction if len(fraction) <= MAX_FRACTION_CHARS else None
    return Answer(_shown(as_decimal(value)), exact=False, fraction=shown)


def _decimal_places(denominator: int) -> int | None:
    """Places that a fraction in lowest terms needs, or None for too many or endlessly many."""
    twos = (denominator & -denominator).bit_length() - 1
    if twos > MAX_DECIMAL_PLACES:
        return None
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0 and fives <= MAX_DECIMAL_PLACES:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    return places if rest == 1 and places <= MAX_DECIMAL_PLACES else None


def _shown(value: Decimal) -> str:
    rounded = decimal.Context(prec=SHOWN_DIGITS, Emax=9_999, Emin=-9_999).plus(value).normalize()
    if rounded == 0:
        return "0"
    if -7 < rounded.adjusted() <= 20:
        return f"{rounded:f}"
    return str(rounded).lower()
