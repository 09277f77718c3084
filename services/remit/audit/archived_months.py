"""Which months of the log were archived and dropped, and what a reader is told of them.

A dropped month keeps its leaf hashes, so every proof works, and its leaves are in the tiles. Its
events are in no list any more: a list that would have looked at them says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg

from remit.api.audit.v1 import event_pb2
from remit.audit.archive_file import label
from remit.audit.filters import EventFilter
from remit.audit.store import MOST_AHEAD
from remit.postgres import Database

_MONTHS: Final = """
    SELECT month, first_index, last_index, events, digest, drop_time FROM archived_months
    ORDER BY month
"""
_TIMED_UUID: Final = 7


@dataclass(frozen=True)
class ArchivedMonth:
    """A month whose events left the database.

    At its ends, leaves of the months beside it may lie among its own.
    """

    month: date
    first_index: int
    last_index: int
    events: int
    digest: bytes
    drop_time: datetime

    @classmethod
    def of(cls, row: asyncpg.Record) -> ArchivedMonth:
        """Read a row of `archived_months`."""
        return cls(
            row["month"],
            row["first_index"],
            row["last_index"],
            row["events"],
            row["digest"],
            row["drop_time"],
        )

    @property
    def end(self) -> datetime:
        """When it was over."""
        return datetime.combine(next_month(self.month), datetime.min.time(), UTC)

    def message(self) -> event_pb2.ArchivedMonth:
        """What readers are told."""
        return event_pb2.ArchivedMonth(
            month=label(self.month),
            first_index=self.first_index,
            last_index=self.last_index,
            events=self.events,
        )


class ArchivedMonths:
    """Reads what was dropped."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[ArchivedMonth]:
        """Every month that was dropped, oldest first."""
        return [ArchivedMonth.of(row) for row in await self._database.fetch(_MONTHS)]

    async def missed(self, wanted: EventFilter, low: int, high: int) -> list[ArchivedMonth]:
        """The months that may have held what is wanted, with leaves from `low` and below `high`.

        Ask after events were read: a month that was dropped meanwhile is named then.
        """
        begin = _earliest(wanted)
        return [
            month
            for month in await self.all()
            if month.first_index < high and month.last_index >= low
            if begin is None or begin < month.end
        ]


def next_month(month: date) -> date:
    """The first day of the month after one."""
    return (month.replace(day=1) + timedelta(days=31)).replace(day=1)


def _earliest(wanted: EventFilter) -> datetime | None:
    """No event that is wanted was appended before; None: it may be any."""
    born = [_born(name) for name in (wanted.run, wanted.claim) if name]
    times = [time for time in (*born, wanted.start_time) if time is not None]
    return max(times) - MOST_AHEAD if times else None


def _born(name: str) -> datetime | None:
    """When a run or a claim was made, by its name: a UUIDv7 begins with its time."""
    try:
        stated = uuid.UUID(name.partition("/")[2])
    except ValueError:
        return None
    if stated.version != _TIMED_UUID:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=stated.int >> 80)


def messages(months: Iterable[ArchivedMonth]) -> list[event_pb2.ArchivedMonth]:
    """What readers are told of months."""
    return [month.message() for month in months]
