"""The ledger in PostgreSQL: many callers share one commit, and several replicas share one ledger.

A batch locks the names of its reservations, then the ledgers of its orgs, each in sorted order, so
that two replicas never wait for each other in a circle. Whoever holds an org's ledger owns all its
balances and budgets: these are read after the lock, decided on in Python, in order, and written.
Opening and closing calls wait in queues of their own, so that what is held can always be closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.cost import rows
from remit.cost.accounts import BalanceKey, ancestors, org_of
from remit.cost.books import Balance, Books, keys_to_load
from remit.cost.ledger import Ledger, LedgerState, Rules, begin_time
from remit.cost.periods import Period, day_of
from remit.cost.reservations import (
    Extend,
    HoldOperation,
    Release,
    Reservation,
    ReservationKey,
    Reserve,
    Settle,
)
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
        self._openings = GroupCommit[HoldOperation, Reservation](
            database, self.write, name="opening", max_batch=max_batch, max_queue=max_queue
        )
        self._closings = GroupCommit[HoldOperation, Reservation](
            database, self.write, name="closing", max_batch=max_batch, max_queue=max_queue
        )

    async def open(self, operation: Opening) -> Reservation:
        """Reserves or extends. Raises RemitError, OVERLOADED when too many wait."""
        return await self._openings.submit(operation)

    async def close(self, operation: Closing) -> Reservation:
        """Settles or releases. Raises RemitError, OVERLOADED when too many wait."""
        return await self._closings.submit(operation)

    async def write(
        self, connection: Connection, operations: Sequence[HoldOperation]
    ) -> list[Reservation | RemitError]:
        """Decides and writes a batch inside the connection's transaction."""
        known = await _locked_reservations(connection, {op.key for op in operations})
        self._note_stored_prices(known.values())
        latest = await lock_ledgers(connection, _orgs(operations, known))
        now = self._clock.now()
        state = await _loaded(connection, operations, known, latest, now)
        ledger = Ledger(state, self._rules, now)
        results = [ledger.decide(operation) for operation in operations]
        state.books.prove()
        made = [held for key, held in sorted(ledger.changed.items()) if key not in known]
        changed = [held for key, held in sorted(ledger.changed.items()) if key in known]
        if made:
            await self._insert_prices(connection, made)
            await _insert_reservations(connection, made)
            await _advance_clocks(connection, latest, state.latest_times)
        if changed:
            await _update_reservations(connection, changed)
        await _write_books(connection, state.books)
        return results

    def _note_stored_prices(self, stored: Iterable[Reservation]) -> None:
        if len(self._stored_prices) > _PRICES_REMEMBERED:
            self._stored_prices.clear()
        self._stored_prices.update(held.price.version for held in stored)

    async def _insert_prices(self, connection: Connection, made: Iterable[Reservation]) -> None:
        """Stores the prices that the holds pin, except those that are stored for certain."""
        pinned = {held.price.version: rows.PinnedPrice(held.item, held.price) for held in made}
        missing = sorted(version for version in pinned if version not in self._stored_prices)
        prices = [pinned[version] for version in missing if version]
        if prices:
            await connection.execute(rows.INSERT_PRICES, *rows.arrays(rows.PRICE_COLUMNS, prices))


# ------------------------------------------------------------------------------------- locking


async def _locked_reservations(
    connection: Connection, keys: Iterable[ReservationKey]
) -> dict[ReservationKey, Reservation]:
    """Locks the names, also of reservations that do not exist yet, and loads those that do."""
    ordered = sorted(keys)
    locks = sorted({_lock_id(key) for key in ordered})
    await connection.execute("SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k", locks)
    records = await connection.fetch(
        rows.SELECT_RESERVATIONS, [key.claim for key in ordered], [key.attempt for key in ordered]
    )
    found = [rows.reservation_of(record) for record in records]
    return {reservation.key: reservation for reservation in found}


def _lock_id(key: ReservationKey) -> int:
    digest = hashlib.blake2b(f"{key.claim}-{key.attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


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


def _orgs(
    operations: Sequence[HoldOperation], known: dict[ReservationKey, Reservation]
) -> set[str]:
    accounts = {op.account for op in operations if isinstance(op, Reserve)}
    accounts |= {reservation.account for reservation in known.values() if reservation.account}
    return {org_of(account) for account in accounts}


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
    accounts = {account for leaf, _ in leaves for account in ancestors(leaf)}
    return LedgerState(
        books=Books(await _balances(connection, leaves)),
        limits=await _limits(connection, accounts),
        reservations=dict(known),
        latest_times={org: time for org, time in latest.items() if time is not None},
    )


async def _balances(
    connection: Connection, leaves: Iterable[tuple[str, date]]
) -> dict[BalanceKey, Balance]:
    keys = sorted({key for leaf, day in leaves for key in keys_to_load(leaf, day)})
    return await select_balances(connection, keys)


async def select_balances(
    connection: Connection, keys: Sequence[BalanceKey]
) -> dict[BalanceKey, Balance]:
    """The balances that exist of these."""
    records = await connection.fetch(
        rows.SELECT_BALANCES,
        [key.account for key in keys],
        [int(key.period) for key in keys],
        [key.start for key in keys],
    )
    return {
        BalanceKey(account, Period(period), start): Balance(pending, posted)
        for account, period, start, pending, posted in records
    }


async def _limits(connection: Connection, accounts: Iterable[str]) -> dict[str, dict[Period, int]]:
    records = await connection.fetch(
        "SELECT account, period, limit_nanos FROM budgets WHERE account = ANY ($1::text[])",
        sorted(accounts),
    )
    limits: dict[str, dict[Period, int]] = {}
    for account, period, limit_nanos in records:
        limits.setdefault(account, {})[Period(period)] = limit_nanos
    return limits


# ------------------------------------------------------------------------------------- writing


async def _insert_reservations(connection: Connection, made: Sequence[Reservation]) -> None:
    await connection.execute(rows.INSERT_RESERVATIONS, *rows.arrays(rows.RESERVATION_COLUMNS, made))


async def _advance_clocks(
    connection: Connection,
    stored: Mapping[str, datetime | None],
    latest: Mapping[str, datetime],
) -> None:
    """Stores the time of the latest hold, a little late but never a day late: the row is hot."""
    due = [org for org in sorted(latest) if _is_due(stored[org], latest[org])]
    if due:
        await connection.execute(
            "UPDATE ledgers l SET latest_time = n.latest_time"
            " FROM unnest($1::text[], $2::timestamptz[]) AS n (org, latest_time)"
            " WHERE l.org = n.org",
            due,
            [latest[org] for org in due],
        )


def _is_due(stored: datetime | None, latest: datetime) -> bool:
    if stored is None or day_of(stored) != day_of(latest):
        return True
    return latest - stored >= _CLOCK_STEP


async def _update_reservations(connection: Connection, changed: Sequence[Reservation]) -> None:
    tag = await connection.execute(
        rows.UPDATE_RESERVATIONS, *rows.arrays(rows.CHANGE_COLUMNS, changed)
    )
    if tag != f"UPDATE {len(changed)}":
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
            f"{len(changed)} holds were to be changed and the database answered {tag}",
        )


async def _write_books(connection: Connection, books: Books) -> None:
    if books.transfers:
        await connection.execute(
            rows.INSERT_TRANSFERS, *rows.arrays(rows.TRANSFER_COLUMNS, books.transfers)
        )
        await connection.execute(
            rows.UPSERT_BALANCES,
            *rows.arrays(rows.BALANCE_COLUMNS, sorted(books.changes().items())),
        )
