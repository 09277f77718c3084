"""The calendar of budgets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.cost.periods import TOTAL_START, Period, day_of, renewal_of, start_of

DAYS = st.dates(min_value=date(1970, 1, 1), max_value=date(9998, 12, 1))


@pytest.mark.parametrize(
    ("period", "day", "start", "renewal"),
    [
        (Period.DAY, date(2026, 11, 23), date(2026, 11, 23), datetime(2026, 11, 24, tzinfo=UTC)),
        (Period.MONTH, date(2026, 11, 23), date(2026, 11, 1), datetime(2026, 12, 1, tzinfo=UTC)),
        (Period.MONTH, date(2026, 12, 31), date(2026, 12, 1), datetime(2027, 1, 1, tzinfo=UTC)),
        (Period.MONTH, date(2028, 2, 29), date(2028, 2, 1), datetime(2028, 3, 1, tzinfo=UTC)),
        (Period.TOTAL, date(2026, 11, 23), TOTAL_START, None),
    ],
)
def test_a_period_starts_and_renews_by_the_calendar(
    period: Period, day: date, start: date, renewal: datetime | None
) -> None:
    assert start_of(period, day) == start
    assert renewal_of(period, day) == renewal


def test_the_day_is_that_of_utc() -> None:
    just_after_midnight_in_berlin = datetime(
        2026, 11, 24, 0, 30, tzinfo=timezone(timedelta(hours=1))
    )

    assert day_of(just_after_midnight_in_berlin) == date(2026, 11, 23)


@given(DAYS, st.sampled_from([Period.DAY, Period.MONTH]))
def test_a_period_holds_its_day_and_the_next_begins_where_it_ends(
    day: date, period: Period
) -> None:
    renewal = renewal_of(period, day)
    assert renewal is not None

    assert start_of(period, day) <= day < renewal.date()
    assert start_of(period, renewal.date()) == renewal.date()
