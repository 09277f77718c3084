"""The calculator's value of an expression, against Python's own arithmetic and known results."""

from __future__ import annotations

import math
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.tools.arithmetic import Answer, evaluate
from remit.tools.elementary import CONSTANTS, FUNCTIONS
from remit.tools.expression import ExpressionError, parse

LONGEST_S = 2.0
"""Far above what any expression takes here (0.1 s), far below what one without bounds would."""


def answer(text: str) -> Answer:
    return evaluate(parse(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17 * 23", "391"),
        ("0.1 + 0.2", "0.3"),
        ("-2 ** 2", "-4"),
        ("2 ** -1", "0.5"),
        ("2 ** 3 ** 2", "512"),
        ("2 ^ 10", "1024"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("10 % (-3)", "-2"),
        ("15% of 240", "36"),
        ("200 + 15%", "200.15"),
        ("20% - 5", "-4.8"),
        ("50% of 50% of 8", "2"),
        ("5!", "120"),
        ("(3 - 1)! ** 2", "4"),
        ("3 \u00d7 4 \u2212 10 \u00f7 4", "9.5"),
        ("sqrt(16)", "4"),
        ("8 ** (1/3)", "2"),
        ("cbrt(-27)", "-3"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(2.345, 2)", "2.35"),
        ("floor(-1.5)", "-2"),
        ("ceil(-1.5)", "-1"),
        ("trunc(-1.5)", "-1"),
        ("abs(-3) + max(1, 2, 3) - min(4, 5)", "2"),
        ("gcd(12, 18) + lcm(4, 6)", "18"),
        ("sum(1, 2, 3) / mean(1, 2, 3)", "3"),
        ("log(1000) + log(8, 2) + ln(1)", "6"),
        ("cos(0) + sin(0) + tan(0) + exp(0)", "2"),
        ("1e3 + 1.5e-1 + .5", "1000.65"),
        ("0 ** 0", "1"),
        ("1 ** 99999999999", "1"),
        ("(-1) ** 99999999999", "-1"),
        ("factorial(1000) / factorial(998)", "999000"),
        ("SQRT(4)", "2"),
        ("2 ** 200", str(2**200)),
        ("123456789012345678901234567890 * 3", "370370367037037036703703703670"),
    ],
)
def test_exact_values(text: str, expected: str) -> None:
    assert answer(text) == Answer(expected, exact=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 / 3", Answer("0.333333333333333", exact=False, fraction="1/3")),
        ("2 / 3", Answer("0.666666666666667", exact=False, fraction="2/3")),
        ("sqrt(2)", Answer("1.4142135623731", exact=False)),
        ("floor(sqrt(2) ** 2)", Answer("2", exact=False)),
        ("sin(pi)", Answer("0", exact=False)),
        ("cos(pi)", Answer("-1", exact=False)),
        ("ln(e)", Answer("1", exact=False)),
        ("1 / 7e30", Answer("1.42857142857143e-31", exact=False, fraction=f"1/{7 * 10**30}")),
        ("1.0001 ** 9999999", Answer("1.87380847733817e+434", exact=False)),
        ("exp(-99999999)", Answer("0", exact=False)),
    ],
)
def test_rounded_values_say_so(text: str, expected: Answer) -> None:
    assert answer(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1 / 0", "divides by zero"),
        ("1 // 0", "divides by zero"),
        ("1 % (2 - 2)", "divides by zero"),
        ("sqrt(2) / 0", "divides by zero"),
        ("sqrt(2) % 0", "divides by zero"),
        ("0 ** -1", "divides by zero"),
        ("0 ** -0.5", "divides by zero"),
        ("sqrt(-1)", "no real value"),
        ("(-8) ** (1/3)", "no real value"),
        ("ln(0)", "not positive"),
        ("log(-5)", "not positive"),
        ("9 ** 9 ** 9", "too large"),
        ("1e3000 * 1e3000", "too large"),
        ("exp(999999)", "too large"),
        ("2.5!", "not an integer"),
        ("1001!", "0 to 1000"),
        ("(-1)!", "0 to 1000"),
        ("gcd(1.5, 2)", "not an integer"),
        ("sin(1e13)", "angle"),
        ("sqrt(1, 2)", "gives sqrt 2 values; it takes 1"),
        ("log(1, 2, 3)", "it takes 1 or 2"),
        ("max()", "at least 1"),
        ("squrt(4)", "did you mean sqrt?"),
        ("tau", "unknown name"),
        ("sqrt", "unknown name"),
    ],
)
def test_what_has_no_value_is_explained(text: str, fault: str) -> None:
    with pytest.raises(ExpressionError, match=fault.replace("?", r"\?")):
        answer(text)


