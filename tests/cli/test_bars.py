"""Bars are as long as their share, and what is there can be seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.cli.bars import bar, plain_bar

AMOUNTS = st.integers(0, 2**63 - 1)


@given(AMOUNTS, AMOUNTS, st.integers(1, 40))
def test_a_bar_is_never_longer_than_its_cells_and_never_hides_money(
    amount: int, most: int, cells: int
) -> None:
    for draw in (bar, plain_bar):
        assert len(draw(amount, most, cells)) <= cells
        assert bool(draw(amount, most, cells)) == (amount > 0 and most > 0)


@given(st.integers(1, 2**63 - 1), st.integers(1, 40))
def test_the_dearest_fills_its_cells(most: int, cells: int) -> None:
    assert bar(most, most, cells) == "█" * cells
    assert plain_bar(most, most, cells) == "#" * cells


def test_eighths_are_told_apart() -> None:
    assert [bar(amount, 16, 2) for amount in range(0, 17, 5)] == ["", "▋", "█▎", "█▉"]
    assert bar(1, 10**18, 2) == "▏"
    assert plain_bar(1, 4, 8) == "##"
