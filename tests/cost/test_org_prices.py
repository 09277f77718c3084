"""Prices of orgs as the hot path reads them: exact, remembered, and bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from remit.api.cost.v1 import price_service_pb2
from remit.cost import org_prices, rows
from remit.cost.admission import DefaultBudget
from remit.cost.ledger import Rules
from remit.cost.org_prices import OrgPrices, select_org_prices
from remit.cost.periods import Period
from remit.cost.price_files import Rates
from remit.cost.price_store import PriceStore, WantedPrice
from remit.cost.prices import make_price
from remit.cost.reservations import Price
from remit.cost.store import LedgerStore
from remit.idempotency import AdminRequest
from remit.postgres import Database
from tests.conftest import OpenDatabase
from tests.cost.services import MovedClock
from tests.cost.worlds import NO_LIMIT, ORG, START, reserve, settle

ITEM = "models/builtin-rules"


def a_store(database: Database, clock: MovedClock) -> LedgerStore:
    rules = Rules(DefaultBudget(Period.MONTH, NO_LIMIT), timedelta(seconds=5))
    return LedgerStore(database, rules, clock, max_batch=64, max_queue=4096)


def a_price(nanos: int, item: str = ITEM) -> Price:
    return make_price(item, Rates(call_nanos=nanos), "org")


async def change(
    database: Database,
    clock: MovedClock,
    price: Price | None,
    start: datetime | None = None,
    *,
    item: str = ITEM,
    request_id: str,
) -> None:
    request = AdminRequest(
        subject=f"{ORG}/users/alice",
        method="prices.set",
        request_id=request_id,
        org=ORG,
        body_digest=bytes(32),
        action="prices.set",
        resource=item,
        detail="{}",
        trace_id="",
    )
    await PriceStore(database, clock).change(
        request,
        WantedPrice(item, price, start),
        lambda made: price_service_pb2.SetPriceResponse(change=made),
    )


async def test_only_the_first_commit_after_a_change_makes_a_round_trip_more(
    database: OpenDatabase,
) -> None:
    db, clock = await database("cost"), MovedClock()
    store = a_store(db, clock)
    await store.open(reserve(1, 10))
    await store.close(settle(1, 10))
    await change(db, clock, a_price(2), request_id="one")
    sent: list[str] = []
    async with db.acquire() as connection:  # the pool's only one, as calls come one by one
        connection.add_query_logger(lambda record: sent.append(record.query))

    async def trips(number: int) -> int:
        before = len(sent)
        await store.open(reserve(number, 10))
        return len(sent) - before

    assert [await trips(2), await trips(3), await trips(4)] == [6, 5, 5]


async def test_a_new_orgs_first_hold_has_a_price_that_was_set_before_it(
    database: OpenDatabase,
) -> None:
    db, clock = await database("cost"), MovedClock()
    await change(db, clock, a_price(3), request_id="one")
    other = reserve(1, 1, account="orgs/other/users/eve")

    held = await a_store(db, clock).open(reserve(2, 10))
    foreign = await a_store(db, clock).open(other)

    assert (held.hold_nanos, held.price.source) == (30, "org")
    assert foreign.price.source == "file"


async def test_holds_and_changes_at_once_agree_on_one_order(database: OpenDatabase) -> None:
    """Each hold has the price of the last change before its begin, whoever was first."""
    db, clock = await database("cost"), MovedClock()
    stores = [a_store(db, clock), a_store(db, clock)]
    work: list[Awaitable[object]] = []
    for number in range(1, 9):
        work.append(stores[0].open(reserve(number, 1)))
        work.append(change(db, clock, a_price(number), request_id=f"n{number}"))
        work.append(stores[1].open(reserve(100 + number, 1)))
    await asyncio.gather(*work)

    records = await db.fetch(
        "SELECT p.call_nanos, (SELECT q.call_nanos FROM org_prices c"
        " JOIN prices q ON q.version = c.price_version WHERE c.start_time <= r.create_time"
        " ORDER BY c.start_time DESC LIMIT 1) AS due"
        " FROM reservations r JOIN prices p ON p.version = r.price_version"
    )
    assert len(records) == 16
    assert all(row["call_nanos"] == (row["due"] or 1) for row in records)


async def test_a_batch_over_several_items_gives_each_its_own_price(database: OpenDatabase) -> None:
    db, clock = await database("cost"), MovedClock()
    names = [f"models/m{number}" for number in range(1, 4)]
    for nanos, name in enumerate(names[:2], start=2):
        await change(db, clock, a_price(nanos, name), item=name, request_id=name)
    store = a_store(db, clock)
    wanted = [replace(reserve(n, 10), item=name) for n, name in enumerate(names)]

    async with db.transaction() as connection:
        results = await store.write(connection, wanted)

    assert [held.hold_nanos for held in results if not isinstance(held, Exception)] == [20, 30, 10]


async def test_what_is_remembered_is_bounded(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(org_prices, "_REMEMBERED", 2)
    db, clock = await database("cost"), MovedClock()
    await change(db, clock, a_price(2), request_id="one")
    prices = OrgPrices()
    items = [(ORG, ITEM), *((ORG, f"models/m{number}") for number in range(5))]

    async with db.transaction() as connection:
        for _ in range(2):
            found = await prices.load(connection, items, {ORG: 1}, {ORG: START})
            assert list(found) == [(ORG, ITEM)]
        assert await prices.load(connection, items, {ORG: 0}, {ORG: START}) == {}

    assert len(prices._known) == 2


async def test_however_long_the_history_is_only_what_may_still_count_is_read(
    database: OpenDatabase,
) -> None:
    db, clock = await database("cost"), MovedClock()
    for number in range(40):
        await change(db, clock, a_price(number + 1), request_id=f"n{number}")
        clock.move(hours=1)
    for hours in (1, 2, 3):
        start = clock.now() + timedelta(hours=hours)
        await change(db, clock, a_price(100 + hours), start, request_id=f"s{hours}")
    await change(db, clock, None, clock.now() + timedelta(hours=2), request_id="gone")

    async with db.transaction() as connection:
        found = await select_org_prices(connection, {(ORG, ITEM): clock.now()})

    timeline = found[ORG, ITEM]
    assert [span.value and span.value.call_nanos for span in timeline] == [40, 101, None]
    assert timeline.at(clock.now()) == a_price(40)


async def test_the_statement_probes_an_index_however_large_the_table_is(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    statement = org_prices._SELECT
    nulls = ", ".join("NULL" for _ in set(re.findall(r"\$\d+", statement)))
    async with db.transaction() as connection:
        await connection.execute(f"{rows.BY_INDEX}; PREPARE probe AS {statement}")
        lines = [line for (line,) in await connection.fetch(f"EXPLAIN EXECUTE probe ({nulls})")]

    assert not [line for line in lines if "Seq Scan" in line]