integers = st.integers(-(10**6), 10**6)
divisors = integers.filter(bool)


def expressions() -> st.SearchStrategy[tuple[str, Fraction]]:
    """Expressions as text, in full parentheses, with their values by Python's own fractions."""
    leaves = integers.map(lambda n: (f"({n})", Fraction(n)))

    def grow(
        inner: st.SearchStrategy[tuple[str, Fraction]],
    ) -> st.SearchStrategy[tuple[str, Fraction]]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: (f"({p[0][0]} + {p[1][0]})", p[0][1] + p[1][1])),
            pairs.map(lambda p: (f"({p[0][0]} - {p[1][0]})", p[0][1] - p[1][1])),
            pairs.map(lambda p: (f"({p[0][0]} * {p[1][0]})", p[0][1] * p[1][1])),
            inner.map(lambda p: (f"(-{p[0]})", -p[1])),
            st.tuples(inner, divisors).map(lambda p: (f"({p[0][0]} / ({p[1]}))", p[0][1] / p[1])),
            st.tuples(inner, divisors).map(
                lambda p: (f"({p[0][0]} // ({p[1]}))", Fraction(p[0][1] // p[1]))
            ),
            st.tuples(inner, divisors).map(lambda p: (f"({p[0][0]} % ({p[1]}))", p[0][1] % p[1])),
            st.tuples(inner, st.integers(0, 3)).map(
                lambda p: (f"({p[0][0]} ** {p[1]})", p[0][1] ** p[1])
            ),
        )

    return st.recursive(leaves, grow, max_leaves=8).filter(lambda pair: len(pair[0]) <= 1_000)


def value_of(found: Answer) -> Fraction:
    return Fraction(found.fraction) if found.fraction else Fraction(found.text)


@given(expressions())
def test_values_are_those_of_pythons_fractions(pair: tuple[str, Fraction]) -> None:
    text, expected = pair
    found = answer(text)
    if found.exact or found.fraction:
        assert value_of(found) == expected
    else:  # the fraction is too long to be shown
        assert math.isclose(float(found.text), expected, rel_tol=1e-13)


@given(st.lists(integers, min_size=1, max_size=12), st.data())
def test_precedence_is_pythons(numbers: list[int], data: st.DataObject) -> None:
    text = str(abs(numbers[0]))
    for number in numbers[1:]:
        operator = data.draw(st.sampled_from(["+", "-", "*", "+ -", "- -", "* -"]))
        text += f" {operator} {abs(number)}"
    assert Fraction(answer(text).text) == eval(text)  # noqa: S307 - digits and signs of our own


@given(
    st.integers(-(2**40), 2**40).map(lambda n: n / 2**20),  # few enough digits to write them all
    st.sampled_from(["sin", "cos", "sqrt", "ln", "exp", "cbrt", "tan"]),
)
def test_functions_agree_with_the_mathematics_library(x: float, name: str) -> None:
    if name in {"sqrt", "ln"}:
        x = abs(x) + 1e-6
    if name == "exp":
        x /= 1e4
    reference = {"ln": math.log}.get(name) or getattr(math, name)
    found = float(answer(f"{name}({Decimal(x):f})").text)
    # tan is steep near its poles: one bit of the argument is worth many of the result
    tolerance = 1e-6 if name == "tan" else 1e-11
    assert math.isclose(found, reference(x), rel_tol=tolerance, abs_tol=1e-11)


PIECES = [*FUNCTIONS, *CONSTANTS, *"+-*/%^!(),.0123456789", "**", "//", " of ", "e9", "1e3000"]


def check_ends_soon(text: str) -> None:
    started = time.monotonic()
    try:
        found = answer(text)
    except ExpressionError:
        pass
    else:
        assert len(found.text) < 4_000
    assert time.monotonic() - started < LONGEST_S


@settings(deadline=None)
@given(st.text())
def test_any_text_ends_soon_in_an_answer_or_an_expression_error(text: str) -> None:
    check_ends_soon(text)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_anything_like_an_expression_ends_soon(text: str) -> None:
    check_ends_soon(text)


@pytest.mark.parametrize(
    "text",
    [
        "(2**9999)**(1/99)+" * 50 + "1",
        "log(2**9999,3)*" * 60 + "1",
        "tan(9)+" * 140 + "1",
        "9**3150%7**3000+" * 60 + "1",
        "+".join(f"1/{n}" for n in range(1, 170)),
        "gcd(" + ",".join(["9**3000-1"] * 90) + ")",
        "9**" * 300 + "9",
        "9" * 1_000,
        "3" + "!" * 900,
    ],
)
def test_what_is_meant_to_take_long_does_not(text: str) -> None:
    check_ends_soon(text)
