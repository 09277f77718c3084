"""What people type is read exactly or refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.cli.parameters import Length, Moment, Pair, Start, Usd, duration, full_name, timestamp
from remit.cli.wording import usd

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)


@given(st.integers(0, 2**63 - 1))
def test_money_that_was_told_is_read_back_exactly(nanos: int) -> None:
    assert Usd().convert(usd(nanos).replace(",", ""), None, None) == nanos


@pytest.mark.parametrize("text", ["", "-1", "abc", "1e400", "nan", "inf", "0.0000000001", "1,5"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Usd().convert(text, None, None)


def test_what_is_too_much_is_told_how_much_may_be() -> None:
    with pytest.raises(click.BadParameter, match="0 to 9,223,372,036 USD"):
        Usd().convert("9223372037", None, None)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", timedelta(seconds=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5h", timedelta(minutes=90)),
        ("2min", timedelta(minutes=2)),
        ("2m", timedelta(minutes=2)),
        ("7d", timedelta(days=7)),
    ],
)
def test_lengths_of_time(text: str, length: timedelta) -> None:
    assert Length().convert(text, None, None) == length


@pytest.mark.parametrize("text", ["", "-5s", "5 weeks", "s", "9" * 400 + "d"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Length().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T14:00:00Z", datetime(2026, 11, 23, 14, 0, tzinfo=UTC)),
        ("2026-11-23T16:00:00+02:00", datetime(2026, 11, 23, 14, 0, tzinfo=UTC)),
        ("24h", datetime(2026, 11, 22, 15, 0, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert Moment(lambda: NOW).convert(text, None, None) == moment


def test_a_date_means_the_zone_of_the_person() -> None:
    read = Moment().convert("2026-11-23", None, None)
    assert read == datetime(2026, 11, 23).astimezone()


@pytest.mark.parametrize("text", ["", "yesterday", "12", "2026-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Moment().convert(text, None, None)


def test_pairs_keep_further_equals_signs() -> None:
    assert Pair().convert("a=b=c", None, None) == ("a", "b=c")
    for text in ("a", "=b"):
        with pytest.raises(click.BadParameter):
            Pair().convert(text, None, None)


def test_names_may_be_short() -> None:
    assert full_name("agents", "clerk") == full_name("agents", "agents/clerk") == "agents/clerk"


def test_absent_values_stay_absent() -> None:
    assert timestamp(None) is None
    assert duration(None) is None
    moment, length = timestamp(NOW), duration(timedelta(seconds=1.5))
    assert moment is not None
    assert length is not None
    assert moment.ToJsonString() == "2026-11-23T15:00:00Z"
    assert length.ToJsonString() == "1.500s"


@pytest.mark.parametrize("text", ["2h", "120min"])
def test_a_length_to_come_counts_from_now(text: str) -> None:
    assert Start(lambda: NOW).convert(text, None, None) == NOW + timedelta(hours=2)


def test_a_start_may_be_a_moment() -> None:
    stated = datetime(2030, 1, 1, 9, tzinfo=UTC)
    assert Start(lambda: NOW).convert("2030-01-01T09:00:00Z", None, None) == stated
    assert Start(lambda: NOW).convert(stated, None, None) == stated
    with pytest.raises(click.BadParameter):
        Start(lambda: NOW).convert("tomorrow", None, None)
