"""ListReservations: the ledger key by key, of a run or as a whole, for services alone."""

from __future__ import annotations

from typing import Any

import pytest

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.claim_world import ClaimWorld
from tests.cost.services import CALCULATOR, CALCULATOR_NANOS, claim_of, run_of

AGENT, AUDIT = options_pb2.CALLER_AGENT, options_pb2.CALLER_AUDIT
State = reservation_pb2.Reservation


@pytest.fixture
async def world(database: OpenDatabase) -> ClaimWorld:
    return await ClaimWorld.open(database)


async def listed(
    world: ClaimWorld, caller: Any = AUDIT, **fields: Any
) -> report_pb2.ListReservationsResponse:
    request = report_pb2.ListReservationsRequest(**fields)
    return await world.reports(caller).ListReservations(request)


def key(number: int) -> attempt_pb2.AttemptKey:
    return attempt_pb2.AttemptKey(claim=claim_of(number), attempt=1)


async def test_the_ledger_is_listed_span_by_span(world: ClaimWorld) -> None:
    for number in (3, 1, 2):
        await world.hold(number, calls=number)
    await world.settle(2, calls=1)
    first = await listed(world, page_size=2)
    assert [record.key for record in first.records] == [key(1), key(2)]
    assert first.has_more
    assert first.read_time.seconds > 0
    held, settled = first.records
    assert (held.service, held.reservation.item) == ("tools", CALCULATOR)
    assert held.reservation.hold_nanos == CALCULATOR_NANOS
    assert not held.HasField("used")
    assert not held.HasField("close_time")
    assert settled.reservation.state == State.STATE_SETTLED
    assert (settled.reservation.posted_nanos, settled.used.calls) == (CALCULATOR_NANOS, 1)
    assert settled.HasField("close_time")
    assert settled.price_source
    rest = await listed(world, after=key(2))
    assert [record.key for record in rest.records] == [key(3)]
    assert not rest.has_more
    span = await listed(world, after=key(1), through=key(2))
    assert [record.key for record in span.records] == [key(2)]


async def test_a_runs_reservations_are_those_of_its_org_alone(world: ClaimWorld) -> None:
    await world.hold(1)
    of_run = world.reserve_request(2, token=world.run_token(7))
    await world.cost().ReserveBudget(of_run)
    found = await listed(world, AGENT, run=run_of(7), org="orgs/acme")
    assert [record.key for record in found.records] == [key(2)]
    assert not (await listed(world, AGENT, run=run_of(7), org="orgs/other")).records
    assert not (await listed(world, AGENT, run=run_of(8), org="orgs/acme")).records


@pytest.mark.parametrize(
    "fields",
    [
        {"run": "runs/x", "org": "orgs/acme"},
        {"run": run_of(1)},
        {"org": "orgs/acme"},
        {"page_size": -1},
        {"after": attempt_pb2.AttemptKey(claim="claims/x", attempt=1)},
        {"through": attempt_pb2.AttemptKey(claim=claim_of(1))},
    ],
)
async def test_what_is_no_span_is_refused(world: ClaimWorld, fields: dict[str, Any]) -> None:
    with pytest.raises(RemitError) as caught:
        await listed(world, **fields)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_a_client_may_not_ask(world: ClaimWorld) -> None:
    with pytest.raises(RemitError) as caught:
        await listed(world, options_pb2.CALLER_PUBLIC)
    assert caught.value.reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED
