"""Each metric of money moves when its thing happens, and a repetition moves nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from remit.cost import metrics
from remit.cost.metrics import ledger_held
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.stores import MovableClock, a_store
from tests.cost.worlds import release, reserve, settle
from tests.monitoring.values import gained, value
from tests.waiting import eventually


async def test_a_hold_its_settlement_and_its_overrun_are_counted_once(
    database: OpenDatabase,
) -> None:
    store = a_store(await database("cost"))
    held = await store.open(reserve(1, 60))
    spent = gained("remit_spent_nanos_total", item=held.item)
    overrun = gained("remit_overrun_nanos_total", item=held.item)
    settled = gained("remit_reservations_closed_total", state="SETTLED")
    with capture_logs() as logs:
        await store.close(settle(1, 70))
    assert (spent(), overrun(), settled()) == (60, 10, 1)
    (said,) = [entry for entry in logs if entry["event"] == "bill_above_hold"]
    assert (said["reservation"], said["overrun_nanos"]) == (held.name, 10)


async def test_closing_again_later_counts_nothing(database: OpenDatabase) -> None:
    clock = MovableClock()
    store = a_store(await database("cost"), clock=clock)
    held = await store.open(reserve(1, 60))
    await store.close(settle(1, 20))
    spent = gained("remit_spent_nanos_total", item=held.item)
    clock.time += timedelta(seconds=1)
    await store.close(settle(1, 20))
    assert spent() == 0


async def test_a_release_and_a_refusal_are_counted(database: OpenDatabase) -> None:
    store = a_store(await database("cost"), limit=50)
    made = gained("remit_reservations_total", result="HELD")
    refused = gained("remit_reservations_total", result="BUDGET_EXHAUSTED")
    released = gained("remit_reservations_closed_total", state="RELEASED")
    await store.open(reserve(1, 40))
    with pytest.raises(RemitError):
        await store.open(reserve(2, 40))
    await store.close(release(1))
    assert (made(), refused(), released()) == (1, 1, 1)


async def test_what_the_ledger_holds_is_read_from_it(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await store.open(reserve(2, 2))
    metrics.LEDGER_HELD.set(-1)
    looking = asyncio.ensure_future(ledger_held(db, every_s=60)())
    assert await eventually(lambda: value("remit_ledger_held_nanos") == 42)
    looking.cancel()
