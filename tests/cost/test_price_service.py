"""PriceService: what an org sets, schedules and deletes is what every replica pins at once."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import cost_service_pb2, price_service_pb2, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.cost.messages import timestamp
from remit.cost.price_store import MAX_SCHEDULED
from remit.cost.prices import Unlisted
from remit.cost.settings import CostSettings
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.services import ALICE, CALCULATOR, CALCULATOR_NANOS, EVE, CostWorld, claim_of
from tests.cost.worlds import START

ItemPrice = price_service_pb2.ItemPrice
AN_HOUR = timedelta(hours=1)
MINE = "models/mine"


async def set_price(
    world: CostWorld,
    call_nanos: int,
    start: datetime | None = None,
    *,
    item: str = CALCULATOR,
    request_id: str = "",
    subject: str = ALICE,
    **rates: int,
) -> price_service_pb2.PriceChange:
    request = price_service_pb2.SetPriceRequest(
        item=item,
        call_nanos=call_nanos,
        start_time=timestamp(start) if start else None,
        request_id=request_id or f"{item} {call_nanos} {start and start.hour}",
        **rates,
    )
    with remit_token(world.client_token(subject)):
        return (await world.prices().SetPrice(request)).change


async def delete_price(
    world: CostWorld, start: datetime | None = None, *, item: str = CALCULATOR, request_id: str = ""
) -> price_service_pb2.PriceChange:
    request = price_service_pb2.DeletePriceRequest(
        item=item,
        start_time=timestamp(start) if start else None,
        request_id=request_id or f"delete {item} {start and start.hour}",
    )
    with remit_token(world.client_token()):
        return (await world.prices().DeletePrice(request)).change


async def listed(world: CostWorld, *, subject: str = ALICE, **fields: Any) -> list[ItemPrice]:
    request = price_service_pb2.ListPricesRequest(**fields)
    with remit_token(world.client_token(subject)):
        return list((await world.prices().ListPrices(request)).prices)


async def pinned(world: CostWorld, number: int, item: str = CALCULATOR) -> reservation_pb2.Price:
    return (await held(world, number, item)).price


async def held(
    world: CostWorld, number: int, item: str = CALCULATOR, subject: str = ALICE
) -> reservation_pb2.Reservation:
    request = world.reserve_request(number, item=item, token=world.run_token(subject=subject))
    return (await world.cost().ReserveBudget(request)).reservation


async def call_nanos(world: CostWorld, number: int) -> int:
    return (await pinned(world, number)).call_nanos


# ---------------------------------------------------------------------------------- in the ledger


async def test_the_next_hold_pins_a_price_that_is_set_and_another_org_keeps_its_own(
    world: CostWorld,
) -> None:
    before = await held(world, 1)
    change = await set_price(world, 7)
    after = await held(world, 2)
    other = await held(world, 3, subject=EVE)

    assert before.price.call_nanos == other.price.call_nanos == CALCULATOR_NANOS
    assert after.price == change.price
    assert (after.price.call_nanos, after.hold_nanos) == (7, 7)


async def test_another_replica_pins_it_at_once_though_its_clock_lies_behind(
    database: OpenDatabase,
) -> None:
    one = CostWorld(await database("cost"), CostSettings.load())
    other = CostWorld(one.database, CostSettings.load())
    assert await call_nanos(other, 1) == CALCULATOR_NANOS
    other.clock.move(seconds=-2)

    for number, nanos in enumerate((7, 8, 9), start=2):
        await set_price(one, nanos)
        assert await call_nanos(other, number) == nanos
    await delete_price(one)

    assert await call_nanos(other, 5) == CALCULATOR_NANOS


async def test_what_was_held_is_settled_at_the_price_of_its_begin(world: CostWorld) -> None:
    first = await held(world, 1)
    await set_price(world, 5_000)

    again = await held(world, 1)
    settled = await world.cost().SettleReservation(
        cost_service_pb2.SettleReservationRequest(
            claim=claim_of(1), attempt=1, used=usage_pb2.Usage(calls=1)
        )
    )

    assert again == first
    assert settled.reservation.posted_nanos == CALCULATOR_NANOS


async def test_a_scheduled_price_takes_effect_at_its_time_and_not_before(world: CostWorld) -> None:
    change = START + AN_HOUR
    await set_price(world, 7, change)

    assert await call_nanos(world, 1) == CALCULATOR_NANOS
    world.clock.move(hours=1, microseconds=-1)
    assert await call_nanos(world, 2) == CALCULATOR_NANOS
    world.clock.move(microseconds=1)
    assert await call_nanos(world, 3) == 7


async def test_a_clock_that_steps_back_does_not_bring_the_old_price_back(world: CostWorld) -> None:
    world.clock.move(seconds=3)
    change = await set_price(world, 7)
    world.clock.move(seconds=-3)

    assert await call_nanos(world, 1) == 7
    assert change.start_time.ToDatetime(START.tzinfo) >= START + timedelta(seconds=3)


async def test_a_price_set_at_once_begins_after_every_hold_that_was_made(world: CostWorld) -> None:
    """The ledger keeps the time of its latest hold a little late; the holds have it exactly."""
    await held(world, 1)
    world.clock.move(milliseconds=900)
    last = await held(world, 2)
    world.clock.move(milliseconds=-900)

    change = await set_price(world, 7)

    assert change.start_time.ToDatetime() > last.create_time.ToDatetime()


async def test_a_later_change_for_the_same_time_takes_the_place_of_the_first(
    world: CostWorld,
) -> None:
    change = START + AN_HOUR
    await set_price(world, 7, change)
    await set_price(world, 8, change)
    world.clock.move(hours=1)

    assert await call_nanos(world, 1) == 8


async def test_what_is_set_at_once_leaves_what_is_scheduled(world: CostWorld) -> None:
    await set_price(world, 8, START + AN_HOUR)
    await set_price(world, 7)

    assert await call_nanos(world, 1) == 7
    world.clock.move(hours=1)
    assert await call_nanos(world, 2) == 8


async def test_a_deletion_withdraws_what_is_scheduled_from_its_time_on(world: CostWorld) -> None:
    await set_price(world, 7)
    await set_price(world, 8, START + AN_HOUR)
    await set_price(world, 9, START + 3 * AN_HOUR)
    await delete_price(world, START + 2 * AN_HOUR)

    assert await call_nanos(world, 1) == 7
    world.clock.move(hours=1)
    assert await call_nanos(world, 2) == 8
    world.clock.move(hours=1)
    assert await call_nanos(world, 3) == CALCULATOR_NANOS
    world.clock.move(hours=2)
    assert await call_nanos(world, 4) == CALCULATOR_NANOS


async def test_an_item_that_only_the_org_knows_is_unknown_again_once_it_is_deleted(
    world: CostWorld,
) -> None:
    await set_price(world, 0, item=MINE, output_nanos_per_million=5_000_000)
    known = await pinned(world, 1, MINE)
    await delete_price(world, item=MINE)

    assert known.output_nanos_per_million == 5_000_000
    with pytest.raises(RemitError) as caught:
        await held(world, 2, MINE)
    assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN


# ---------------------------------------------------------------------------------------- listed


def brief(price: ItemPrice) -> tuple[str, int | None, str]:
    state = ItemPrice.State.Name(price.state).removeprefix("STATE_")
    return state, price.price.call_nanos if price.HasField("price") else None, price.source


async def test_an_item_is_listed_with_what_is_in_force_and_what_will_be(world: CostWorld) -> None:
    await set_price(world, 7)
    await set_price(world, 8, START + AN_HOUR)
    await delete_price(world, START + 2 * AN_HOUR)

    prices = await listed(world, item=CALCULATOR)

    assert [brief(price) for price in prices] == [
        ("CURRENT", 7, "org"),
        ("SCHEDULED", 8, "org"),
        ("SCHEDULED", CALCULATOR_NANOS, "shipped"),
    ]
    for earlier, later in pairwise(prices):
        assert earlier.end_time == later.start_time
    assert not prices[-1].HasField("end_time")
    assert prices[1].start_time == timestamp(START + AN_HOUR)


async def test_all_items_of_files_and_org_are_listed_in_pages(world: CostWorld) -> None:
    await set_price(world, 7, item="tools/zebra")
    await set_price(world, 8, item="models/aardvark")
    found: list[ItemPrice] = []
    token = ""
    for _ in range(20):
        with remit_token(world.client_token()):
            page = await world.prices().ListPrices(
                price_service_pb2.ListPricesRequest(page_size=2, page_token=token)
            )
        assert len(page.prices) <= 2
        found += page.prices
        token = page.next_page_token
        if not token:
            break

    items = [price.item for price in found]
    assert items == sorted(items)
    assert items[0] == "models/aardvark"
    assert items[-1] == "tools/zebra"
    assert CALCULATOR in items
    assert [price.item for price in await listed(world)] == items
    assert "tools/zebra" not in [price.item for price in await listed(world, subject=EVE)]


async def test_an_unknown_price_is_shown_as_unknown_and_never_as_zero(
    database: OpenDatabase,
) -> None:
    refusing = CostWorld(await database("cost"), CostSettings.load())
    letting = CostWorld(refusing.database, CostSettings.load(unlisted_models=Unlisted.FREE))

    (refused,) = await listed(refusing, item=MINE)
    (let_pass,) = await listed(letting, item=MINE)
    await set_price(refusing, 0, item=MINE)
    (zero,) = await listed(refusing, item=MINE)
    await delete_price(refusing, item=MINE)
    deleted = [price for price in await listed(refusing) if price.item == MINE]

    assert (brief(refused), refused.refused) == (("CURRENT", None, "unlisted"), True)
    assert (brief(let_pass), let_pass.refused) == (("CURRENT", None, "unlisted"), False)
    assert brief(zero) == ("CURRENT", 0, "org")
    assert [brief(price) for price in deleted] == [("CURRENT", None, "unlisted")]


@pytest.mark.parametrize("list_item", ["openai/gpt-5-mini", "openai/text-embedding-3-small"])
async def test_a_model_with_a_public_name_is_listed_with_its_public_price(
    world: CostWorld, list_item: str
) -> None:
    (price,) = await listed(world, item=MINE, list_item=list_item)

    assert price.source == "genai-prices"
    assert price.price.input_nanos_per_million > 0


async def test_every_change_is_listed_the_latest_first(world: CostWorld) -> None:
    await set_price(world, 7)
    await set_price(world, 8, item="tools/other")
    await delete_price(world)

    async def changes(**fields: Any) -> price_service_pb2.ListPriceChangesResponse:
        request = price_service_pb2.ListPriceChangesRequest(**fields)
        with remit_token(world.client_token()):
            return await world.prices().ListPriceChanges(request)

    first = await changes(page_size=2)
    rest = await changes(page_size=2, page_token=first.next_page_token)
    of_one = await changes(item=CALCULATOR)

    assert [change.sequence for change in [*first.changes, *rest.changes]] == [3, 2, 1]
    assert not rest.next_page_token
    assert [(c.sequence, c.HasField("price")) for c in of_one.changes] == [(3, False), (1, True)]
    assert {change.subject for change in first.changes} == {ALICE}
    with pytest.raises(RemitError, match="belongs to a list with other parameters"):
        await changes(item=CALCULATOR, page_token=first.next_page_token)


# -------------------------------------------------------------------------- once, and in the log


async def test_a_change_is_in_the_log_when_it_is_acknowledged(world: CostWorld) -> None:
    await set_price(world, 7, START + AN_HOUR)
    await delete_price(world, START + AN_HOUR)

    made, deleted = world.audit.events.values()
    assert (made.action, deleted.action) == ("prices.set", "prices.delete")
    assert made.kind == deleted.kind == event_pb2.EVENT_KIND_ADMIN
    assert (made.org, made.subject, made.resource) == ("orgs/acme", ALICE, CALCULATOR)
    assert json.loads(made.detail_json) == {
        "item": CALCULATOR,
        "call_nanos": 7,
        "start_time": "2026-11-23T13:00:00+00:00",
    }


async def test_the_same_request_gets_the_same_answer_and_one_change(world: CostWorld) -> None:
    first = await set_price(world, 7, START + AN_HOUR)
    world.clock.move(hours=2)
    again = await set_price(world, 7, START + AN_HOUR)
    gone = await delete_price(world)
    gone_again = await delete_price(world)

    assert again == first, "also when its time has come and gone"
    assert gone_again == gone
    assert len(world.audit.events) == 2
    assert await world.database.fetchval("SELECT count(*) FROM org_prices") == 2


async def test_another_body_under_the_same_id_is_refused(world: CostWorld) -> None:
    await set_price(world, 7, request_id="one")

    with pytest.raises(RemitError) as caught:
        await set_price(world, 8, request_id="one")

    assert caught.value.reason == reasons.ERROR_REASON_KEY_REUSED
    assert await call_nanos(world, 1) == 7


async def test_while_audit_is_away_no_change_is_acknowledged_and_none_is_lost(
    world: CostWorld,
) -> None:
    world.audit.away = True
    with pytest.raises(RemitError, match="the log is away"):
        await set_price(world, 7)
    world.audit.away = False
    await world.recorder.sweep()

    assert len(world.audit.events) == 1
    assert await call_nanos(world, 1) == 7


# --------------------------------------------------------------------------------------- refused


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"item": "calculator"}, "item"),
    ({"item": "agents/a"}, "item"),
    ({"call_nanos": -1}, "call_nanos"),
    ({"input_nanos_per_million": -1}, "input_nanos_per_million"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"start": START - timedelta(seconds=1)}, "start_time"),
]


async def test_wrong_prices_are_refused_and_leave_no_trace(world: CostWorld) -> None:
    for fields, field in WRONG:
        with pytest.raises(RemitError) as caught:
            await set_price(world, **{"call_nanos": 1} | fields)
        assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST, fields
        assert [violation.field for violation in caught.value.violations] == [field]
    far = price_service_pb2.SetPriceRequest(item=CALCULATOR, call_nanos=1, request_id="a")
    far.start_time.seconds = 10**12
    nothing = price_service_pb2.SetPriceRequest(item=CALCULATOR, request_id="a")
    for request, text in ((far, "between the years"), (nothing, "at least one rate")):
        with remit_token(world.client_token()), pytest.raises(RemitError, match=text):
            await world.prices().SetPrice(request)

    assert not world.audit.events
    assert await call_nanos(world, 1) == CALCULATOR_NANOS


async def test_a_time_that_has_passed_by_the_ledger_is_refused(world: CostWorld) -> None:
    """A hold may have begun after it, at another price."""
    await held(world, 1)
    world.clock.move(seconds=-3)

    with pytest.raises(RemitError, match="has passed"):
        await set_price(world, 7, START - timedelta(seconds=1))


async def test_nothing_is_deleted_that_is_not_there(world: CostWorld) -> None:
    async def refused(start: datetime | None = None) -> None:
        with pytest.raises(RemitError) as caught:
            await delete_price(world, start, request_id="again")
        assert caught.value.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND

    await refused()
    await set_price(world, 7)
    await delete_price(world, START + AN_HOUR)
    await refused(START + 2 * AN_HOUR)
    await delete_price(world)
    await refused()


async def test_what_is_scheduled_is_bounded(world: CostWorld) -> None:
    for number in range(1, MAX_SCHEDULED + 1):
        await set_price(world, number, START + number * AN_HOUR)

    with pytest.raises(RemitError, match=f"has {MAX_SCHEDULED} changes scheduled"):
        await set_price(world, 99, START + 99 * AN_HOUR)
    await set_price(world, 77, START + 5 * AN_HOUR)
    await set_price(world, 78)
    late = START + (MAX_SCHEDULED - 1) * AN_HOUR + timedelta(minutes=30)
    await delete_price(world, late)

    assert await call_nanos(world, 1) == 78
    assert len(await listed(world, item=CALCULATOR)) == 1 + MAX_SCHEDULED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"item": "calculator"}, "item"),
        ({"list_item": "openai/gpt-5-mini"}, "list_item"),
        ({"item": CALCULATOR, "list_item": "x" * 201}, "list_item"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "zzz"}, "page_token"),
    ],
)
async def test_wrong_questions_are_refused(
    world: CostWorld, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(RemitError) as caught:
        await listed(world, **fields)

    assert [violation.field for violation in caught.value.violations] == [field]


async def test_the_service_may_not_rewrite_prices(world: CostWorld) -> None:
    await set_price(world, 7)

    for statement in ("UPDATE org_prices SET sequence = 9", "DELETE FROM org_prices"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await world.database.execute(statement)
