"""The calculator's operators and functions on exact fractions and long decimals.

Numbers are fractions as long as they can be. What has no finite form (roots, logarithms, angles) is
a decimal of `PRECISION` digits from there on. Sizes are checked before an operation could make a
number large, so none takes long.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from remit.tools.expression import ExpressionError

MAX_BITS: Final = 10_000
"""Size of a numerator or denominator: about 3,000 decimal digits."""
MAX_FACTORIAL: Final = 1_000
MAX_ROOT: Final = 100
MAX_ANGLE: Final = Decimal(10) ** 12
PRECISION: Final = 50

Number = Fraction | Decimal

CONTEXT: Final = decimal.Context(
    prec=PRECISION,
    Emax=9_999,
    Emin=-9_999,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)
_ANGLE_PRECISION: Final = 90
_PI: Final = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
)
_NOISE: Final = Decimal(10) ** -45


def bounded(value: Number) -> Number:
    """The value itself. Raises ExpressionError beyond `MAX_BITS`; decimals are bounded already."""
    if isinstance(value, Fraction) and max(_bits(value)) > MAX_BITS:
        raise too_large()
    return value


def _bits(value: Fraction) -> tuple[int, int]:
    return value.numerator.bit_length(), value.denominator.bit_length()


def too_large() -> ExpressionError:
    """The error of a value out of bounds."""
    return ExpressionError(f"has a value that is too large (over {MAX_BITS} bits)")


def as_decimal(value: Number) -> Decimal:
    """The value to the precision of the current context."""
    if isinstance(value, Decimal):
        return value
    return Decimal(value.numerator) / Decimal(value.denominator)


def _arithmetic(
    exact: Callable[[Fraction, Fraction], Fraction],
    approximate: Callable[[Decimal, Decimal], Decimal],
) -> Callable[[Number, Number], Number]:
    def apply(left: Number, right: Number) -> Number:
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return exact(left, right)
        return approximate(as_decimal(left), as_decimal(right))

    return apply


def _divide(left: Decimal, right: Decimal) -> Decimal:
    if right == 0:  # 0 / 0 too: decimal calls it an invalid operation
        raise ZeroDivisionError
    return left / right


def _floor_divide(left: Decimal, right: Decimal) -> Decimal:
    return _floor_decimal(_divide(left, right))


def _modulo(left: Decimal, right: Decimal) -> Decimal:
    return left - right * _floor_divide(left, right)


def _settled(value: Decimal) -> Decimal:
    """The nearest integer, if rounding alone has kept the value from it."""
    nearest = value.to_integral_value(decimal.ROUND_HALF_EVEN)
    tolerance = _NOISE * max(abs(value), Decimal(1))
    return nearest if abs(value - nearest) <= tolerance else value


def _floor_decimal(value: Decimal) -> Decimal:
    return _settled(value).to_integral_value(decimal.ROUND_FLOOR)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        exact = _exact_power(base, exponent)
        if exact is not None:
            return exact
    left, right = as_decimal(base), as_decimal(exponent)
    if left == 0 and right == 0:
        return Decimal(1)
    if left == 0 and right < 0:
        raise ZeroDivisionError
    return left**right


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """The power, if it is a fraction of which all digits are wanted."""
    if exponent.denominator == 1:
        wanted = _is_exact_power(base, exponent.numerator)
        return _integer_power(base, exponent.numerator) if wanted else None
    root = _exact_root(base, exponent.denominator)
    return None if root is None else _integer_power(root, exponent.numerator)


def _is_exact_power(base: Fraction, exponent: int) -> bool:
    """Whether to compute all digits: always for integers, else where they are not too many.

    Interest over thousands of periods is wanted rounded; an integer exactly or not at all.
    """
    return base.denominator == 1 or max(_bits(base)) * abs(exponent) <= MAX_BITS


def _integer_power(base: Fraction, exponent: int) -> Fraction:
    if base in {0, 1}:  # any exponent, however large
        if base == 0 and exponent < 0:
            raise ZeroDivisionError
        return Fraction(1) if exponent == 0 else base
    if base == -1:
        return Fraction(1 if exponent % 2 == 0 else -1)
    if max(_bits(base)) * abs(exponent) > 2 * MAX_BITS:
        raise too_large()
    return base**exponent


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The root, if it is a fraction. None too for a negative value: its powers are not real."""
    if value < 0 or degree > MAX_ROOT:
        return None
    top = _integer_root(value.numerator, degree)
    bottom = _integer_root(value.denominator, degree)
    found = top**degree == value.numerator and bottom**degree == value.denominator
    return Fraction(top, bottom) if found else None


