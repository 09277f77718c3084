"""Periods of a budget, by the calendar in UTC.

A hold is counted in the periods of the day on which it began, also when it is extended or settled
later: else a hold that is settled after midnight would leave one period and enter another, and
neither would add up. So a reservation pins its day, and every period follows from it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from enum import IntEnum
from typing import Final, TypeAlias

from remit.api.cost.v1 import reservation_pb2

TOTAL_START: Final = date(1970, 1, 1)
"""Where the period TOTAL begins, so that every balance has a start."""


class Period(IntEnum):
    """A span of time in which balances are kept. The numbers are the contract's, and are stored."""

    TOTAL = reservation_pb2.PERIOD_TOTAL
    DAY = reservation_pb2.PERIOD_DAY
    MONTH = reservation_pb2.PERIOD_MONTH


class RunPeriod(IntEnum):
    """The life of each run: a period of budgets, whose balance is the run's own TOTAL."""

    RUN = reservation_pb2.PERIOD_RUN


BudgetPeriod: TypeAlias = Period | RunPeriod


def budget_period(number: int) -> BudgetPeriod:
    """The period of a budget by its number. Raises ValueError for another."""
    return RunPeriod.RUN if number == RunPeriod.RUN else Period(number)


def day_of(moment: datetime) -> date:
    """The day in UTC of a moment."""
    return moment.astimezone(UTC).date()


def start_of(period: Period, day: date) -> date:
    """First day of the period that `day` lies in."""
    if period is Period.DAY:
        return day
    return day.replace(day=1) if period is Period.MONTH else TOTAL_START


def start_time_of(period: BudgetPeriod, day: date) -> datetime | None:
    """When the period that `day` lies in began, in UTC; None where no calendar says so."""
    if period is Period.DAY or period is Period.MONTH:
        return _midnight(start_of(period, day))
    return None


def renewal_of(period: BudgetPeriod, day: date) -> datetime | None:
    """When the period that `day` lies in ends, in UTC; None for TOTAL and RUN, which never do."""
    if period is Period.DAY:
        return _midnight(day + timedelta(days=1))
    if period is Period.MONTH:
        return _midnight((day.replace(day=28) + timedelta(days=4)).replace(day=1))
    return None


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
