"""What stands under the key of an effect that may not begin now: it may have before."""

from __future__ import annotations

import asyncio

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.effects import EffectRequest, EffectResult, Permit
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.test_gate import FencesOnce, of_worker, state_of
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, lapse, replica
from tests.waiting import eventually

REFUSAL = RemitError(reasons.ERROR_REASON_SUSPICIOUS_INPUT, "the text contains an e-mail address")


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    return await database("tools")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def one(claims: Database, world: World) -> Replica:
    return replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)


async def reason(one: Replica, request: EffectRequest) -> int:
    with pytest.raises(RemitError) as caught:
        await one.gate.recorded(request, REFUSAL)
    return caught.value.reason


async def test_a_key_that_nobody_used_is_refused_and_not_claimed(
    one: Replica, world: World, claims: Database
) -> None:
    with a_call():
        assert await reason(one, a_request()) == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert await state_of(claims) == []
    assert (world.events, world.holds) == ({}, {})


async def test_what_was_done_is_told_and_another_body_is_not_it(one: Replica, world: World) -> None:
    with a_call():
        first = await one.gate.perform(a_request(), world.effect)
        again = await one.gate.recorded(a_request(), REFUSAL)
        assert await reason(one, a_request(body="other")) == reasons.ERROR_REASON_KEY_REUSED
    assert (again.payload, again.claim, again.replayed) == (first.payload, first.claim, True)
    assert sum(world.touched.values()) == 1


async def test_what_never_started_is_refused_and_not_tried_again(
    one: Replica, world: World, claims: Database
) -> None:
    world.denied = True
    with a_call():
        with pytest.raises(RemitError):
            await one.gate.perform(a_request(), world.effect)
        world.denied = False
        assert await reason(one, a_request()) == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert [attempt for attempt, _, _ in await state_of(claims)] == [1]
    assert not world.touched


async def test_what_is_under_way_is_waited_for_and_what_died_is_in_doubt(
    one: Replica, world: World, claims: Database
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(permit: Permit) -> EffectResult:
        begun.set()
        await go_on.wait()
        return await world.effect(permit)

    other = replica(ClaimStore(claims, owner="two", lease_s=LEASE_S), world)
    with a_call():
        first = asyncio.create_task(one.gate.perform(a_request(), slow))
        await begun.wait()
        assert await reason(other, a_request()) == reasons.ERROR_REASON_EFFECT_IN_PROGRESS
        assert await reason(one, a_request(body="other")) == reasons.ERROR_REASON_KEY_REUSED
        joined = asyncio.create_task(one.gate.recorded(a_request(), REFUSAL))
        await lapse(claims, "one")
        # Not refused: nobody knows yet that it did not happen.
        assert await reason(other, a_request()) == reasons.ERROR_REASON_EFFECT_IN_PROGRESS

        async def in_doubt() -> bool:
            await other.closer.sweep()
            return await state_of(claims) == [(1, "IN_DOUBT", True)]

        await eventually(in_doubt)
        assert await reason(other, a_request()) == reasons.ERROR_REASON_EFFECT_IN_DOUBT
        go_on.set()
        assert (await joined).claim == (await first).claim
    assert sum(world.touched.values()) == 1


async def test_a_new_worker_is_not_fenced_off_with_the_old_one_whom_it_joins(
    claims: Database,
) -> None:
    world = FencesOnce()
    one = replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)
    with a_call():
        old = asyncio.create_task(one.gate.perform(of_worker(1), world.effect))
        await asyncio.sleep(0)
        assert await reason(one, of_worker(2)) == reasons.ERROR_REASON_SUSPICIOUS_INPUT
        with pytest.raises(RemitError):
            await old
    assert not world.touched
