"""Money is told exactly; what strangers wrote commands no terminal."""

from __future__ import annotations

from datetime import timedelta, timezone
from decimal import Decimal

import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.cli.wording import age, local_time, printable, shortened, span, usd

NANOS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.00 USD"),
        (1, "0.000000001 USD"),
        (76_800, "0.0000768 USD"),
        (1_500_000_000, "1.50 USD"),
        (12_345_000_000_000, "12,345.00 USD"),
        (-2_000_000_000, "-2.00 USD"),
    ],
)
def test_money_has_as_many_decimals_as_it_needs(nanos: int, text: str) -> None:
    assert usd(nanos) == text


@given(NANOS)
def test_money_is_never_rounded(nanos: int) -> None:
    read = Decimal(usd(nanos).removesuffix(" USD").replace(",", ""))
    assert read * 1_000_000_000 == nanos


@given(st.text())
def test_no_text_keeps_a_character_that_commands_a_terminal(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(ord(c) < 0x20 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown)
    assert "\u202e" not in shown


def test_escape_sequences_lose_their_escape() -> None:
    assert (
        printable("\x1b]0;owned\x07a")
        == "\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}a"
    )


def test_what_is_cut_says_how_much_there_was() -> None:
    assert shortened("a\nb", 10) == "a b"
    assert shortened("x" * 1_500, 10) == "xxxxxxxxxx… (1,500 characters)"


def test_times_are_told_in_the_zone_of_the_person() -> None:
    time = timestamp_pb2.Timestamp(seconds=1_795_446_000)
    assert local_time(time, timezone(timedelta(hours=2))) == "2026-11-23 17:00:00"
    assert local_time(timestamp_pb2.Timestamp()) == "-"


@pytest.mark.parametrize(
    ("length_s", "text"),
    [
        (0.418, "0.42 s"),
        (12, "12.0 s"),
        (185, "3 min 5 s"),
        (300, "5 min 0 s"),
        (7_260, "2 h 1 min"),
    ],
)
def test_lengths_of_time_are_told_for_people(length_s: float, text: str) -> None:
    assert span(length_s) == text


@pytest.mark.parametrize(
    ("length_s", "text"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_an_age_is_told_in_two_units(length_s: float, text: str) -> None:
    assert age(length_s) == text
