"""CostService through the contract: who may hold whose money, and what is answered."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable
from typing import Any

import pytest

from remit.api.cost.v1 import cost_service_pb2, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError
from tests.cost.services import (
    ALICE,
    CALCULATOR_NANOS,
    CORE,
    EFFECT_SERVICES,
    CostWorld,
    claim_of,
    run_of,
)

HELD = reservation_pb2.Reservation.STATE_HELD
SETTLED = reservation_pb2.Reservation.STATE_SETTLED
RELEASED = reservation_pb2.Reservation.STATE_RELEASED


def settle_request(
    number: int, calls: int | None = 1, attempt: int = 1
) -> cost_service_pb2.SettleReservationRequest:
    return cost_service_pb2.SettleReservationRequest(
        claim=claim_of(number),
        attempt=attempt,
        used=None if calls is None else usage_pb2.Usage(calls=calls),
        whole_hold=calls is None,
    )


def release_request(number: int) -> cost_service_pb2.ReleaseReservationRequest:
    return cost_service_pb2.ReleaseReservationRequest(claim=claim_of(number), attempt=1)


async def test_many_holds_are_raised_each_on_its_own(world: CostWorld) -> None:
    for number in (1, 2):
        await world.cost().ReserveBudget(world.reserve_request(number))
    requests = [extend_request(1, 5), extend_request(3, 5), extend_request(2, 2)]
    batch = cost_service_pb2.BatchExtendReservationsRequest(requests=requests)
    first, missing, second = (await world.cost().BatchExtendReservations(batch)).results
    assert (first.reservation.hold_nanos, second.reservation.hold_nanos) == (5_000, 2_000)
    found = RemitError.from_status(missing.error)
    assert found.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    empty = cost_service_pb2.BatchExtendReservationsRequest()
    with pytest.raises(RemitError, match="holds 0 requests"):
        await world.cost().BatchExtendReservations(empty)


def extend_request(number: int, calls: int) -> cost_service_pb2.ExtendReservationRequest:
    return cost_service_pb2.ExtendReservationRequest(
        claim=claim_of(number), attempt=1, bound=usage_pb2.Usage(calls=calls)
    )


async def reserved(world: CostWorld, number: int, calls: int = 1) -> reservation_pb2.Reservation:
    response = await world.cost().ReserveBudget(world.reserve_request(number, calls=calls))
    return response.reservation


# --------------------------------------------------------------------------------- the whole way


async def test_a_hold_is_made_raised_and_settled(world: CostWorld) -> None:
    held = await reserved(world, 1, calls=2)
    larger = await world.cost().ExtendReservation(extend_request(1, 5))
    settled = await world.cost().SettleReservation(settle_request(1, 3))

    assert held.name == "reservations/00000000-0000-0000-0000-000000000001-1"
    assert held.account == f"{ALICE}/agents/assistant/{run_of(1)}"
    assert (held.state, held.hold_nanos) == (HELD, 2 * CALCULATOR_NANOS)
    assert held.price.call_nanos == CALCULATOR_NANOS
    assert held.create_time.ToDatetime().date() == world.clock.now().date()
    assert larger.reservation.hold_nanos == 5 * CALCULATOR_NANOS
    assert settled.reservation.state == SETTLED
    assert settled.reservation.posted_nanos == 3 * CALCULATOR_NANOS


async def test_a_hold_is_released(world: CostWorld) -> None:
    await reserved(world, 1)

    response = await world.cost().ReleaseReservation(release_request(1))

    assert (response.reservation.state, response.reservation.posted_nanos) == (RELEASED, 0)


async def test_an_effect_in_doubt_is_charged_its_whole_hold(world: CostWorld) -> None:
    await reserved(world, 1, calls=4)

    response = await world.cost().SettleReservation(settle_request(1, None))

    assert response.reservation.posted_nanos == 4 * CALCULATOR_NANOS


async def test_four_times_the_bound_goes_to_the_operator(world: CostWorld) -> None:
    await reserved(world, 1, calls=1)

    response = await world.cost().SettleReservation(settle_request(1, 4))

    assert response.reservation.posted_nanos == CALCULATOR_NANOS
    assert response.reservation.overrun_nanos == 3 * CALCULATOR_NANOS


async def test_batches_answer_each_on_its_own_and_in_order(world: CostWorld) -> None:
    cost = world.cost()
    broken = world.reserve_request(2)
    broken.remit = "not a remit"
    response = await cost.BatchReserveBudgets(
        cost_service_pb2.BatchReserveBudgetsRequest(
            requests=[world.reserve_request(1), broken, world.reserve_request(3)]
        )
    )
    settled = await cost.BatchSettleReservations(
        cost_service_pb2.BatchSettleReservationsRequest(
            requests=[settle_request(1), settle_request(2), settle_request(2, -1)]
        )
    )
    released = await cost.BatchReleaseReservations(
        cost_service_pb2.BatchReleaseReservationsRequest(
            requests=[release_request(1), release_request(3)]
        )
    )

    assert [result.WhichOneof("result") for result in response.results] == [
        "reservation",
        "error",
        "reservation",
    ]
    errors = [RemitError.from_status(result.error).reason for result in settled.results[1:]]
    assert settled.results[0].reservation.state == SETTLED
    assert errors == [
        reasons.ERROR_REASON_RESOURCE_NOT_FOUND,
        reasons.ERROR_REASON_INVALID_REQUEST,
    ]
    assert RemitError.from_status(released.results[0].error).reason == (
        reasons.ERROR_REASON_RESERVATION_CLOSED
    )
    assert released.results[1].reservation.state == RELEASED


async def test_a_batch_is_decided_in_its_own_order_though_a_price_is_slow(
    world: CostWorld,
) -> None:
    """The first item's price comes from the public list, in a thread; it must still go first."""
    await asyncio.to_thread(importlib.import_module, "genai_prices")  # takes over a second
    token = world.run_token(max_cost_nanos=300)
    slow = world.reserve_request(1, token=token, item="models/mini")
    slow.list_item = "openai/gpt-5-mini"
    slow.bound.CopyFrom(usage_pb2.Usage(input_tokens=1, calls=1))
    then = world.reserve_request(2, token=token, item="models/builtin-rules")
    then.bound.CopyFrom(usage_pb2.Usage(input_tokens=2, calls=1))

    response = await world.cost(options_pb2.CALLER_INFERENCE).BatchReserveBudgets(
        cost_service_pb2.BatchReserveBudgetsRequest(requests=[slow, then])
    )

    assert response.results[0].reservation.hold_nanos == 250
    refused = RemitError.from_status(response.results[1].error)
    assert refused.metadata["left_nanos"] == "50"


