"""The gate against a real database: what it lets happen, records, replays and refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectRequest, EffectResult, Outcome, Permit
from remit.effects.claims import Admission
from remit.effects.gate import _begin
from remit.effects.statements import INSERT_NEXT
from remit.effects.steps import Begun, Change, Finish
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down
from tests.waiting import eventually

DECISION_HOLDS_S = 8.0
"""Of the ten seconds that the world's policy gives; a lease is longer."""


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
    """A replica of the tools service."""
    return replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)


async def state_of(claims: Database) -> list[tuple[int, str, bool]]:
    """Attempt, state and whether it is closed, of every attempt."""
    rows = await claims.fetch(
        "SELECT attempt, state, closed_time IS NOT NULL AS closed FROM effect_attempts"
        " ORDER BY claim, attempt"
    )
    return [(row["attempt"], row["state"], row["closed"]) for row in rows]


async def test_an_effect_is_done_recorded_settled_and_closed(
    one: Replica, world: World, claims: Database
) -> None:
    with a_call():
        outcome = await one.gate.perform(a_request(), world.effect)
    assert (outcome.payload, outcome.cost_nanos, outcome.replayed) == (b"answer", 100, False)
    await settled_down(one)
    assert await state_of(claims) == [(1, "CLOSED", True)]
    assert world.open_holds() == []
    assert [event.kind for event in world.events.values()] == [
        event_pb2.EVENT_KIND_INTENT,
        event_pb2.EVENT_KIND_OUTCOME,
    ]
    assert world.faults == []


async def test_the_same_key_replays_and_touches_nothing(one: Replica, world: World) -> None:
    with a_call():
        first = await one.gate.perform(a_request(), world.effect)
        again = await one.gate.perform(a_request(), world.effect)
    assert (again.payload, again.replayed, again.claim) == (first.payload, True, first.claim)
    assert sum(world.touched.values()) == 1


async def test_the_same_key_with_another_body_is_refused(one: Replica, world: World) -> None:
    with a_call():
        await one.gate.perform(a_request(), world.effect)
        with pytest.raises(RemitError) as caught:
            await one.gate.perform(a_request(body="other"), world.effect)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_a_hundred_equal_calls_touch_the_world_once(
    one: Replica, world: World, claims: Database
) -> None:
    other = replica(ClaimStore(claims, owner="two", lease_s=LEASE_S), world)
    with a_call():
        results = await asyncio.gather(
            *(r.gate.perform(a_request(), world.effect) for r in [one, other] * 50),
            return_exceptions=True,
        )
    assert sum(world.touched.values()) == 1
    for result in results:
        if isinstance(result, RemitError):
            assert result.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS
            assert result.retry_after_s
    assert any(not isinstance(result, BaseException) for result in results)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("denied", error_reason_pb2.ERROR_REASON_PERMISSION_DENIED),
        ("out_of_money", error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED),
    ],
)
async def test_a_refusal_touches_nothing_and_may_be_asked_again(
    one: Replica, world: World, claims: Database, trouble: str, reason: int
) -> None:
    setattr(world, trouble, True)
    with a_call():
        with pytest.raises(RemitError) as caught:
            await one.gate.perform(a_request(), world.effect)
        assert caught.value.reason == reason
        await settled_down(one)
        assert await state_of(claims) == [(1, "REFUSED", True)]
        assert world.open_holds() == []
        setattr(world, trouble, False)
        outcome = await one.gate.perform(a_request(), world.effect)
    assert outcome.attempt == 2
    assert sum(world.touched.values()) == 1


@pytest.mark.parametrize("area", ["policy", "cost", "audit"])
async def test_without_one_of_the_three_nothing_starts(
    one: Replica, world: World, claims: Database, area: str
) -> None:
    world.away = {area}
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(a_request(), world.effect)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert not world.touched
    await settled_down(one)
    world.away = set()

    async def closed() -> bool:
        await one.closer.sweep()
        return await state_of(claims) == [(1, "REFUSED", True)]

    await eventually(closed)
    assert world.open_holds() == []


async def test_a_failure_is_replayed_as_the_same_failure(one: Replica, world: World) -> None:
    async def fail(_: Permit) -> EffectResult:
        world.touched["failures"] += 1
        error = RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, "no such file")
        return EffectResult(Outcome.FAILED, usage_pb2.Usage(calls=1), error=error)

    with a_call():
        for _ in range(2):
            with pytest.raises(RemitError, match="no such file") as caught:
                await one.gate.perform(a_request(), fail)
            assert caught.value.metadata["cost_nanos"] == "100"
    assert world.touched["failures"] == 1


async def test_a_failure_that_may_pass_is_tried_as_a_new_attempt(
    one: Replica, world: World, claims: Database
) -> None:
    async def overloaded(_: Permit) -> EffectResult:
        error = RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "429")
        return EffectResult(Outcome.FAILED, usage_pb2.Usage(), error=error)

    with a_call():
        with pytest.raises(RemitError, match="429"):
            await one.gate.perform(a_request(), overloaded)
        outcome = await one.gate.perform(a_request(), world.effect)
    assert outcome.attempt == 2
    await settled_down(one)
    assert await state_of(claims) == [(1, "CLOSED", True), (2, "CLOSED", True)]


