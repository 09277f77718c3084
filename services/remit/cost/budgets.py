"""Budgets in PostgreSQL: set under the lock of the org's ledger, listed with what is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from google.protobuf.message import Message

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.cost.accounts import balance_key
from remit.cost.admission import DefaultBudget
from remit.cost.books import Balance
from remit.cost.messages import CURRENCY, timestamp
from remit.cost.periods import Period, day_of, renewal_of
from remit.cost.reservations import SetLimit
from remit.cost.store import lock_ledgers, select_balances
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.postgres import Connection, Database
from remit.rpc.clock import Clock

BudgetPlace = tuple[str, int]
"""Account and period of the last budget of a page."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit, and what stands against it in its current period."""

    account: str
    period: Period
    limit_nanos: int
    balance: Balance
    day: date
    """Today, which chooses the current period."""
    is_default: bool = False

    def message(self) -> reservation_pb2.Budget:
        """The budget as its contract states it."""
        renewal = renewal_of(self.period, self.day)
        return reservation_pb2.Budget(
            account=self.account,
            period=reservation_pb2.Period.ValueType(self.period),
            limit_nanos=self.limit_nanos,
            currency=CURRENCY,
            pending_nanos=self.balance.pending_nanos,
            posted_nanos=self.balance.posted_nanos,
            is_default=self.is_default,
            renew_time=timestamp(renewal) if renewal else None,
        )


class BudgetStore:
    """Sets and lists budgets."""

    def __init__(self, database: Database, default: DefaultBudget, clock: Clock) -> None:
        self._database = database
        self._default = default
        self._clock = clock

    async def set(self, request: AdminRequest, wanted: SetLimit) -> AdminChange:
        """Sets a limit once and remembers the answer. Raises KEY_REUSED.

        The ledger's lock orders this with every admission: a hold is admitted under the old limit
        or under the new one, never under both.
        """
        async with self._database.transaction() as connection:
            await lock_ledgers(connection, [request.org])
            known = await known_change(connection, request)
            if known is not None:
                return known
            await _upsert(connection, request.org, wanted, self._clock.now())
            row = wanted.account, wanted.period, wanted.limit_nanos
            budget = (await self._with_balances(connection, [row]))[0]
            response: Message = cost_report_service_pb2.SetBudgetResponse(budget=budget.message())
            return await remember(connection, request, response.SerializeToString())

    async def page(self, org: str, after: BudgetPlace | None, size: int) -> list[Budget]:
        """Up to `size` budgets of an org by account and period, its default among them."""
        async with self._database.transaction() as connection:
            found = await _select(connection, org, after, size)
            budgets = await self._with_balances(connection, found)
            if after is None and not await _has_own(connection, org):
                # An org's own account sorts before all accounts under it.
                row = org, self._default.period, self._default.limit_nanos
                default = await self._with_balances(connection, [row], is_default=True)
                budgets = (default + budgets)[:size]
        return budgets

    async def _with_balances(
        self,
        connection: Connection,
        found: Sequence[tuple[str, Period, int]],
        *,
        is_default: bool = False,
    ) -> list[Budget]:
        day = day_of(self._clock.now())
        keys = [balance_key(account, period, day) for account, period, _ in found]
        balances = await select_balances(connection, keys)
        return [
            Budget(account, period, limit, balances.get(key, Balance()), day, is_default)
            for (account, period, limit), key in zip(found, keys, strict=True)
        ]


async def _upsert(
    connection: Connection, org: str, wanted: SetLimit, update_time: datetime
) -> None:
    await connection.execute(
        "INSERT INTO budgets (account, period, org, limit_nanos, update_time)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account, period) DO UPDATE"
        " SET limit_nanos = EXCLUDED.limit_nanos, update_time = EXCLUDED.update_time",
        wanted.account,
        int(wanted.period),
        org,
        wanted.limit_nanos,
        update_time,
    )


async def _select(
    connection: Connection, org: str, after: BudgetPlace | None, size: int
) -> list[tuple[str, Period, int]]:
    account, period = after or ("", 0)
    records = await connection.fetch(
        "SELECT account, period, limit_nanos FROM budgets WHERE org = $1"
        ' AND (account COLLATE "C", period) > ($2, $3::bigint)'
        ' ORDER BY account COLLATE "C", period LIMIT $4',
        org,
        account,
        period,
        size,
    )
    return [(record[0], Period(record[1]), record[2]) for record in records]


async def _has_own(connection: Connection, org: str) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM budgets WHERE account = $1)", names.org_of(org)
        )
    )