def _integer_root(value: int, degree: int) -> int:
    """The largest integer whose power is at most `value` (Newton's method from above)."""
    if degree == 2:
        return math.isqrt(value)
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _square_root(value: Number) -> Number:
    return _power(value, Fraction(1, 2))


def _cube_root(value: Number) -> Number:
    magnitude = _power(_magnitude(value), Fraction(1, 3))
    return -magnitude if value < 0 else magnitude


def _magnitude(value: Number) -> Number:
    return -value if value < 0 else value


def _rounded(rounding: str) -> Callable[[Number], Number]:
    def apply(value: Number) -> Number:
        if isinstance(value, Decimal):
            return _settled(value).to_integral_value(rounding)
        return Fraction(_round_fraction(value, rounding))

    return apply


def _round_fraction(value: Fraction, rounding: str) -> int:
    match rounding:
        case decimal.ROUND_FLOOR:
            return math.floor(value)
        case decimal.ROUND_CEILING:
            return math.ceil(value)
        case decimal.ROUND_DOWN:
            return math.trunc(value)
        case _:  # half away from zero, as taught at school
            magnitude = math.floor(abs(value) + Fraction(1, 2))
            return magnitude if value >= 0 else -magnitude


def _round(value: Number, places: Number = Fraction(0)) -> Number:
    scale = _integer_power(Fraction(10), _integer(places, "round"))
    scaled = BINARY["*"](value, scale)
    return BINARY["/"](_rounded(decimal.ROUND_HALF_UP)(scaled), scale)


def _integer(value: Number, name: str) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1:
        message = f"gives {name} a value that is not an integer"
        raise ExpressionError(message)
    return value.numerator


def _factorial(value: Number) -> Number:
    number = _integer(value, "factorial")
    if not 0 <= number <= MAX_FACTORIAL:
        message = f"needs a factorial of something that is not within 0 to {MAX_FACTORIAL}"
        raise ExpressionError(message)
    return Fraction(math.factorial(number))


def _of_integers(function: Callable[..., int], name: str) -> Callable[..., Number]:
    def apply(*values: Number) -> Number:
        result = Fraction(1)
        for index, value in enumerate(values):
            number = _integer(value, name)
            result = Fraction(function(result.numerator, number) if index else abs(number))
            bounded(result)
        return result

    return apply


def _extreme(choose: Callable[..., Number]) -> Callable[..., Number]:
    return lambda *values: choose(values, key=Fraction)


def _sum(*values: Number) -> Number:
    total: Number = Fraction(0)
    for value in values:
        total = bounded(BINARY["+"](total, value))
    return total


def _mean(*values: Number) -> Number:
    return BINARY["/"](_sum(*values), Fraction(len(values)))


def _natural_log(value: Number) -> Number:
    if value == 1:
        return Fraction(0)
    if value <= 0:
        raise ExpressionError("takes the logarithm of a number that is not positive")
    return as_decimal(value).ln()


def _log(value: Number, base: Number = Fraction(10)) -> Number:
    exact = _exact_log(value, base)
    if exact is not None:
        return Fraction(exact)
    return BINARY["/"](_natural_log(value), _natural_log(base))


