"""The calculator's parser: what it accepts, and where it says a fault lies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.tools.expression import MAX_CHARS, MAX_DEPTH, ExpressionError, parse


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "ends where a number was expected"),
        ("1 +", "ends where a number was expected"),
        ("(1", r"needs '\)' at position 3"),
        ("1)", "from position 2 on"),
        ("1 2", "from position 3 on"),
        ("1, 2", "from position 2 on"),
        ("2(3)", "from position 2 on"),
        ("* 2", "from position 1 on"),
        ("of 2", "from position 1 on"),
        ("max(1,)", "from position 7 on"),
        ("1 & 2", "position 3"),
        ("__import__('os')", "position 1"),
        ("a.b", "position 2"),
        ("2 ** ** 2", "from position 6 on"),
        ("1e9999", "out of range at position 1"),
        ("\u0661 + 1", "position 1"),  # a digit, but not one of ours
        ("x" * (MAX_CHARS + 1), f"at most {MAX_CHARS} characters"),
        ("(" * (MAX_DEPTH + 1), "nested deeper"),
        ("-" * 900 + "1", "nested deeper"),
        ("2**" * 300 + "1", "nested deeper"),
    ],
)
def test_faults_are_located(text: str, fault: str) -> None:
    with pytest.raises(ExpressionError, match=fault):
        parse(text)


def test_parentheses_up_to_the_bound_are_read() -> None:
    depth = MAX_DEPTH - 1
    assert len(parse("(" * depth + "1" + ")" * depth)) == 1


def test_a_long_chain_needs_no_depth() -> None:
    assert len(parse("+".join(["1"] * 500))) == 999


@given(st.text(alphabet="0123456789+-*/%^!(), .eofsqrtpi", max_size=200))
def test_every_program_leaves_one_value(text: str) -> None:
    try:
        program = parse(text)
    except ExpressionError:
        return
    height = 0
    for step in program:
        height += 1 - step.count
        assert height >= 1
    assert height == 1


@given(st.text(min_size=1, max_size=50))
def test_an_error_repeats_nothing_of_the_text(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(f"1 + 'hunter2' {text}")
    assert "hunter2" not in str(caught.value)
