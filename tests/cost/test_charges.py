"""Charges on a real ledger: what stands in one, their order, their pages, and that they add up."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import cost_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.cost import charges
from remit.cost.charges import place_of
from remit.cost.messages import timestamp
from remit.cost.paging import encode_token
from remit.cost.prices import Unlisted
from remit.cost.settings import CostSettings
from remit.pricing import INT64_MAX
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.services import (
    ALICE,
    BOB,
    CALCULATOR,
    CALCULATOR_NANOS,
    CORE,
    EVE,
    CostWorld,
    claim_of,
)
from tests.cost.test_report_service import list_spend, some_spending

RULES = "models/builtin-rules"


async def list_charges(world: CostWorld, **fields: Any) -> report_pb2.ListChargesResponse:
    with remit_token(world.client_token()):
        return await world.reports().ListCharges(report_pb2.ListChargesRequest(**fields))


async def all_charges(world: CostWorld, page_size: int) -> list[report_pb2.Charge]:
    found: list[report_pb2.Charge] = []
    token = ""
    while True:
        page = await list_charges(world, page_size=page_size, page_token=token)
        assert len(page.charges) <= page_size
        found += page.charges
        token = page.next_page_token
        if not token:
            return found


async def settle(
    world: CostWorld,
    number: int,
    used: usage_pb2.Usage | None = None,
    *,
    bound: usage_pb2.Usage | None = None,
    item: str = CALCULATOR,
    token: str | None = None,
) -> None:
    """Reserves a bound, one call if not said otherwise, and settles what was used, or it whole."""
    reserve = world.reserve_request(number, token=token, item=item)
    if bound is not None:
        reserve.bound.CopyFrom(bound)
    await world.cost().ReserveBudget(reserve)
    await world.cost().SettleReservation(
        cost_service_pb2.SettleReservationRequest(
            claim=claim_of(number), attempt=1, used=used, whole_hold=used is None
        )
    )


def told(charge: report_pb2.Charge) -> tuple[str, str, str, str, int]:
    calls = charge.posted_nanos // CALCULATOR_NANOS
    return charge.day, charge.user, charge.team, charge.agent, calls


async def test_charges_are_settled_effects_by_day_and_owner(world: CostWorld) -> None:
    await some_spending(world)

    response = await list_charges(world)

    assert list(map(told, response.charges)) == [
        ("2026-11-23", ALICE, "", "", 1),
        ("2026-11-23", ALICE, "", "agents/assistant", 4),
        ("2026-11-23", BOB, CORE, "agents/assistant", 3),
        ("2026-11-24", BOB, CORE, "agents/assistant", 1),
    ]
    assert not response.next_page_token


async def test_a_charge_tells_price_and_usage(world: CostWorld) -> None:
    used = usage_pb2.Usage(input_tokens=7, cached_input_tokens=2, output_tokens=3, estimated=True)
    bound = usage_pb2.Usage(input_tokens=100, output_tokens=100)
    await settle(world, 1, used, bound=bound, item=RULES)
    await settle(world, 2, used, bound=bound, item=RULES)

    (charge,) = (await list_charges(world)).charges

    assert (charge.item, charge.price_source) == (RULES, "shipped")
    assert charge.price.input_nanos_per_million == 50_000_000
    assert charge.price.output_nanos_per_million == 200_000_000
    assert len(charge.price.version) == 64
    assert charge.usage == usage_pb2.Usage(
        input_tokens=14, cached_input_tokens=4, output_tokens=6, estimated=True
    )
    # 350 + 600 nano-USD each, exactly.
    assert (charge.effects, charge.posted_nanos, charge.unmetered_nanos) == (2, 1_900, 0)


async def test_what_is_in_doubt_or_overrun_is_told_apart(world: CostWorld) -> None:
    await settle(world, 1, usage_pb2.Usage(calls=4))
    await settle(world, 2, None, bound=usage_pb2.Usage(calls=3))
    await settle(world, 3, usage_pb2.Usage())

    (charge,) = (await list_charges(world)).charges

    assert charge.posted_nanos == (1 + 3) * CALCULATOR_NANOS
    assert charge.unmetered_nanos == 3 * CALCULATOR_NANOS
    assert charge.overrun_nanos == 3 * CALCULATOR_NANOS
    assert (charge.effects, charge.usage.calls, charge.usage.estimated) == (3, 4, True)


async def test_an_unlisted_price_is_told_as_such(database: OpenDatabase) -> None:
    settings = CostSettings.load().model_copy(update={"unlisted_tools": Unlisted.FREE})
    world = CostWorld(await database("cost"), settings)
    await settle(world, 1, usage_pb2.Usage(calls=1), item="tools/abacus")

    (charge,) = (await list_charges(world)).charges

    assert (charge.price_source, charge.posted_nanos) == ("unlisted", 0)


async def test_pages_together_are_the_whole_in_order(world: CostWorld) -> None:
    chance = random.Random(7)  # noqa: S311 - a repeatable choice
    owners = [(ALICE, ""), (BOB, CORE), (BOB, "")]
    for number in range(60):
        if chance.random() < 0.3:
            world.clock.move(hours=chance.randint(1, 60))
        subject, team = chance.choice(owners)
        token = world.client_token(subject, team)
        if chance.random() < 0.5:
            token = world.run_token(1, subject=subject, team=team)
        item = chance.choice([CALCULATOR, "tools/clock"])
        await settle(world, number, usage_pb2.Usage(calls=1), item=item, token=token)
    await settle(world, 99, usage_pb2.Usage(calls=1), token=world.run_token(9, subject=EVE))

    whole = list((await list_charges(world, page_size=200)).charges)

    places = [tuple(place_of(charge)) for charge in whole]
    assert places == sorted(set(places))
    assert sum(charge.effects for charge in whole) == 60
    assert sum(charge.posted_nanos for charge in whole) == 60 * CALCULATOR_NANOS
    for size in (1, 2, 7, len(whole)):
        assert await all_charges(world, size) == whole


async def test_a_page_ends_early_where_many_effects_are_in_it(
    world: CostWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        await settle(world, number, usage_pb2.Usage(calls=1))
        world.clock.move(hours=12)
    whole = list((await list_charges(world)).charges)
    monkeypatch.setattr(charges, "MAX_EFFECTS", 3)

    first = await list_charges(world)

    assert [charge.effects for charge in whole] == [1, 2, 2, 2, 1]
    assert list(first.charges) == whole[:2]
    assert await all_charges(world, 50) == await all_charges(world, 1) == whole


async def test_a_span_may_begin_and_end_within_a_day(world: CostWorld) -> None:
    for number in range(4):
        await settle(world, number, usage_pb2.Usage(calls=1))
        world.clock.move(hours=1)
    end = world.clock.now() - timedelta(hours=1)

    (charge,) = (
        await list_charges(
            world, start_time=timestamp(end - timedelta(hours=2)), end_time=timestamp(end)
        )
    ).charges

    assert charge.effects == 2


async def test_a_span_that_nothing_is_in_is_empty(world: CostWorld) -> None:
    await some_spending(world)
    later = world.clock.now() + timedelta(days=1)

    assert await list_charges(world, start_time=timestamp(later)) == (
        report_pb2.ListChargesResponse()
    )


async def test_counts_beyond_an_int64_fail_no_report(world: CostWorld) -> None:
    """A count of what is free is bounded by nothing, and an upstream may lie."""
    most = usage_pb2.Usage(calls=INT64_MAX)
    for number in range(2):
        await settle(world, number, most, item=RULES)

    (charge,) = (await list_charges(world)).charges
    rows = await list_spend(world, report_pb2.ListSpendRequest.DIMENSION_ITEM)

    assert charge.usage == rows.rows[0].usage == rows.total.usage == most


def forged(*place: str) -> str:
    """A token with the right digest, which is no secret."""
    return encode_token(place, "charges orgs/acme None None")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"page_size": -1}, "page_size"),
    ({"page_token": "x"}, "page_token"),
    ({"page_token": forged("2026-11-23", "a")}, "page_token"),
    ({"page_token": forged("2026-11-40", *"abcdef")}, "page_token"),
    ({"page_token": forged("", *"abcdef")}, "page_token"),
    ({"start_time": {"seconds": -1}}, "start_time"),
    ({"end_time": {"seconds": 2**60}}, "end_time"),
    ({"start_time": {"seconds": 9}, "end_time": {"seconds": 9}}, "end_time"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG)
async def test_wrong_parameters_are_named(
    world: CostWorld, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(RemitError) as caught:
        await list_charges(world, **fields)

    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert caught.value.violations[0].field == field


async def test_a_token_at_the_end_of_time_ends_the_list(world: CostWorld) -> None:
    await some_spending(world)

    response = await list_charges(world, page_token=forged("9999-12-31", *"abcdef"))

    assert response == report_pb2.ListChargesResponse()