def _exact_log(value: Number, base: Number) -> int | None:
    """The logarithm, if it is an integer."""
    if not (isinstance(value, Fraction) and isinstance(base, Fraction) and value > 0 and base > 1):
        return None
    ratio = as_decimal(value).ln() / as_decimal(base).ln()
    candidate = int(ratio.to_integral_value())
    if abs(candidate) > MAX_BITS or max(_bits(base)) * abs(candidate) > 2 * MAX_BITS:
        return None
    return candidate if base**candidate == value else None


def _exponential(value: Number) -> Number:
    return Fraction(1) if value == 0 else as_decimal(value).exp()


def _sine(value: Number) -> Number:
    return Fraction(0) if value == 0 else _series(as_decimal(value), first=1)


def _cosine(value: Number) -> Number:
    return Fraction(1) if value == 0 else _series(as_decimal(value), first=0)


def _tangent(value: Number) -> Number:
    return BINARY["/"](_sine(value), _cosine(value))


def _series(angle: Decimal, first: int) -> Decimal:
    """The Taylor series whose first power is `first`: 1 for the sine, 0 for the cosine."""
    if abs(angle) > MAX_ANGLE:
        message = f"has an angle beyond {MAX_ANGLE:f} radians"
        raise ExpressionError(message)
    with decimal.localcontext() as context:
        context.prec = _ANGLE_PRECISION
        angle = angle.remainder_near(2 * _PI)
        term = angle if first else Decimal(1)
        total, power = term, first
        while abs(term) > Decimal(10) ** -_ANGLE_PRECISION:
            term *= -angle * angle / ((power + 1) * (power + 2))
            total += term
            power += 2
    return Decimal(0) if abs(total) < _NOISE else +total


@dataclass(frozen=True)
class Function:
    """A function and how many values it takes at least and at most."""

    apply: Callable[..., Number]
    least: int = 1
    most: float = 1


UNARY: Final[dict[str, Callable[[Number], Number]]] = {
    "-": lambda value: -value,
    "+": lambda value: value,
    "%": lambda value: BINARY["/"](value, Fraction(100)),
}
BINARY: Final[dict[str, Callable[[Number, Number], Number]]] = {
    "+": _arithmetic(lambda a, b: a + b, lambda a, b: a + b),
    "-": _arithmetic(lambda a, b: a - b, lambda a, b: a - b),
    "*": _arithmetic(lambda a, b: a * b, lambda a, b: a * b),
    "/": _arithmetic(lambda a, b: a / b, _divide),
    "//": _arithmetic(lambda a, b: Fraction(a // b), _floor_divide),
    "%": _arithmetic(lambda a, b: a % b, _modulo),
    "**": _power,
}
CONSTANTS: Final[dict[str, Callable[[], Number]]] = {
    "pi": lambda: +_PI,
    "e": lambda: Decimal(1).exp(),
}
FUNCTIONS: Final[dict[str, Function]] = {
    "abs": Function(_magnitude),
    "cbrt": Function(_cube_root),
    "ceil": Function(_rounded(decimal.ROUND_CEILING)),
    "cos": Function(_cosine),
    "exp": Function(_exponential),
    "factorial": Function(_factorial),
    "floor": Function(_rounded(decimal.ROUND_FLOOR)),
    "gcd": Function(_of_integers(math.gcd, "gcd"), 1, math.inf),
    "lcm": Function(_of_integers(math.lcm, "lcm"), 1, math.inf),
    "ln": Function(_natural_log),
    "log": Function(_log, 1, 2),
    "max": Function(_extreme(max), 1, math.inf),
    "mean": Function(_mean, 1, math.inf),
    "min": Function(_extreme(min), 1, math.inf),
    "round": Function(_round, 1, 2),
    "sin": Function(_sine),
    "sqrt": Function(_square_root),
    "sum": Function(_sum, 1, math.inf),
    "tan": Function(_tangent),
    "trunc": Function(_rounded(decimal.ROUND_DOWN)),
}
