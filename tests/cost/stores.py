"""Ledger stores on a real PostgreSQL, and what tests ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from remit.cost.accounts import balance_key
from remit.cost.admission import DefaultBudget
from remit.cost.books import Balance
from remit.cost.checks import ledger_faults
from remit.cost.ledger import Rules
from remit.cost.periods import Period
from remit.cost.reservations import Extend, HoldOperation, Reservation, Reserve
from remit.cost.store import LedgerStore, select_balances
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.cost.worlds import NO_LIMIT, START


class MovableClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


CLOCK = MovableClock()


def a_store(database: Database, limit: int = NO_LIMIT, clock: MovableClock = CLOCK) -> LedgerStore:
    rules = Rules(DefaultBudget(Period.MONTH, limit), timedelta(seconds=5))
    return LedgerStore(database, rules, clock, max_batch=64, max_queue=4096)


async def send(store: LedgerStore, operation: HoldOperation) -> Reservation:
    if isinstance(operation, Reserve | Extend):
        return await store.open(operation)
    return await store.close(operation)


async def outcomes(
    stores: Sequence[LedgerStore], operations: Sequence[HoldOperation]
) -> list[Reservation | RemitError]:
    """Sends all at once, spread over the stores; anything but a RemitError fails the test."""
    results = await asyncio.gather(
        *(send(stores[n % len(stores)], operation) for n, operation in enumerate(operations)),
        return_exceptions=True,
    )
    for result in results:
        if not isinstance(result, Reservation | RemitError):
            raise result
    return [result for result in results if isinstance(result, Reservation | RemitError)]


async def balance(database: Database, account: str, period: Period = Period.TOTAL) -> Balance:
    key = balance_key(account, period, CLOCK.time.date())
    async with database.acquire() as connection:
        return (await select_balances(connection, [key])).get(key, Balance())


async def assert_sound(database: Database) -> None:
    async with database.acquire() as connection:
        assert await ledger_faults(connection, 5) == []