async def test_when_every_caller_leaves_the_effect_is_stopped_and_billed(
    one: Replica, world: World, claims: Database
) -> None:
    begun = asyncio.Event()

    async def slow(permit: Permit) -> EffectResult:
        begun.set()
        await permit.stopping.wait()
        error = RemitError(error_reason_pb2.ERROR_REASON_CANCELLED, "stopped")
        return EffectResult(Outcome.CANCELLED, usage_pb2.Usage(calls=1), error=error)

    with a_call():
        call = asyncio.create_task(one.gate.perform(a_request(), slow))
        await begun.wait()
        call.cancel()
        await asyncio.wait({call})
        await settled_down(one)
        assert await state_of(claims) == [(1, "CLOSED", True)]
        again = await one.gate.perform(a_request(), world.effect)
    assert again.attempt == 2, "a cancelled result is never replayed as an answer"


async def test_an_effect_that_ignores_the_stop_is_ended_and_billed_its_bound(
    one: Replica, claims: Database
) -> None:
    await cut_off(one, idempotent=True)
    row = await claims.fetchrow("SELECT outcome, cost_nanos FROM effect_attempts")
    assert row is not None
    assert (row["outcome"], row["cost_nanos"]) == ("CANCELLED", 100)


async def test_a_late_result_resolves_a_doubt_once(
    one: Replica, world: World, claims: Database
) -> None:
    go_on = asyncio.Event()
    begun = asyncio.Event()

    async def frozen(permit: Permit) -> EffectResult:
        begun.set()
        await go_on.wait()
        return await world.effect(permit)

    with a_call():
        call = asyncio.create_task(one.gate.perform(a_request(), frozen))
        await begun.wait()
        await claims.execute("UPDATE effect_attempts SET lease_expires = clock_timestamp()")
        other = replica(ClaimStore(claims, owner="two", lease_s=LEASE_S), world)

        async def in_doubt() -> bool:
            await other.closer.sweep()
            return await state_of(claims) == [(1, "IN_DOUBT", True)]

        await eventually(in_doubt)
        with pytest.raises(RemitError) as caught:
            await other.gate.perform(a_request(), world.effect)
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
        world.faults.clear()
        go_on.set()
        await call
        again = await other.gate.perform(a_request(), world.effect)
    assert again.replayed
    assert sum(world.touched.values()) == 1
    await settled_down(one)
    assert await state_of(claims) == [(1, "CLOSED", True)]
    assert len(world.events) == 3, "intent, doubt, and the late result"


async def test_a_lapsed_owner_starts_nothing(one: Replica, world: World, claims: Database) -> None:
    class Slow(World):
        def check_up(self, area: str) -> None:
            if area == "policy":
                taken.set()

    taken = asyncio.Event()
    slow = replica(one.store, Slow())

    async def steal() -> None:
        await taken.wait()
        await claims.execute("UPDATE effect_attempts SET state = 'REFUSED', outcome = 'REFUSED'")

    with a_call():
        thief = asyncio.create_task(steal())
        results = await asyncio.gather(
            slow.gate.perform(a_request(), world.effect), return_exceptions=True
        )
        await thief
    # Either the thief came first and nothing was done, or it came too late to change a fact.
    if isinstance(results[0], RemitError):
        assert not world.touched


class Ahead(SystemClock):
    """The clock of a process that stood still after it had asked for its permits."""

    def monotonic(self) -> float:
        return super().monotonic() + DECISION_HOLDS_S


async def test_a_decision_that_ran_out_meanwhile_is_not_acted_on(
    one: Replica, world: World, claims: Database
) -> None:
    one.gate._clock = Ahead()
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(a_request(), world.effect)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS
    await settled_down(one)
    assert await state_of(claims) == [(1, "REFUSED", True)]
    assert (sum(world.touched.values()), world.open_holds()) == (0, [])


async def cut_off(one: Replica, *, idempotent: bool) -> None:
    """Performs an effect that does not end when it is asked to."""
    begun = asyncio.Event()

    async def deaf(_: Permit) -> EffectResult:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with a_call():
        call = asyncio.create_task(one.gate.perform(a_request(idempotent=idempotent), deaf))
        await begun.wait()
        call.cancel()
        await asyncio.wait({call})
    await settled_down(one)


async def test_what_was_cut_off_and_may_not_happen_twice_is_in_doubt(
    one: Replica, world: World, claims: Database
) -> None:
    await cut_off(one, idempotent=False)
    row = await claims.fetchrow("SELECT outcome, cost_nanos FROM effect_attempts")
    assert row is not None
    assert (row["outcome"], row["cost_nanos"]) == ("IN_DOUBT", 100)
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(a_request(), world.effect)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
    assert not world.touched, "how far the first attempt came is unknown"


