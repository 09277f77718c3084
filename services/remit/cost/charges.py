"""Charges: what the settled effects of a day cost, by who bought what at which price.

A bill can be recomputed from them, so they name the price's rates. They are summed day by day: each
statement reads one day, however long the span is and wherever a page begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple

import asyncpg

from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.cost.sums import SUMS, as_integers, usage_message
from remit.postgres import Database

Charge = cost_report_service_pb2.Charge

MAX_EFFECTS: Final = 200_000
"""A page ends with the day on which its charges have this many, however few they are."""

_ONE_DAY: Final = timedelta(days=1)
_FOR_EVER: Final = datetime.max.replace(tzinfo=UTC)


class ChargePlace(NamedTuple):
    """What a charge is of: its place in the list."""

    day: date
    user: str
    team: str
    agent: str
    item: str
    price_version: str
    price_source: str


@dataclass(frozen=True, slots=True)
class ChargePage:
    """Charges, and whether none follows them."""

    charges: list[Charge]
    is_last: bool


@dataclass(frozen=True, slots=True)
class ChargeQuery:
    """Which charges; the end is exclusive."""

    org: str
    start: datetime | None
    end: datetime | None

    def describe(self) -> str:
        """The parameters in a form that a page token is bound to."""
        return f"charges {self.org} {self.start} {self.end}"


_FIRST_TIME: Final = """
    SELECT create_time FROM reservations
    WHERE org = $1 AND account IS NOT NULL AND state = 2
        AND create_time >= $2 AND create_time < $3
    ORDER BY create_time LIMIT 1
"""
# A day's holds began on it, so the index by time finds them. In byte order, as every place is.
_SELECT_DAY: Final = f"""
    WITH sums AS (
        SELECT day, user_name COLLATE "C" AS user_name, coalesce(team, '') COLLATE "C" AS team,
            coalesce(agent, '') COLLATE "C" AS agent, item COLLATE "C" AS item,
            price_version COLLATE "C" AS price_version, price_source COLLATE "C" AS price_source,
            coalesce(sum(posted_nanos) FILTER (WHERE used_calls IS NULL), 0)::bigint AS unmetered,
            {SUMS}
        FROM reservations
        WHERE org = $1 AND account IS NOT NULL AND state = 2
            AND create_time >= $2 AND create_time < $3
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    )
    SELECT day, user_name, team, agent, s.item, price_version, price_source, unmetered,
        {as_integers("{}")}, estimated, p.input_nanos_per_million,
        p.cached_input_nanos_per_million, p.output_nanos_per_million, p.call_nanos
    FROM sums s JOIN prices p ON p.version = price_version
    WHERE $4::date IS NULL OR (day, user_name, team, agent, s.item, price_version, price_source)
        > ($4, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text)
    ORDER BY 1, 2, 3, 4, 5, 6, 7 LIMIT $11
"""  # noqa: S608 - constants of this module


async def select_charges(
    database: Database, query: ChargeQuery, after: ChargePlace | None, size: int
) -> ChargePage:
    """Up to `size` charges after a place, in order."""
    end = query.end or _FOR_EVER
    begin = query.start or _midnight(date(1970, 1, 1))
    if after is not None:
        begin = max(begin, _midnight(after.day))
    charges: list[Charge] = []
    while first := await _first_time(database, query.org, begin, end):
        if len(charges) >= size or sum(each.effects for each in charges) >= MAX_EFFECTS:
            return ChargePage(charges[:size], is_last=False)
        day = first.astimezone(UTC).date()
        begin = max(begin, _midnight(day))
        day_end = min(end, _midnight(day + _ONE_DAY))
        records = await database.fetch(
            _SELECT_DAY,
            query.org,
            begin,
            day_end,
            *(after or (None,) * len(ChargePlace._fields)),
            size + 1 - len(charges),
        )
        charges += map(_charge, records)
        begin = day_end
    return ChargePage(charges[:size], is_last=len(charges) <= size)


def place_of(charge: Charge) -> Sequence[str]:
    """The place of a charge as texts, in the order of ChargePlace."""
    return (
        charge.day,
        charge.user,
        charge.team,
        charge.agent,
        charge.item,
        charge.price.version,
        charge.price_source,
    )


async def _first_time(
    database: Database, org: str, begin: datetime, end: datetime
) -> datetime | None:
    found: datetime | None = await database.fetchval(_FIRST_TIME, org, begin, end)
    return found


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _charge(record: asyncpg.Record) -> Charge:
    return Charge(
        day=record["day"].isoformat(),
        user=record["user_name"],
        team=record["team"],
        agent=record["agent"],
        item=record["item"],
        price=reservation_pb2.Price(
            version=record["price_version"],
            input_nanos_per_million=record["input_nanos_per_million"],
            cached_input_nanos_per_million=record["cached_input_nanos_per_million"],
            output_nanos_per_million=record["output_nanos_per_million"],
            call_nanos=record["call_nanos"],
        ),
        price_source=record["price_source"],
        posted_nanos=record["posted"],
        unmetered_nanos=record["unmetered"],
        overrun_nanos=record["overrun"],
        effects=record["effects"],
        usage=usage_message(record),
    )
