"""Budgets in PostgreSQL: changed under the lock of the org's ledger, listed with what is spent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final

from google.protobuf.message import Message

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cost import rows
from remit.cost.accounts import BalanceKey, balance_key
from remit.cost.admission import DefaultBudget
from remit.cost.alert_store import insert_alerts, select_told
from remit.cost.alerts import Cause, alerts_of_change
from remit.cost.books import Balance
from remit.cost.ledger import begin_time
from remit.cost.messages import CURRENCY, timestamp
from remit.cost.periods import BudgetPeriod, RunPeriod, budget_period, day_of, renewal_of
from remit.cost.store import lock_ledgers, select_balances
from remit.cost.terms import Terms, terms_of_account
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.postgres import Connection, Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

BudgetPlace = tuple[str, int]
"""Account and period of the last budget of a page."""
_EMPTY: Final = Balance()
Row = tuple[str, BudgetPeriod, Terms]


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget's terms, and what stands against them in its current period."""

    account: str
    period: BudgetPeriod
    terms: Terms
    balance: Balance
    day: date
    """Today, which chooses the current period."""

    @property
    def key(self) -> BalanceKey | None:
        """The balance of its current period; None for RUN, which has one for each run."""
        return _key(self.account, self.period, self.day)

    def message(self) -> reservation_pb2.Budget:
        """The budget as its contract states it."""
        terms, balance = self.terms, self.balance
        renewal = renewal_of(self.period, self.day)
        return reservation_pb2.Budget(
            account=self.account,
            period=reservation_pb2.Period.ValueType(self.period),
            limit_nanos=terms.limit_nanos,
            currency=CURRENCY,
            pending_nanos=balance.pending_nanos,
            posted_nanos=balance.posted_nanos,
            is_default=terms.is_default,
            renew_time=timestamp(renewal) if renewal else None,
            enforcement=reservation_pb2.Enforcement.ValueType(terms.enforcement),
            alert_percents=terms.alert_percents,
            reached_percents=terms.reached(balance.posted_nanos),
            over_nanos=max(0, balance.total_nanos - terms.limit_nanos),
        )


def detail_of(account: str, period: BudgetPeriod, terms: Terms | None = None) -> str:
    """What the audit log says of a change: JSON, with the terms where they are known."""
    said: dict[str, object] = {"account": account, "period": period.name}
    if terms is not None:
        said |= {
            "limit_nanos": terms.limit_nanos,
            "enforcement": terms.enforcement.name,
            "alert_percents": terms.alert_percents,
        }
    return json.dumps(said, sort_keys=True)