async def test_a_passing_error_that_an_effect_raised_does_not_repeat_it(
    one: Replica, world: World
) -> None:
    async def lose_the_answer(permit: Permit) -> EffectResult:
        await world.effect(permit)
        raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "no answer came")

    with a_call():
        for effect in (lose_the_answer, world.effect):
            with pytest.raises(RemitError) as caught:
                await one.gate.perform(a_request(), effect)
            assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
    assert sum(world.touched.values()) == 1


async def test_two_replicas_may_repeat_at_the_same_moment(
    one: Replica, world: World, claims: Database
) -> None:
    await cut_off(one, idempotent=True)
    first = await claims.fetchrow("SELECT claim, body_digest FROM effect_claims")
    assert first is not None
    request = a_request(idempotent=True)
    asked = _begin(request, "01890a5d-ac96-774b-bcce-b302099a8057", "0" * 32)
    async with claims.acquire() as other:
        repeat = other.transaction()
        await repeat.start()
        await other.fetchval(INSERT_NEXT, first["claim"], "two", timedelta(seconds=5), *[""] * 5)

        async def look() -> Begun:
            async with claims.transaction() as connection:
                return await one.store._look(connection, asked)

        looking = asyncio.create_task(look())
        await eventually(lambda: waits_for_a_lock(claims))
        await repeat.commit()
    assert (await looking).admission is Admission.IN_PROGRESS


async def waits_for_a_lock(database: Database) -> bool:
    return bool(
        await database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
            " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
        )
    )


async def test_a_usage_that_cannot_be_is_taken_as_the_bound(
    one: Replica, world: World, claims: Database
) -> None:
    async def miscount(permit: Permit) -> EffectResult:
        await world.effect(permit)
        return EffectResult(Outcome.SUCCEEDED, usage_pb2.Usage(calls=-1), payload=b"answer")

    with a_call():
        outcome = await one.gate.perform(a_request(), miscount)
    assert (outcome.payload, outcome.used.calls, outcome.cost_nanos) == (b"answer", 1, 100)
    await settled_down(one)
    assert await state_of(claims) == [(1, "CLOSED", True)]


class FencesOnce(World):
    """Policy tells the first caller that the run is another worker's by now."""

    fenced = False

    def check_up(self, area: str) -> None:
        if area == "policy" and not self.fenced:
            self.fenced = True
            raise RemitError(error_reason_pb2.ERROR_REASON_FENCED, "token 1 is too low")


def of_worker(fencing_token: int) -> EffectRequest:
    """The call of a run's worker."""
    request = a_request()
    run = "runs/01980000-0000-7000-8000-000000000000"
    return replace(request, remit=replace(request.remit, run=run, fencing_token=fencing_token))


async def together(one: Replica, world: World, *tokens: int) -> list[bool]:
    """Which of the workers, who ask in this order and at once, were answered."""
    with a_call():
        results = await asyncio.gather(
            *(one.gate.perform(of_worker(token), world.effect) for token in tokens),
            return_exceptions=True,
        )
    await settled_down(one)
    for result in results:
        assert not isinstance(result, RemitError) or (
            result.reason == error_reason_pb2.ERROR_REASON_FENCED
        )
    return [not isinstance(result, BaseException) for result in results]


async def test_a_new_worker_that_joins_its_fenced_predecessor_asks_for_itself(
    claims: Database,
) -> None:
    world = FencesOnce()
    one = replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)
    assert await together(one, world, 1, 2, 2) == [False, True, True]
    assert sum(world.touched.values()) == 1
    assert world.faults == []


async def test_a_worker_with_the_fenced_token_shares_its_end(claims: Database) -> None:
    world = FencesOnce()
    one = replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)
    assert await together(one, world, 2, 2, 1) == [False, False, False]
    assert not world.touched


class LosesTheAnswer(ClaimStore):
    """Commits a result, once, without saying so."""

    lost = False

    async def change(self, change: Change) -> bool:
        done = await super().change(change)
        if isinstance(change, Finish) and not self.lost:
            self.lost = True
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "no answer")
        return done


async def test_a_result_whose_commit_was_not_told_is_no_error(
    world: World, claims: Database
) -> None:
    one = replica(LosesTheAnswer(claims, owner="one", lease_s=LEASE_S), world)
    with capture_logs() as logs, a_call():
        outcome = await one.gate.perform(a_request(), world.effect)
    assert outcome.payload == b"answer"
    warned = {entry["event"] for entry in logs if entry["log_level"] != "debug"}
    assert warned == {"result_not_recorded_yet"}
    await settled_down(one)
    assert await state_of(claims) == [(1, "CLOSED", True)]


async def test_a_result_without_its_claim_is_an_error(
    one: Replica, world: World, claims: Database
) -> None:
    async def loses_its_claim(permit: Permit) -> EffectResult:
        await claims.execute("UPDATE effect_attempts SET owner = 'another'")
        return await world.effect(permit)

    with capture_logs() as logs, a_call():
        await one.gate.perform(a_request(), loses_its_claim)
    assert "result_had_no_claim" in {entry["event"] for entry in logs}
