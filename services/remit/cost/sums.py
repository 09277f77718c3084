"""What reports sum over reservations: in SQL, and as the rows of the contract.

An effect counts at the time at which its hold began, as its budgets count it; one that was released
counts nowhere. Money cannot be more than an int64, for its balances are none; counts can, since who
reports them is not trusted, and so they stop at the most instead of failing the report.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.usage.v1 import usage_pb2
from remit.pricing import INT64_MAX

MONEY: Final = ("posted", "pending", "overrun", "effects", "unpriced")
COUNTS: Final = ("input_tokens", "cached_input_tokens", "output_tokens", "calls")

# A hold that was posted whole has no counts; its zeros are marked as estimated.
SUMS: Final = """
    sum(posted_nanos) AS posted,
    coalesce(sum(hold_nanos) FILTER (WHERE state = 1), 0) AS pending,
    sum(overrun_nanos) AS overrun,
    count(*) FILTER (WHERE state = 2) AS effects,
    count(*) FILTER (WHERE price_source = 'unlisted') AS unpriced,
    coalesce(sum(used_input_tokens), 0) AS input_tokens,
    coalesce(sum(used_cached_input_tokens), 0) AS cached_input_tokens,
    coalesce(sum(used_output_tokens), 0) AS output_tokens,
    coalesce(sum(used_calls), 0) AS calls,
    coalesce(bool_or(coalesce(used_estimated, true)) FILTER (WHERE state = 2), false) AS estimated
"""
"""The sums of a group of reservations, none of them released."""


def as_integers(expression: str) -> str:
    """The columns of SUMS as 64-bit integers; `expression` has `{}` for each of their names."""
    money = [f"{expression.format(name)}::bigint AS {name}" for name in MONEY]
    counts = [f"least({expression.format(name)}, {INT64_MAX})::bigint AS {name}" for name in COUNTS]
    return ", ".join(money + counts)


def spend_row(key: str, record: asyncpg.Record) -> cost_report_service_pb2.SpendRow:
    """The row of a group, from a record with the columns of SUMS."""
    return cost_report_service_pb2.SpendRow(
        key=key,
        posted_nanos=record["posted"],
        pending_nanos=record["pending"],
        overrun_nanos=record["overrun"],
        effects=record["effects"],
        usage=usage_message(record),
        unpriced_effects=record["unpriced"],
    )


def usage_message(record: asyncpg.Record) -> usage_pb2.Usage:
    """The counts of a group."""
    counts: dict[str, Any] = {name: record[name] for name in COUNTS}
    return usage_pb2.Usage(**counts, estimated=record["estimated"])