# ------------------------------------------------------------------------------- whose money it is


async def test_the_account_is_that_of_the_remit(world: CostWorld) -> None:
    token = world.run_token(7, team=CORE)

    response = await world.cost().ReserveBudget(world.reserve_request(1, token=token))

    assert response.reservation.account == (f"{CORE}/users/alice/agents/assistant/{run_of(7)}")


async def test_a_sub_run_spends_the_limits_of_every_run_above_it(world: CostWorld) -> None:
    top, middle = (1, 3 * CALCULATOR_NANOS), (2, None)
    first = world.run_token(3, below=[top, middle], max_cost_nanos=2 * CALCULATOR_NANOS)
    second = world.run_token(4, below=[top, middle], max_cost_nanos=2 * CALCULATOR_NANOS)
    held = await world.cost().ReserveBudget(world.reserve_request(1, calls=2, token=first))
    assert held.reservation.account.endswith(
        f"{run_of(1)}/agents/assistant/{run_of(2)}/agents/assistant/{run_of(3)}"
    )

    with pytest.raises(RemitError) as caught:
        await world.cost().ReserveBudget(world.reserve_request(2, calls=2, token=second))

    assert caught.value.metadata["account"].endswith(run_of(1))
    assert caught.value.metadata["left_nanos"] == str(CALCULATOR_NANOS)
    await world.cost().ReserveBudget(world.reserve_request(3, calls=1, token=second))
    own = world.run_token(1, max_cost_nanos=3 * CALCULATOR_NANOS)
    with pytest.raises(RemitError, match="0 nano-USD left"):
        await world.cost().ReserveBudget(world.reserve_request(4, token=own))


