"""Arithmetic in symbols, in words and in both; every formula is checked by working it out."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.inference.rules.arithmetic import formulas_in
from remit.inference.rules.formula import Binary, Formula, Negative, Number, written


def value_of(formula: Formula) -> Fraction:
    match formula:
        case Number(value):
            return Fraction(value)
        case Negative(operand):
            return -value_of(operand)
        case Binary(operator, left, right):
            a, b = value_of(left), value_of(right)
            operations = {"+": a + b, "-": a - b, "*": a * b}
            if operator in operations:
                return operations[operator]
            if operator == "/":
                return a / b
            return a % b if operator == "%" else Fraction(a**b)


def texts(sentence: str) -> list[str]:
    return [found.text for found in formulas_in(sentence)]


SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: E501, SIM905
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def in_words(number: int) -> str:
    """An independent way of writing numbers out, with the British "and"."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return TENS[number // 10] + (f"-{SMALL[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{SMALL[number // 100]} hundred{rest}"
    for scale, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand")):
        if number >= scale:
            high, low = divmod(number, scale)
            joint = " and " if 0 < low < 100 else " "
            return f"{in_words(high)} {name}" + (f"{joint}{in_words(low)}" if low else "")
    raise AssertionError(number)


def digits(number: int) -> str:
    return str(number)


def grouped(number: int) -> str:
    return f"{number:,}"


naturals = st.integers(0, 10**9)
spellings = st.sampled_from([digits, grouped, in_words])
BINARY = {
    "+": ["{a} + {b}", "{a} plus {b}", "add {a} to {b}", "the sum of {a} and {b}", "{a}+{b}"],
    "-": [
        "{a} - {b}",
        "{a} minus {b}",
        "subtract {b} from {a}",
        "the difference between {a} and {b}",
        "take {b} away from {a}",
    ],
    "*": [
        "{a} * {b}",
        "{a} times {b}",
        "{a} multiplied by {b}",
        "multiply {a} by {b}",
        "the product of {a} and {b}",
        "{a} × {b}",  # noqa: RUF001
    ],
    "/": ["{a} / {b}", "{a} divided by {b}", "divide {a} by {b}", "{a} ÷ {b}"],
}
QUESTIONS = [
    "What is {}?",
    "what's {}",
    "How much is {}?",
    "Please calculate {}.",
    "Could you tell me what {} is?",
    "compute {}",
    "Work out {} for me",
    "{} = ?",
]


@given(
    st.sampled_from([(op, phrase) for op, phrases in BINARY.items() for phrase in phrases]),
    st.sampled_from(QUESTIONS),
    naturals,
    naturals,
    spellings,
    spellings,
)
def test_a_binary_operation_is_understood_in_every_phrasing(
    phrasing: tuple[str, str], question: str, a: int, b: int, spell_a: object, spell_b: object
) -> None:
    operator, phrase = phrasing
    b = b or 7
    if " and " in phrase:
        spell_a = digits  # in words it is ambiguous: "six hundred and twenty thousand and five"
    sentence = question.format(phrase.format(a=spell_a(a), b=spell_b(b)))  # type: ignore[operator]
    found = formulas_in(sentence)
    assert len(found) == 1, sentence
    expected = value_of(Binary(operator, Number(Decimal(a)), Number(Decimal(b))))  # type: ignore[arg-type]
    assert value_of(found[0].formula) == expected, (sentence, found[0].text)


@given(naturals, st.one_of(st.just(digits), st.just(in_words)))
def test_numerals_are_read_whole(number: int, spell: object) -> None:
    assert texts(f"what is {spell(number)} plus 1?") == [f"{number} + 1"]  # type: ignore[operator]


formulas = st.recursive(
    st.decimals(0, 10**6, places=2, allow_nan=False).map(lambda d: Number(abs(d))),
    lambda inner: st.one_of(
        inner.map(Negative),
        st.builds(Binary, st.sampled_from(["+", "-", "*", "/", "%"]), inner, inner),
    ),
    max_leaves=12,
)


@given(formulas)
def test_what_is_written_is_read_as_the_same_formula(formula: Formula) -> None:
    found = formulas_in(f"What is {written(formula)}?")
    if isinstance(formula, Number | Negative) and not found:
        return  # a bare number asks for nothing
    assert [f.text for f in found] == [written(formula)]


@given(st.text(max_size=400))
def test_no_text_breaks_it(text: str) -> None:
    for found in formulas_in(text):
        assert 0 <= found.start < found.end <= len(text)


@given(
    st.lists(
        st.sampled_from(
            [
                "add",
                "sum",
                "of",
                "the",
                "and",
                ",",
                "to",
                "(",
                ")",
                "3",
                "4.5",
                "seven",
                "%",
                "percent",
                "minus",
                "plus",
                "-",
                "*",
                "/",
                "double",
                "it",
                "then",
                "by",
                "divided",
                "increase",
                "half",
                "point",
                "hundred",
                "thousand",
                "remainder",
                "when",
                "is",
                "=",
                "?",
                "x",
                "√",
            ]
        ),
        max_size=40,
    )
)
def test_no_heap_of_arithmetic_words_breaks_it(parts: list[str]) -> None:
    for found in formulas_in(" ".join(parts)):
        assert found.text


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("how much is twelve percent of 80", "12 * 80 / 100"),
        ("17% of 80", "17 * 80 / 100"),
        ("12% off 80", "80 * (100 - 12) / 100"),
        ("increase 80 by 12 percent", "80 * (100 + 12) / 100"),
        ("80 reduced by 5%", "80 * (100 - 5) / 100"),
        ("what is 17 % 5?", "17 % 5"),
        ("what is the remainder when 17 is divided by 5?", "17 % 5"),
        ("add one hundred and five and two", "105 + 2"),
        ("add one hundred and five", "100 + 5"),
        ("sum of 3, 4, and 5", "3 + 4 + 5"),
        ("what is the average of 1, 2 and 6?", "(1 + 2 + 6) / 3"),
        ("2 to the power of ten", "2 ** 10"),
        ("the sum of two thousand three hundred and seven", "2300 + 7"),
        ("difference between one million and two thousand and five", "1000000 - 2005"),
        ("the product of one hundred and five and two hundred and six", "105 * 206"),
        ("the sum of two thousand and five hundred", "2000 + 500"),
        ("square root of 16", "16 ** 0.5"),
        ("three quarters of 80", "3 * 80 / 4"),
        ("what is half of 1,000?", "1000 / 2"),
        ("5 squared plus 2", "5 ** 2 + 2"),
        ("subtract 5 from 9 then double it", "2 * (9 - 5)"),
        ("multiply 12 by 8 and add 5", "12 * 8 + 5"),
        ("what is minus three times four?", "-3 * 4"),
        ("2.5 million divided by four", "2500000 / 4"),
        ("How many is three dozen times 2?", "36 * 2"),
        ("What do I get for $5 plus $7?", "5 + 7"),
        ("What is 3 * 4 - thanks!", "3 * 4"),
    ],
)
def test_phrasings_with_a_meaning_of_their_own(sentence: str, expected: str) -> None:
    assert texts(sentence) == [expected]


def test_several_formulas_are_several() -> None:
    assert texts("What is 2+2 and 3+3?") == ["2 + 2", "3 + 3"]


@pytest.mark.parametrize(
    "sentence",
    [
        "hello",
        "I work 24/7",
        "the shop is open from 3 - 4 pm",
        "the meeting on 2026-11-23",
        "call 1.2.3.4",
        "what is 17?",
        "What is 17 * 23 * banana?",
        "3 x + 4 = 10",
        "solve x + 3 * 4",
        "what is sin(3+4)?",
        "what is 3 + 4 = 7",
        "(1+2",
        "what is 5 km plus 3 miles",
    ],
)
def test_what_is_no_arithmetic_or_only_half_understood_is_left_alone(sentence: str) -> None:
    assert texts(sentence) == []
