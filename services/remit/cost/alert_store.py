"""Alerts in PostgreSQL: what was told about a budget, listed, and the outbox to the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.columns import arrays
from remit.cost import rows
from remit.cost.accounts import BalanceKey
from remit.cost.alerts import Alert, Cause, Told
from remit.cost.messages import timestamp
from remit.cost.periods import Period, RunPeriod, budget_period, start_time_of
from remit.cost.terms import Enforcement, Terms
from remit.postgres import Connection, Database

_COLUMNS: Final = ", ".join(["number", *(column.name for column in rows.ALERT_COLUMNS)])


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert and its number, which grows with time within an org."""

    number: int
    alert: Alert

    def message(self) -> cost_report_service_pb2.BudgetAlert:
        """The alert as its contract states it."""
        alert, terms = self.alert, self.alert.terms
        start = start_time_of(alert.period, alert.key.start)
        return cost_report_service_pb2.BudgetAlert(
            account=alert.account,
            period=reservation_pb2.Period.ValueType(alert.period),
            start_time=timestamp(start) if start else None,
            percent=alert.percent,
            limit_nanos=terms.limit_nanos,
            posted_nanos=alert.posted_nanos,
            enforcement=reservation_pb2.Enforcement.ValueType(terms.enforcement),
            is_default=terms.is_default,
            fire_time=timestamp(alert.fire_time),
            subject=alert.cause.subject,
            run=alert.cause.run,
            claim=alert.cause.claim,
            run_account=alert.run_account,
        )


async def insert_alerts(connection: Connection, alerts: Sequence[Alert]) -> None:
    """Stores alerts in the transaction that makes them due."""
    if alerts:
        await connection.execute(rows.NEW_ALERTS.sql(), *arrays(rows.ALERT_COLUMNS, alerts))


async def select_told(connection: Connection, keys: Sequence[BalanceKey]) -> dict[Told, int]:
    """The highest limit of which each share was told, of these balances."""
    records = await connection.fetch(
        "SELECT account, period, start, is_default, percent, max(limit_nanos) AS limit_nanos"
        " FROM budget_alerts WHERE (account, period, start) IN"
        " (SELECT * FROM unnest($1::text[], $2::smallint[], $3::date[]))"
        " GROUP BY account, period, start, is_default, percent",
        [key.account for key in keys],
        [int(key.period) for key in keys],
        [key.start for key in keys],
    )
    return {
        Told(_key_of(record), record["is_default"], record["percent"]): record["limit_nanos"]
        for record in records
    }


async def select_alerts(
    database: Database, org: str, account: str, before: int | None, size: int
) -> list[StoredAlert]:
    """Up to `size` alerts of an org, or of one account, the latest first."""
    records = await database.fetch(
        f"SELECT {_COLUMNS} FROM budget_alerts WHERE org = $1"  # noqa: S608 - constants of this module
        " AND ($2 = '' OR account = $2) AND ($3::bigint IS NULL OR number < $3)"
        " ORDER BY number DESC LIMIT $4",
        org,
        account,
        before,
        size,
    )
    return [_stored(record) for record in records]


async def select_unrecorded(database: Database, after: int, size: int) -> list[StoredAlert]:
    """Up to `size` alerts that the audit log has not taken yet, the oldest first."""
    records = await database.fetch(
        f"SELECT {_COLUMNS} FROM budget_alerts WHERE record_time IS NULL AND number > $1"  # noqa: S608 - constants of this module
        " ORDER BY number LIMIT $2",
        after,
        size,
    )
    return [_stored(record) for record in records]


async def note_recorded(database: Database, numbers: Sequence[int]) -> set[int]:
    """Notes that the log has these; those that no other replica had noted before."""
    records = await database.fetch(
        "UPDATE budget_alerts SET record_time = now()"
        " WHERE number = ANY ($1::bigint[]) AND record_time IS NULL RETURNING number",
        numbers,
    )
    return {record["number"] for record in records}


def _key_of(record: asyncpg.Record) -> BalanceKey:
    return BalanceKey(record["account"], Period(record["period"]), record["start"])


def _stored(record: asyncpg.Record) -> StoredAlert:
    terms = Terms(
        limit_nanos=record["limit_nanos"],
        enforcement=Enforcement(record["enforcement"]),
        alert_percents=(record["percent"],),
        is_default=record["is_default"],
    )
    cause = Cause(record["subject"], record["run"] or "", record["claim"] or "")
    period = budget_period(record["period"])
    of_run = BalanceKey(record["run_account"], Period.TOTAL, record["start"])
    alert = Alert(
        account=record["account"],
        period=period,
        key=of_run if period is RunPeriod.RUN else _key_of(record),
        terms=terms,
        percent=record["percent"],
        posted_nanos=record["posted_nanos"],
        cause=cause,
        fire_time=record["fire_time"],
    )
    return StoredAlert(record["number"], alert)
