"""The ledger in PostgreSQL: many callers share one commit, and several replicas share one ledger.

A batch locks the names of its reservations, then the ledgers of its orgs, each in sorted order, so
that two replicas never wait for each other in a circle. Whoever holds an org's ledger owns all its
balances and budgets: these are read after the lock, decided on in Python, in order, and written.
A round trip to the database costs more than what it carries, so a batch makes five: lock the names;
lock the ledgers and read the reservations; read balances and budgets; write; commit. Fewer cannot
be, for a statement sees what was committed when it began, before it waited for its locks.
Only after an org has changed its prices a batch makes one more, to read them.
Opening and closing calls wait in queues of their own, so that what is held can always be closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from remit.api.errors.v1 import error_reason_pb2
from remit.columns import arrays
from remit.cost import org_prices, rows
from remit.cost.accounts import BalanceKey, ancestors, org_of
from remit.cost.alerts import alerts_of_batch
from remit.cost.books import Balance, Books, keys_to_load
from remit.cost.ledger import Ledger, LedgerState, Rules, begin_time
from remit.cost.metrics import count_closed, count_opened
from remit.cost.org_prices import OrgPrices, select_price_epochs
from remit.cost.periods import BudgetPeriod, Period, budget_period, day_of
from remit.cost.reservations import (
    Extend,
    HoldOperation,
    Release,
    Reservation,
    ReservationKey,
    Reserve,
    Settle,
)
from remit.cost.terms import Budgets, Enforcement, Terms
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_PRICES_REMEMBERED: Final = 4096
_CLOCK_STEP: Final = timedelta(seconds=1)

Opening = Reserve | Extend
Closing = Settle | Release


class LedgerStore:
    """Writes operations to the ledger. Raises what refuses each, after its commit."""

    def __init__(
        self, database: Database, rules: Rules, clock: Clock, *, max_batch: int, max_queue: int
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._stored_prices: set[str] = set()
        """Versions that were read back from a committed hold."""
        self._org_prices = OrgPrices()
        self._openings = GroupCommit[HoldOperation, Reservation](
            database,
            self.write,
            name="opening",
            opens=_begin_locked,
            max_batch=max_batch,
            max_queue=max_queue,
        )
        self._closings = GroupCommit[HoldOperation, Reservation](
            database,
            self.write,
            name="closing",
            opens=_begin_locked,
            max_batch=max_batch,
            max_queue=max_queue,
        )

    async def open(self, operation: Opening) -> Reservation:
        """Reserves or extends. Raises RemitError, OVERLOADED when too many wait."""
        try:
            opened = await self._openings.submit(operation)
        except RemitError as error:
            count_opened(error)
            raise
        count_opened(opened)
        return opened

    async def close(self, operation: Closing) -> Reservation:
        """Settles or releases. Raises RemitError, OVERLOADED when too many wait."""
        asked = self._clock.now()
        closed = await self._closings.submit(operation)
        count_closed(closed, asked)
        return closed

    async def write(
        self, connection: Connection, operations: Sequence[HoldOperation]
    ) -> list[Reservation | RemitError]:
        """Decides and writes a batch, in a transaction that has locked its names."""
        known, latest, epochs = await _locked(connection, operations)
        self._note_stored_prices(known.values())
        bought = [(org_of(op.account), op.item) for op in operations if isinstance(op, Reserve)]
        own_prices = await self._org_prices.load(connection, bought, epochs, latest)
        now = self._clock.now()
        state = await _loaded(connection, operations, known, latest, now)
        state.org_prices = own_prices
        ledger = Ledger(state, self._rules, now)
        results = [ledger.decide(operation) for operation in operations]
        state.books.prove()
        default = self._rules.default_budget
        alerts = alerts_of_batch(state.books, state.budgets, default, now)
        decided = sorted(ledger.changed.items())
        made = [held for key, held in decided if key not in known]
        await self._insert_prices(connection, made)
        await _write(
            connection,
            (rows.NEW_RESERVATIONS, made),
            (rows.CHANGED_RESERVATIONS, [held for key, held in decided if key in known]),
            (rows.LATEST_TIMES, _due_times(latest, state.latest_times)),
            (rows.NEW_TRANSFERS, state.books.transfers),
            (rows.CHANGED_BALANCES, [*state.books.changes().items()]),
            (rows.NEW_ALERTS, alerts),
        )
        return results

    def _note_stored_prices(self, stored: Iterable[Reservation]) -> None:
        if len(self._stored_prices) > _PRICES_REMEMBERED:
            self._stored_prices.clear()
        self._stored_prices.update(held.price.version for held in stored)

    async def _insert_prices(self, connection: Connection, made: Iterable[Reservation]) -> None:
        """Stores the prices that the holds pin, except those that are stored for certain."""
        pinned = {
            held.price.version: rows.PinnedPrice(held.item, held.price)
            for held in made
            if held.price.source != org_prices.SOURCE  # stored when it was set
        }
        missing = sorted(version for version in pinned if version not in self._stored_prices)
        prices = [pinned[version] for version in missing if version]
        if prices:
            statement = rows.NEW_PRICES.sql()
            await connection.execute(statement, *arrays(rows.PRICE_COLUMNS, prices))


# ------------------------------------------------------------------------------------- locking


def _begin_locked(operations: Sequence[HoldOperation]) -> str:
    """Opens a transaction with its names locked, also of reservations that do not exist yet."""
    locks = sorted({_lock_id(operation.key) for operation in operations})
    array = ",".join(map(str, locks))
    lock = f"SELECT pg_advisory_xact_lock(k) FROM unnest('{{{array}}}'::bigint[]) k"  # noqa: S608 - integers
    return f"BEGIN; {rows.BY_INDEX}; {lock}"


def _lock_id(key: ReservationKey) -> int:
    digest = hashlib.blake2b(f"{key.claim}-{key.attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


async def _locked(
    connection: Connection, operations: Sequence[HoldOperation]
) -> tuple[dict[ReservationKey, Reservation], dict[str, datetime | None], dict[str, int]]:
    """Loads the reservations that exist and locks the ledgers that the batch touches.

    Of each ledger it gives the time of the latest hold, and the number of its price changes.
    """
    keys = sorted({operation.key for operation in operations})
    orgs = {org_of(op.account) for op in operations if isinstance(op, Reserve)}
    records = await connection.fetch(
        rows.SELECT_RESERVATIONS_LOCK_LEDGERS,
        [key.claim for key in keys],
        [key.attempt for key in keys],
        sorted(orgs),
    )
    found = [rows.reservation_of(record) for record in records if record["claim"] is not None]
    latest = {row["ledger"]: row["latest_time"] for row in records if row["ledger"] is not None}
    epochs = {row["ledger"]: row["price_epoch"] for row in records if row["ledger"] is not None}
    if not orgs <= latest.keys():
        latest = await lock_ledgers(connection, orgs | latest.keys())
        epochs = await select_price_epochs(connection, latest.keys())
    return {reservation.key: reservation for reservation in found}, latest, epochs


async def lock_ledgers(connection: Connection, orgs: Iterable[str]) -> dict[str, datetime | None]:
    """Locks the orgs' ledgers, made if need be; returns the time of each one's latest hold."""
    ordered = sorted(orgs)
    found = await _select_ledgers(connection, ordered)
    if len(found) < len(ordered):
        await connection.execute(
            "INSERT INTO ledgers (org) SELECT * FROM unnest($1::text[]) ON CONFLICT DO NOTHING",
            [org for org in ordered if org not in found],
        )
        found = await _select_ledgers(connection, ordered)
    return found


async def _select_ledgers(
    connection: Connection, orgs: Sequence[str]
) -> dict[str, datetime | None]:
    records = await connection.fetch(
        "SELECT org, latest_time FROM ledgers WHERE org = ANY ($1::text[]) ORDER BY org FOR UPDATE",
        orgs,
    )
    return {record["org"]: record["latest_time"] for record in records}


# ------------------------------------------------------------------------------------- loading


async def _loaded(
    connection: Connection,
    operations: Sequence[HoldOperation],
    known: dict[ReservationKey, Reservation],
    latest: dict[str, datetime | None],
    now: datetime,
) -> LedgerState:
    leaves = {(held.account, held.day) for held in known.values() if held.account}
    for operation in operations:
        if isinstance(operation, Reserve):
            last = latest[org_of(operation.account)]
            leaves.add((operation.account, day_of(begin_time(now, last))))
    # Whoever holds the ledgers meets nobody else at these rows; neighbours lie beside each other.
    paths = sorted(leaves)
    balances, budgets = await _balances_and_budgets(
        connection,
        [*dict.fromkeys(key for leaf, day in paths for key in keys_to_load(leaf, day))],
        [*dict.fromkeys(account for leaf, _ in paths for account in ancestors(leaf))],
    )
    return LedgerState(
        books=Books(balances),
        limits=_hard_limits(budgets),
        budgets=budgets,
        reservations=dict(known),
        latest_times={org: time for org, time in latest.items() if time is not None},
    )


async def _balances_and_budgets(
    connection: Connection, keys: Sequence[BalanceKey], accounts: Sequence[str]
) -> tuple[dict[BalanceKey, Balance], dict[str, dict[BudgetPeriod, Terms]]]:
    records = await connection.fetch(rows.SELECT_BALANCES_AND_BUDGETS, *_key_arrays(keys), accounts)
    balances: dict[BalanceKey, Balance] = {}
    budgets: dict[str, dict[BudgetPeriod, Terms]] = {}
    for record in records:
        place, pending, posted, account, period, *_ = record
        if place is None:
            budgets.setdefault(account, {})[budget_period(period)] = rows.terms_of(record)
        else:
            balances[keys[place - 1]] = Balance(pending, posted)
    return balances, budgets


def _hard_limits(budgets: Budgets) -> dict[str, dict[Period, int]]:
    return {
        account: {
            period: terms.limit_nanos
            for period, terms in of_account.items()
            if terms.enforcement is Enforcement.HARD and isinstance(period, Period)
        }
        for account, of_account in budgets.items()
    }


async def select_balances(
    connection: Connection, keys: Sequence[BalanceKey]
) -> dict[BalanceKey, Balance]:
    """The balances that exist of these."""
    records = await connection.fetch(rows.SELECT_BALANCES, *_key_arrays(keys))
    return {
        BalanceKey(account, Period(period), start): Balance(pending, posted)
        for account, period, start, pending, posted in records
    }


def _key_arrays(keys: Sequence[BalanceKey]) -> tuple[list[object], ...]:
    accounts, periods, starts = zip(*keys, strict=True) if keys else ((), (), ())
    return list(accounts), list(periods), list(starts)


# ------------------------------------------------------------------------------------- writing


async def _write(connection: Connection, *batch: tuple[rows.Write[Any], Sequence[Any]]) -> None:
    """Writes rows into their tables. Raises DATA_CORRUPT unless every one was written."""
    due = [(write, written) for write, written in batch if written]
    if not due:
        return
    counts = await connection.fetchrow(
        rows.writes_statement(tuple(write for write, _ in due)),
        *(array for write, written in due for array in arrays(write.columns, written)),
    )
    wanted = tuple(len(written) for _, written in due)
    if counts is None or tuple(counts) != wanted:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
            f"{wanted} rows of a batch were to be written and the database wrote {counts}",
        )


def _due_times(
    stored: Mapping[str, datetime | None], latest: Mapping[str, datetime]
) -> list[tuple[str, datetime]]:
    """The times of latest holds to store, a little late but never a day late: the row is hot."""
    return [(org, time) for org, time in sorted(latest.items()) if _is_due(stored[org], time)]


def _is_due(stored: datetime | None, latest: datetime) -> bool:
    if stored is None or day_of(stored) != day_of(latest):
        return True
    return latest - stored >= _CLOCK_STEP
