"""A hold that grows while its effect goes on: permission, then money, and the claim says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectResult, Outcome, Permit
from remit.effects.steps import Change, Extend
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down
from tests.monitoring.values import gained
from tests.waiting import eventually

Work = Callable[[Permit], Awaitable[None]]


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    """A database with the claim tables."""
    return await database("tools")


@pytest.fixture
def world() -> World:
    """Everything works at first."""
    return World()


@pytest.fixture
def one(claims: Database, world: World) -> Replica:
    """A replica of an enforcement service."""
    return replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)


def used(calls: int) -> usage_pb2.Usage:
    """Calls cost 100 nano-USD each here."""
    return usage_pb2.Usage(calls=calls)


async def performed(one: Replica, work: Work, calls: int) -> int:
    """What an effect cost that does `work` and used so many calls."""

    async def effect(permit: Permit) -> EffectResult:
        await work(permit)
        return EffectResult(Outcome.SUCCEEDED, used(calls), payload=b"answer")

    with a_call():
        outcome = await one.gate.perform(a_request(), effect)
    await settled_down(one)
    return outcome.cost_nanos


async def test_an_extension_raises_what_is_held_and_what_may_be_billed(
    one: Replica, world: World, claims: Database
) -> None:
    held = gained("remit_hold_extensions_total", action="tools.call", result="HELD")

    async def work(permit: Permit) -> None:
        assert permit.hold.nanos == 100
        await permit.hold.extend(used(3))
        assert (permit.hold.nanos, permit.hold.bound.calls) == (300, 3)
        assert await claims.fetchval("SELECT hold_nanos FROM effect_attempts") == 300
        (hold,) = world.holds.values()
        assert hold.hold_nanos == 300

    assert await performed(one, work, calls=4) == 300, "the fourth is not the caller's to pay"
    assert [question.continuing for question in world.questions] == [False, True]
    assert held() == 1


@pytest.mark.parametrize(
    ("trouble", "value", "reason"),
    [
        ("broke_at_nanos", 200, error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED),
        ("denied", True, error_reason_pb2.ERROR_REASON_PERMISSION_DENIED),
        ("of_another", True, error_reason_pb2.ERROR_REASON_FENCED),
        ("away", {"policy"}, error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    ],
)
async def test_what_is_refused_leaves_the_hold_as_it_was(
    one: Replica, world: World, trouble: str, value: object, reason: int
) -> None:
    async def work(permit: Permit) -> None:
        setattr(world, trouble, value)
        with pytest.raises(RemitError) as caught:
            await permit.hold.extend(used(3))
        assert caught.value.reason == reason
        assert (permit.hold.nanos, permit.hold.bound.calls) == (100, 1)
        world.away = set()

    assert await performed(one, work, calls=3) == 100
    assert world.open_holds() == []


@pytest.mark.parametrize("is_lost", [True, False])
async def test_what_was_not_answered_is_asked_for_again_before_a_bill_that_needs_it(
    one: Replica, world: World, *, is_lost: bool
) -> None:
    trouble, name = (world.deaf_to, "extend") if is_lost else (world.away, "cost")

    async def work(permit: Permit) -> None:
        trouble.add(name)
        with pytest.raises(RemitError) as caught:
            await permit.hold.extend(used(3))
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        assert permit.hold.nanos == 100
        trouble.clear()

    assert await performed(one, work, calls=2) == 200, "what is told is what is posted"


async def test_a_claim_that_lapsed_meanwhile_extends_nothing_more(
    one: Replica, claims: Database
) -> None:
    async def work(permit: Permit) -> None:
        await claims.execute("UPDATE effect_attempts SET state = 'IN_DOUBT', outcome = 'IN_DOUBT'")
        with pytest.raises(RemitError) as caught:
            await permit.hold.extend(used(3))
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS

    await performed(one, work, calls=1)


async def test_a_hold_that_a_sweeper_posted_extends_nothing_more(
    one: Replica, world: World, claims: Database
) -> None:
    async def work(permit: Permit) -> None:
        await claims.execute("UPDATE effect_attempts SET lease_expires = clock_timestamp()")
        other = replica(ClaimStore(claims, owner="two", lease_s=LEASE_S), world)

        async def posted() -> bool:
            await other.closer.sweep()
            return not world.open_holds()

        await eventually(posted)
        with pytest.raises(RemitError) as caught:
            await permit.hold.extend(used(3))
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS

    await performed(one, work, calls=1)


class Forgetful(ClaimStore):
    """Its database is away whenever a hold has grown."""

    async def change(self, change: Change) -> bool:
        if isinstance(change, Extend):
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        return await super().change(change)


async def test_a_note_that_cannot_be_written_stops_nothing(world: World, claims: Database) -> None:
    one = replica(Forgetful(claims, owner="one", lease_s=LEASE_S), world)

    async def work(permit: Permit) -> None:
        await permit.hold.extend(used(3))
        assert permit.hold.nanos == 300

    with capture_logs() as logs:
        assert await performed(one, work, calls=3) == 300
    assert "hold_not_recorded" in {entry["event"] for entry in logs}


async def test_the_newest_worker_s_remit_is_asked_about_and_the_most_patient_waits(
    one: Replica, world: World
) -> None:
    run = "runs/01980000-0000-7000-8000-000000000000"
    begun, joined = asyncio.Event(), asyncio.Event()
    deadlines = []

    async def effect(permit: Permit) -> EffectResult:
        deadlines.append(permit.deadline)
        begun.set()
        await joined.wait()
        deadlines.append(permit.deadline)
        await permit.hold.recheck()
        return EffectResult(Outcome.SUCCEEDED, used(1), payload=b"answer")

    def of_worker(fencing_token: int) -> Awaitable[object]:
        request = a_request()
        remit = replace(request.remit, run=run, fencing_token=fencing_token)
        asked = replace(request, remit=remit, remit_token=f"token-{fencing_token}")
        return one.gate.perform(asked, effect)

    with a_call(seconds=20):
        old = asyncio.ensure_future(of_worker(1))
        await begun.wait()
    with a_call(seconds=40):
        new = asyncio.ensure_future(of_worker(2))
        await asyncio.sleep(0)
    joined.set()
    await asyncio.gather(old, new)
    await settled_down(one)
    assert [question.remit for question in world.questions] == ["token-1", "token-2"]
    assert deadlines[1] > deadlines[0] + 10
