"""What was spent, summed from the reservations of an org by one dimension.

An effect counts at the time at which its hold began, as its budgets count it; one that was released
counts nowhere. Rows and total come from one statement, so the total is that of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.usage.v1 import usage_pb2
from remit.postgres import Database

Dimension = cost_report_service_pb2.ListSpendRequest.Dimension

SpendPlace = tuple[int, str]
"""Posted nano-USD and key of the last row of a page."""

_COLUMNS: Final = {
    cost_report_service_pb2.ListSpendRequest.DIMENSION_UNSPECIFIED: "user_name",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_USER: "user_name",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_TEAM: "team",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_AGENT: "agent",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_ITEM: "item",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_RUN: "run",
    cost_report_service_pb2.ListSpendRequest.DIMENSION_DAY: "to_char(day, 'YYYY-MM-DD')",
}
_SUMS: Final = (
    "posted",
    "pending",
    "overrun",
    "effects",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "calls",
)
# A hold that was posted whole has no counts; its zeros are marked as estimated.
_QUERY: Final = """
    WITH groups AS (
        SELECT coalesce({column}, '(none)') COLLATE "C" AS key,
            sum(posted_nanos) AS posted,
            coalesce(sum(hold_nanos) FILTER (WHERE state = 1), 0) AS pending,
            sum(overrun_nanos) AS overrun,
            count(*) FILTER (WHERE state = 2) AS effects,
            coalesce(sum(used_input_tokens), 0) AS input_tokens,
            coalesce(sum(used_cached_input_tokens), 0) AS cached_input_tokens,
            coalesce(sum(used_output_tokens), 0) AS output_tokens,
            coalesce(sum(used_calls), 0) AS calls,
            coalesce(bool_or(coalesce(used_estimated, true)) FILTER (WHERE state = 2), false)
                AS estimated
        FROM reservations
        WHERE org = $1 AND account IS NOT NULL AND state <> 3
            AND ($2::timestamptz IS NULL OR create_time >= $2)
            AND ($3::timestamptz IS NULL OR create_time < $3)
        GROUP BY 1
    ), page AS (
        SELECT * FROM groups
        WHERE $4::bigint IS NULL OR posted < $4 OR (posted = $4 AND key > $5 COLLATE "C")
        ORDER BY posted DESC, key LIMIT $6
    )
    SELECT true AS is_total, '(total)' AS key, {totals}, coalesce(bool_or(estimated), false)
        AS estimated FROM groups
    UNION ALL
    SELECT false, key, {rows}, estimated FROM page
    ORDER BY is_total DESC, posted DESC, key
"""


@dataclass(frozen=True, slots=True)
class SpendQuery:
    """Which spending, grouped how; the end is exclusive."""

    org: str
    group_by: Dimension.ValueType
    start: datetime | None
    end: datetime | None

    def describe(self) -> str:
        """The parameters in a form that a page token is bound to."""
        return f"{self.org} {self.group_by} {self.start} {self.end}"


@dataclass(frozen=True, slots=True)
class SpendPage:
    """Rows of a page and the sum over all pages."""

    rows: list[cost_report_service_pb2.SpendRow]
    total: cost_report_service_pb2.SpendRow


async def select_spend(
    database: Database, query: SpendQuery, after: SpendPlace | None, size: int
) -> SpendPage:
    """Up to `size` rows, the dearest first, after a place."""
    posted, key = after or (None, "")
    records = await database.fetch(
        _statement(query.group_by), query.org, query.start, query.end, posted, key, size
    )
    rows = [_row(record) for record in records]
    return SpendPage(rows[1:], rows[0])


def _statement(group_by: Dimension.ValueType) -> str:
    return _QUERY.format(
        column=_COLUMNS[group_by],
        totals=", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in _SUMS),
        rows=", ".join(f"{name}::bigint" for name in _SUMS),
    )


def _row(record: asyncpg.Record) -> cost_report_service_pb2.SpendRow:
    return cost_report_service_pb2.SpendRow(
        key=record["key"],
        posted_nanos=record["posted"],
        pending_nanos=record["pending"],
        overrun_nanos=record["overrun"],
        effects=record["effects"],
        usage=usage_pb2.Usage(
            input_tokens=record["input_tokens"],
            cached_input_tokens=record["cached_input_tokens"],
            output_tokens=record["output_tokens"],
            calls=record["calls"],
            estimated=record["estimated"],
        ),
    )
