"""What was spent, summed from the reservations of an org by one dimension.

Rows and total come from one statement, so the total is that of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from remit.api.cost.v1 import cost_report_service_pb2
from remit.cost.sums import SUMS, as_integers, spend_row
from remit.postgres import Database

Dimension = cost_report_service_pb2.ListSpendRequest.Dimension

SpendPlace = tuple[int, str]
"""Posted nano-USD and key of the last row of a page."""


@dataclass(frozen=True, slots=True)
class _Grouping:
    """How a dimension groups: its key, which reservations have one, and whether it is a time."""

    key: str
    condition: str = "true"
    is_time: bool = False


_USER: Final = _Grouping("user_name")
_GROUPINGS: Final = {
    cost_report_service_pb2.ListSpendRequest.DIMENSION_UNSPECIFIED: _USER,
    cost_report_service_pb2.ListSpendRequest.DIMENSION_USER: _USER,
    cost_report_service_pb2.ListSpendRequest.DIMENSION_TEAM: _Grouping("team"),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_AGENT: _Grouping("agent"),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_ITEM: _Grouping("item"),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_RUN: _Grouping("run"),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_DAY: _Grouping(
        "to_char(day, 'YYYY-MM-DD')", is_time=True
    ),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_MODEL: _Grouping(
        "item", "starts_with(item, 'models/')"
    ),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_TOOL: _Grouping(
        "item", "starts_with(item, 'tools/')"
    ),
    cost_report_service_pb2.ListSpendRequest.DIMENSION_MONTH: _Grouping(
        "to_char(day, 'YYYY-MM')", is_time=True
    ),
}
_QUERY: Final = """
    WITH groups AS (
        SELECT coalesce({key}, '(none)') COLLATE "C" AS key, {sums}
        FROM reservations
        WHERE org = $1 AND account IS NOT NULL AND state <> 3 AND {condition}
            AND ($2::timestamptz IS NULL OR create_time >= $2)
            AND ($3::timestamptz IS NULL OR create_time < $3)
        GROUP BY 1
    ), page AS (
        SELECT * FROM groups WHERE $4::bigint IS NULL OR {after} ORDER BY {order} LIMIT $6
    )
    SELECT true AS is_total, '(total)' AS key, {totals}, coalesce(bool_or(estimated), false)
        AS estimated FROM groups
    UNION ALL
    SELECT false, key, {rows}, estimated FROM page
    ORDER BY is_total DESC, {order}
"""
# What comes after the place of $4 and $5, and the order. Of times the latest is first, so
# that a page that is not the whole has what is new.
_DEAREST: Final = (
    'posted < $4 OR (posted = $4 AND key > $5::text COLLATE "C")',
    "posted DESC, key",
)
_LATEST: Final = ('key < $5::text COLLATE "C"', "key DESC")


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
    """Up to `size` rows after a place: the dearest first, of times the latest first."""
    posted, key = after or (None, "")
    records = await database.fetch(
        _statement(query.group_by), query.org, query.start, query.end, posted, key, size
    )
    rows = [spend_row(record["key"], record) for record in records]
    return SpendPage(rows[1:], rows[0])


def _statement(group_by: Dimension.ValueType) -> str:
    grouping = _GROUPINGS[group_by]
    after, order = _LATEST if grouping.is_time else _DEAREST
    return _QUERY.format(
        key=grouping.key,
        condition=grouping.condition,
        sums=SUMS,
        after=f"({after})",
        order=order,
        totals=as_integers("coalesce(sum({}), 0)"),
        rows=as_integers("{}"),
    )
