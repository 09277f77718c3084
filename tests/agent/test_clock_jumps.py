"""A wall clock that jumps neither loses a lease nor keeps one.

Leases are granted by the database's clock and held by the holder's monotonic one; the wall clock of
a replica only dates what it records.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.waiting import eventually

LEASE_S = 4.0
"""Renewing it may wait for a loaded machine."""
HEIRS_LEASE_S = 600.0
"""Of an adopter: nobody adopts the run from it."""
CLAIM_POLL_S = 0.1
ADOPTED_WITHIN_S = LEASE_S + CLAIM_POLL_S
BUSY_S = 4.0
"""What a loaded machine may add to a bound."""
JUMPS = [timedelta(days=400), timedelta(days=-400)]
"""Beyond every lease, deadline and lifetime, in either direction."""


class JumpingClock:
    """The machine's clock, whose wall time a test sets forward or back."""

    def __init__(self) -> None:
        self.jump = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.jump

    def monotonic(self) -> float:
        return time.monotonic()


async def held_run(made: Replica, world: World) -> run_pb2.Run:
    """A run whose first model call hangs."""
    world.inference.effects.hold = asyncio.Event()
    run = await made.client().create()
    await eventually(lambda: world.inference.effects.held == 1)
    return run


def tokens(events: list[run_pb2.RunEvent]) -> list[int]:
    return [event.started.fencing_token for event in events if event.HasField("started")]


def let_go(world: World) -> None:
    hold, world.inference.effects.hold = world.inference.effects.hold, None
    assert hold is not None
    hold.set()


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_a_jump_of_the_holders_clock_or_of_anothers_loses_no_lease(
    replica: StartReplica, world: World, jump: timedelta
) -> None:
    clock, others = JumpingClock(), JumpingClock()
    facts = {"lease_s": LEASE_S, "claim_poll_s": CLAIM_POLL_S}
    holder = await replica(clock=clock, **facts)
    await replica(clock=others, replica="other", **facts)
    run = await held_run(holder, world)
    clock.jump, others.jump = jump, -jump
    # Longer than a lease lasts: it was renewed, and nobody thought it lapsed.
    tenure = holder.parts.pool._jobs[run.name].tenure
    granted = tenure.grant_time
    await eventually(lambda: tenure.grant_time > granted + 1.2 * LEASE_S)
    let_go(world)
    events = await holder.client().watch(run.name)
    assert events[-1].ended.run.result == "The result is 391."
    assert tokens(events) == [1]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_a_dead_holders_run_is_adopted_in_time_by_whatever_clock(
    replica: StartReplica, world: World, jump: timedelta
) -> None:
    clock, heirs = JumpingClock(), JumpingClock()
    first = await replica(clock=clock, lease_s=LEASE_S)
    heir = await replica(
        clock=heirs, replica="heir", lease_s=HEIRS_LEASE_S, claim_poll_s=CLAIM_POLL_S
    )
    run = await held_run(first, world)
    clock.jump, heirs.jump = jump, -jump
    await first.freeze()
    await eventually(lambda: heir.parts.pool.running, ADOPTED_WITHIN_S + BUSY_S)
    let_go(world)
    assert tokens(await heir.client().watch(run.name)) == [1, 2]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_a_clock_that_jumps_keeps_no_lease_that_cannot_be_renewed(
    replica: StartReplica, world: World, jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = JumpingClock()
    made = await replica(clock=clock, lease_s=LEASE_S)

    async def away(_: object) -> set[str]:
        raise RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "no database")

    run = await held_run(made, world)
    monkeypatch.setattr(made.parts.pool._leases, "renew", away)
    clock.jump = jump
    job = made.parts.pool._jobs[run.name].task
    await asyncio.wait([job], timeout=LEASE_S + BUSY_S)
    assert job.cancelled()
