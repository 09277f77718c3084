"""CSV that a loader reads back, with exact amounts."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.cli.csv_lines import plain_usd, write_csv


def test_what_is_written_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["a", "b,c", 'say "x"', ""], ["", "-1", "two\nlines", "é"]]

    write_csv(rows)

    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == rows


@given(st.integers(-(2**63), 2**63 - 1))
def test_amounts_are_exact(nanos: int) -> None:
    assert Decimal(plain_usd(nanos)) * 10**9 == nanos


def test_amounts_are_plain() -> None:
    assert plain_usd(-391_000) == "-0.000391000"
    assert plain_usd(12_345 * 10**9) == "12345.000000000"