async def test_a_client_without_a_run_pays_from_its_own_account(world: CostWorld) -> None:
    response = await world.cost().ReserveBudget(
        world.reserve_request(1, token=world.client_token())
    )

    assert response.reservation.account == ALICE


async def test_a_run_cannot_spend_more_than_its_remit_carries(world: CostWorld) -> None:
    token = world.run_token(max_cost_nanos=2 * CALCULATOR_NANOS)
    await world.cost().ReserveBudget(world.reserve_request(1, calls=2, token=token))

    with pytest.raises(RemitError) as caught:
        await world.cost().ReserveBudget(world.reserve_request(2, calls=1, token=token))

    assert caught.value.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert caught.value.quota[0].subject.endswith(run_of(1))
    assert caught.value.retry_after_s is None


async def test_a_renewed_remit_repeats_the_same_request(world: CostWorld) -> None:
    first = await world.cost().ReserveBudget(world.reserve_request(1))
    world.clock.move(seconds=60)
    renewed = await world.cost().ReserveBudget(world.reserve_request(1))

    assert renewed == first


@pytest.mark.parametrize("audience", EFFECT_SERVICES - {options_pb2.CALLER_INFERENCE})
async def test_a_remit_must_be_meant_for_cost_and_for_the_service_that_shows_it(
    world: CostWorld, audience: options_pb2.Caller.ValueType
) -> None:
    token = world.run_token(audience=EFFECT_SERVICES - {audience})

    with pytest.raises(RemitError, match=r"not meant for (cost|tools)") as caught:
        await world.cost().ReserveBudget(world.reserve_request(1, token=token))

    assert caught.value.reason == reasons.ERROR_REASON_REMIT_INVALID


async def test_an_expired_remit_starts_nothing_but_what_is_held_is_settled(
    world: CostWorld,
) -> None:
    token = world.run_token(lifetime_s=60)
    await world.cost().ReserveBudget(world.reserve_request(1, token=token))
    world.clock.move(seconds=120)

    with pytest.raises(RemitError, match="the remit expired"):
        await world.cost().ReserveBudget(world.reserve_request(2, token=token))
    settled = await world.cost().SettleReservation(settle_request(1))

    assert settled.reservation.state == SETTLED


async def test_only_the_service_that_reserved_may_go_on(world: CostWorld) -> None:
    await reserved(world, 1)
    inference = world.cost(options_pb2.CALLER_INFERENCE)

    for call in (
        inference.SettleReservation(settle_request(1)),
        inference.ReleaseReservation(release_request(1)),
        inference.ExtendReservation(extend_request(1, 2)),
    ):
        with pytest.raises(RemitError) as caught:
            await call
        assert caught.value.reason == reasons.ERROR_REASON_PERMISSION_DENIED


async def test_others_have_no_door_here(world: CostWorld) -> None:
    for caller in (options_pb2.CALLER_PUBLIC, options_pb2.CALLER_AGENT):
        with pytest.raises(RemitError) as caught:
            await world.cost(caller).ReserveBudget(world.reserve_request(1))

        assert caught.value.reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED


# ---------------------------------------------------------------------------------- same key again


async def test_the_same_claim_and_attempt_with_another_body_is_refused(world: CostWorld) -> None:
    await reserved(world, 1)
    others = [
        world.reserve_request(1, calls=2),
        world.reserve_request(1, item="tools/clock"),
        world.reserve_request(1, token=world.run_token(2)),
    ]

    for other in others:
        with pytest.raises(RemitError) as caught:
            await world.cost().ReserveBudget(other)
        assert caught.value.reason == reasons.ERROR_REASON_KEY_REUSED


async def test_a_late_reserve_finds_the_tombstone(world: CostWorld) -> None:
    tombstone = await world.cost().ReleaseReservation(release_request(1))

    with pytest.raises(RemitError) as caught:
        await reserved(world, 1)

    assert (tombstone.reservation.state, tombstone.reservation.account) == (RELEASED, "")
    assert caught.value.reason == reasons.ERROR_REASON_RESERVATION_CLOSED


