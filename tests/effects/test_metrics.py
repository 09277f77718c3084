"""Each metric of effects moves when its thing happens, and only then."""

from __future__ import annotations

import asyncio

import pytest

from remit.effects import EffectResult, EffectSettings, Permit, metrics, standing_effects
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, World, a_call, a_request, lapse, replica, settled_down
from tests.monitoring.values import gained, value
from tests.waiting import eventually, in_time

ACTION = "tools.call"


async def test_a_performed_effect_is_counted_once_and_a_replay_apart(
    database: OpenDatabase,
) -> None:
    world = World()
    here = replica(ClaimStore(await database("tools"), owner="here", lease_s=LEASE_S), world)
    succeeded = gained("remit_effects_total", action=ACTION, outcome="SUCCEEDED")
    opened = gained("remit_effect_opening_seconds_count", action=ACTION)
    replayed = gained("remit_effects_known_total", action=ACTION, answer="REPLAY")
    with a_call():
        await here.gate.perform(a_request(), world.effect)
        await here.gate.perform(a_request(), world.effect)
    await settled_down(here)
    assert (succeeded(), opened(), replayed()) == (1, 1, 1)


async def test_a_refused_effect_is_counted_and_was_never_opened(database: OpenDatabase) -> None:
    world = World(denied=True)
    here = replica(ClaimStore(await database("tools"), owner="here", lease_s=LEASE_S), world)
    refused = gained("remit_effects_total", action=ACTION, outcome="REFUSED")
    opened = gained("remit_effect_opening_seconds_count", action=ACTION)
    with a_call(), pytest.raises(RemitError, match="because"):
        await here.gate.perform(a_request(), world.effect)
    await settled_down(here)
    assert (refused(), opened()) == (1, 0)


async def test_a_closing_that_fails_is_counted_and_then_swept(database: OpenDatabase) -> None:
    claims = await database("tools")
    world = World()
    here = replica(ClaimStore(claims, owner="here", lease_s=LEASE_S), world)
    delayed = gained("remit_closings_delayed_total", reason="DEPENDENCY_UNAVAILABLE")
    swept = gained("remit_closings_swept_total")

    async def then_audit_is_away(permit: Permit) -> EffectResult:
        result = await world.effect(permit)
        world.away.add("audit")
        return result

    with a_call():
        await here.gate.perform(a_request(), then_audit_is_away)
    await settled_down(here)
    assert delayed() == 1

    looks = await in_time(_looked(claims), 10)
    assert looks["UNCLOSED"] == 1
    world.away.clear()

    async def closed() -> bool:
        await here.closer.sweep()
        return (await _looked(claims))["UNCLOSED"] == 0

    await eventually(closed)
    assert swept() >= 1


async def test_what_a_dead_owner_leaves_is_shown_and_counted_when_it_lapses(
    database: OpenDatabase,
) -> None:
    claims = await database("tools")
    world = World()
    dead = replica(ClaimStore(claims, owner="dead", lease_s=LEASE_S), world)
    alive = replica(ClaimStore(claims, owner="alive", lease_s=LEASE_S), world)
    in_doubt = gained("remit_claims_lapsed_total", state="IN_DOUBT")
    working = asyncio.Event()

    async def endless(_: Permit) -> EffectResult:
        working.set()
        await asyncio.Event().wait()
        raise AssertionError

    with a_call():
        task = asyncio.create_task(dead.gate.perform(a_request(), endless))
        await in_time(working.wait(), 10)
    looks = await _looked(claims)
    assert looks == {"CLAIMED": 0, "STARTED": 1, "UNCLOSED": 0}
    assert value("remit_holds_open", action=ACTION) == 1
    assert value("remit_holds_open_nanos", action=ACTION) == 100
    assert value("remit_holds_oldest_seconds", action=ACTION) > 0

    await lapse(claims, "dead")

    async def lapsed() -> bool:
        await alive.closer.sweep()
        return in_doubt() == 1

    await eventually(lapsed)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _looked(claims: Database) -> dict[str, float]:
    """The gauges after one look at the database."""
    metrics.HOLDS.labels(ACTION).set(-1)
    look = standing_effects(claims, EffectSettings(observe_s=60), action=ACTION)
    looking = asyncio.ensure_future(look())
    await eventually(lambda: value("remit_holds_open", action=ACTION) >= 0)
    looking.cancel()
    return {
        state: value("remit_effects_standing", action=ACTION, state=state)
        for state in metrics.STATES
    }