class BudgetStore:
    """Sets, deletes and lists budgets.

    The ledger's lock orders every change with every admission: a hold is admitted under the old
    limit or under the new one, never under both. A limit that is reached already when it comes to
    apply is told of in the same transaction.
    """

    def __init__(self, database: Database, default: DefaultBudget, clock: Clock) -> None:
        self._database = database
        self._default = default
        self._clock = clock

    @property
    def default_percents(self) -> tuple[int, ...]:
        """At which shares a budget tells that says nothing else."""
        return self._default.alert_percents

    async def set(
        self, request: AdminRequest, account: str, period: BudgetPeriod, terms: Terms
    ) -> AdminChange:
        """Sets a budget once and remembers the answer. Raises KEY_REUSED."""
        async with self._database.transaction() as connection:
            now = await self._locked(connection, request.org)
            known = await known_change(connection, request)
            if known is not None:
                return known
            await _upsert(connection, request.org, (account, period, terms), now)
            applying = await self._applying(connection, request, account, now)
            budget = next(each for each in applying if _is_own(each, period))
            response: Message = cost_report_service_pb2.SetBudgetResponse(budget=budget.message())
            return await remember(connection, request, response.SerializeToString())

    async def delete(
        self, request: AdminRequest, account: str, period: BudgetPeriod
    ) -> AdminChange:
        """Deletes a budget once and remembers the answer. Raises KEY_REUSED, BUDGET_NOT_FOUND."""
        async with self._database.transaction() as connection:
            now = await self._locked(connection, request.org)
            known = await known_change(connection, request)
            if known is not None:
                return known
            record = await connection.fetchrow(
                "DELETE FROM budgets WHERE account = $1 AND period = $2"
                " RETURNING limit_nanos, enforcement, alert_percents",
                account,
                int(period),
            )
            if record is None:
                raise _not_found(account, period)
            terms = rows.terms_of(record)
            gone = await self._with_balances(connection, [(account, period, terms)], day_of(now))
            applying = await self._applying(connection, request, account, now)
            response: Message = cost_report_service_pb2.DeleteBudgetResponse(
                budget=gone[0].message(), remaining=[budget.message() for budget in applying]
            )
            # The log keeps what the budget was; that two requests are the same is in their digest.
            told = replace(request, detail=detail_of(account, period, terms))
            return await remember(connection, told, response.SerializeToString())

    async def page(self, org: str, after: BudgetPlace | None, size: int) -> list[Budget]:
        """Up to `size` budgets of an org by account and period, its default among them."""
        day = day_of(self._clock.now())
        async with self._database.transaction() as connection:
            found = await _select(connection, org, after, size)
            if after is None:
                # An org's own account sorts before all accounts under it.
                own = {org: {period: terms for _, period, terms in await _of(connection, org)}}
                of_org = terms_of_account(org, own, self._default)
                default = [(org, period, terms) for period, terms in of_org if terms.is_default]
                found = [*default, *found][:size]
            return await self._with_balances(connection, found, day)

    async def _locked(self, connection: Connection, org: str) -> datetime:
        """Locks an org's ledger; the time of the change, in the period that holds begin in now."""
        latest = await lock_ledgers(connection, [org])
        return begin_time(self._clock.now(), latest[org])

    async def _applying(
        self, connection: Connection, request: AdminRequest, account: str, now: datetime
    ) -> list[Budget]:
        """The budgets that an account has after a change; tells of what they have reached."""
        own = {account: {period: terms for _, period, terms in await _of(connection, account)}}
        found = [
            (account, period, terms)
            for period, terms in terms_of_account(account, own, self._default)
        ]
        budgets = await self._with_balances(connection, found, day_of(now))
        applying = [(b.key, b.terms, b.balance) for b in budgets if b.key is not None]
        told = await select_told(connection, [key for key, _, _ in applying])
        due = alerts_of_change(applying, told, Cause(request.subject), now)
        await insert_alerts(connection, list(due))
        return budgets

    async def _with_balances(
        self, connection: Connection, found: Sequence[Row], day: date
    ) -> list[Budget]:
        keys = [_key(account, period, day) for account, period, _ in found]
        balances = await select_balances(connection, [key for key in keys if key is not None])
        return [
            Budget(account, period, terms, balances.get(key, _EMPTY) if key else _EMPTY, day)
            for (account, period, terms), key in zip(found, keys, strict=True)
        ]


def _key(account: str, period: BudgetPeriod, day: date) -> BalanceKey | None:
    return None if period is RunPeriod.RUN else balance_key(account, period, day)


def _is_own(budget: Budget, period: BudgetPeriod) -> bool:
    return budget.period is period and not budget.terms.is_default


async def _upsert(connection: Connection, org: str, row: Row, update_time: datetime) -> None:
    account, period, terms = row
    await connection.execute(
        "INSERT INTO budgets"
        " (account, period, org, limit_nanos, enforcement, alert_percents, update_time)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (account, period) DO UPDATE"
        " SET limit_nanos = EXCLUDED.limit_nanos, enforcement = EXCLUDED.enforcement,"
        " alert_percents = EXCLUDED.alert_percents, update_time = EXCLUDED.update_time",
        account,
        int(period),
        org,
        terms.limit_nanos,
        int(terms.enforcement),
        terms.alert_percents,
        update_time,
    )


async def _select(
    connection: Connection, org: str, after: BudgetPlace | None, size: int
) -> list[Row]:
    account, period = after or ("", 0)
    records = await connection.fetch(
        "SELECT account, period, limit_nanos, enforcement, alert_percents FROM budgets"
        ' WHERE org = $1 AND (account COLLATE "C", period) > ($2, $3::bigint)'
        ' ORDER BY account COLLATE "C", period LIMIT $4',
        org,
        account,
        period,
        size,
    )
    return [_row(record) for record in records]


async def _of(connection: Connection, account: str) -> list[Row]:
    records = await connection.fetch(
        "SELECT account, period, limit_nanos, enforcement, alert_percents FROM budgets"
        " WHERE account = $1 ORDER BY period",
        account,
    )
    return [_row(record) for record in records]


def _row(record: rows.Record) -> Row:
    return record["account"], budget_period(record["period"]), rows.terms_of(record)


def _not_found(account: str, period: BudgetPeriod) -> RemitError:
    own = " of its own; the default comes from settings" if names.is_name("org", account) else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_BUDGET_NOT_FOUND,
        f"{account} has no budget of the period {period.name}{own}",
    )