# --------------------------------------------------------------------------------------- bad input


async def test_every_violation_of_a_reserve_is_listed(world: CostWorld) -> None:
    request = cost_service_pb2.ReserveBudgetRequest(
        remit=world.run_token(),
        claim="claims/1",
        attempt=0,
        item="calculator",
        list_item="x" * 201,
        bound=usage_pb2.Usage(input_tokens=-1, cached_input_tokens=5, calls=-2),
    )

    with pytest.raises(RemitError) as caught:
        await world.cost().ReserveBudget(request)

    assert [violation.field for violation in caught.value.violations] == [
        "claim",
        "attempt",
        "item",
        "list_item",
        "bound.input_tokens",
        "bound.calls",
        "bound.cached_input_tokens",
    ]


WRONG_SETTLEMENTS = [
    (settle_request(1, -1), "used.calls"),
    (cost_service_pb2.SettleReservationRequest(claim=claim_of(1), attempt=1), "used"),
    (settle_request(1, attempt=-1), "attempt"),
    (cost_service_pb2.SettleReservationRequest(attempt=1, whole_hold=True), "claim"),
]


async def test_a_wrong_settlement_is_refused_and_the_hold_stays(world: CostWorld) -> None:
    await reserved(world, 1)

    for request, field in WRONG_SETTLEMENTS:
        with pytest.raises(RemitError) as caught:
            await world.cost().SettleReservation(request)
        assert [violation.field for violation in caught.value.violations] == [field]
    assert (await world.cost().SettleReservation(settle_request(1))).reservation.state == SETTLED


async def test_wrong_names_are_refused_everywhere(world: CostWorld) -> None:
    cost = world.cost()
    calls: list[Awaitable[Any]] = [
        cost.ExtendReservation(cost_service_pb2.ExtendReservationRequest(claim="x", attempt=1)),
        cost.ReleaseReservation(cost_service_pb2.ReleaseReservationRequest(claim="x", attempt=1)),
    ]

    for call in calls:
        with pytest.raises(RemitError) as caught:
            await call
        assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


@pytest.mark.parametrize("count", [0, 257])
async def test_a_batch_holds_1_to_256(world: CostWorld, count: int) -> None:
    cost = world.cost()
    calls: list[Awaitable[Any]] = [
        cost.BatchReserveBudgets(
            cost_service_pb2.BatchReserveBudgetsRequest(
                requests=[cost_service_pb2.ReserveBudgetRequest()] * count
            )
        ),
        cost.BatchSettleReservations(
            cost_service_pb2.BatchSettleReservationsRequest(requests=[settle_request(1)] * count)
        ),
        cost.BatchReleaseReservations(
            cost_service_pb2.BatchReleaseReservationsRequest(requests=[release_request(1)] * count)
        ),
    ]

    for call in calls:
        with pytest.raises(RemitError, match=f"holds {count} requests"):
            await call


async def test_an_unknown_price_is_refused_by_name(world: CostWorld) -> None:
    request = world.reserve_request(1, item="models/mystery")

    with pytest.raises(RemitError) as caught:
        await world.cost(options_pb2.CALLER_INFERENCE).ReserveBudget(request)

    assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
    assert "models/mystery" in caught.value.message


async def test_a_cost_beyond_int64_is_refused(world: CostWorld) -> None:
    with pytest.raises(RemitError, match="more than the 9223372036854775807"):
        await world.cost().ReserveBudget(world.reserve_request(1, calls=2**62))


async def test_200_callers_of_one_service_share_the_money_exactly(world: CostWorld) -> None:
    token = world.run_token(max_cost_nanos=37 * CALCULATOR_NANOS + 1)

    results = await asyncio.gather(
        *(world.cost().ReserveBudget(world.reserve_request(n, token=token)) for n in range(200)),
        return_exceptions=True,
    )

    passed = [r for r in results if isinstance(r, cost_service_pb2.ReserveBudgetResponse)]
    refused = [r for r in results if isinstance(r, RemitError)]
    assert (len(passed), len(refused)) == (37, 163)
    assert {error.reason for error in refused} == {reasons.ERROR_REASON_BUDGET_EXHAUSTED}
