"""A crash at each step of the gate: nothing twice, nothing without a record, nothing left open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.effects import EffectResult, Permit
from remit.effects.steps import Begin, Begun, Change
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, World, a_call, a_request, lapse, replica
from tests.waiting import eventually, in_time

STEPS = ("begin", "Start", "effect", "Finish", "Close", "Refuse")


class Power:
    """Fails at one moment; from then on its machine does nothing any more."""

    def __init__(self, step: str, moment: str) -> None:
        self._at = (step, moment)
        self.gone = asyncio.Event()

    async def through(self, step: str, work: Callable[[], Awaitable[Any]]) -> Any:
        await self._pass(step, "before")
        result = await work()
        await self._pass(step, "after")
        return result

    async def _pass(self, step: str, moment: str) -> None:
        if (step, moment) == self._at:
            self.gone.set()
        if self.gone.is_set():
            await asyncio.Event().wait()


class MortalStore(ClaimStore):
    """A store whose process may die around every commit."""

    def __init__(self, database: Database, power: Power) -> None:
        super().__init__(database, owner="mortal", lease_s=LEASE_S)
        self._power = power

    async def begin(self, begin: Begin) -> Begun:
        found: Begun = await self._power.through(
            "begin", lambda: super(MortalStore, self).begin(begin)
        )
        return found

    async def change(self, change: Change) -> bool:
        done: bool = await self._power.through(
            type(change).__name__, lambda: super(MortalStore, self).change(change)
        )
        return done


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_after_a_crash_everything_is_closed_and_nothing_happens_twice(
    database: OpenDatabase, step: str, moment: str, *, idempotent: bool
) -> None:
    claims = await database("tools")
    world = World(denied=step == "Refuse")
    power = Power(step, moment)
    mortal = replica(MortalStore(claims, power), world)

    async def effect(permit: Permit) -> EffectResult:
        result: EffectResult = await power.through("effect", lambda: world.effect(permit))
        return result

    request = a_request(idempotent=idempotent)
    with a_call():
        call = asyncio.create_task(mortal.gate.perform(request, effect))
        await in_time(power.gone.wait(), 10)
        call.cancel()
        await lapse(claims, "mortal")
        world.denied = False
        survivor = replica(ClaimStore(claims, owner="survivor", lease_s=LEASE_S), world)
        verdict = await eventually(lambda: _asked_again(survivor.gate.perform, request, world))

    async def all_closed() -> bool:
        await survivor.closer.sweep()
        left = await claims.fetchval(
            "SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL"
        )
        return left == 0 and not world.open_holds()

    await eventually(all_closed)
    assert world.faults == []
    assert max(world.touched.values(), default=0) <= 1, "one attempt touches the world once"
    _check_against(verdict, world, idempotent=idempotent)
    outcomes = {event.event_id for event in world.events.values() if event.outcome}
    intents = {event.event_id for event in world.events.values() if not event.outcome}
    assert {name.rpartition("-")[0] for name in intents} <= {
        name.rpartition("-")[0] for name in outcomes
    }, "every intent has an outcome"


async def _asked_again(perform: Any, request: Any, world: World) -> str:
    """What the key answers now; empty while the dead owner's lease still runs."""
    try:
        outcome = await perform(request, world.effect)
    except RemitError as error:
        if error.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS:
            return ""
        return error.reason_name
    return "replayed" if outcome.replayed else "performed"


def _check_against(verdict: str, world: World, *, idempotent: bool) -> None:
    times = sum(world.touched.values())
    if verdict == "EFFECT_IN_DOUBT":
        assert not idempotent
        assert times <= 1
    elif not idempotent:
        assert times == 1
    else:
        assert times <= 2, "an idempotent effect may be done again after a doubt, as a new attempt"
