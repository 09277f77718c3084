"""Which waiting run is taken next: by org, priority and age, when its time has come."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.agent.outside import client_remit
from tests.waiting import eventually, in_time


def in_s(seconds: float) -> timestamp_pb2.Timestamp:
    """A moment by this machine's clock, which is the database's too."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


async def occupied(made: Replica, world: World) -> None:
    """Fills a place with a run whose first effect hangs."""
    world.inference.effects.hold = asyncio.Event()
    await made.client().create()
    await eventually(lambda: world.inference.effects.held == 1)


def let_go(world: World) -> None:
    hold = world.inference.effects.hold
    assert hold is not None
    hold.set()


async def test_within_an_org_priority_goes_before_age(replica: StartReplica, world: World) -> None:
    idle = await replica(running=False, max_running=1)
    await occupied(idle, world)
    named = {
        (await idle.client().create(priority=priority)).name: priority
        for priority in (5, 0, 1, 4, 1)
    }
    taken = [(await idle.parts.pool._leases.claim(1))[0].run for _ in named]
    assert [named[run] for run in taken] == [1, 1, 0, 4, 5]
    assert taken[:2] == [run for run, priority in named.items() if priority == 1]


async def test_priority_takes_nothing_from_another_org(replica: StartReplica, world: World) -> None:
    idle = await replica(running=False, max_running=1)
    await occupied(idle, world)
    other = idle.client(client_remit("orgs/small/users/u"))
    late = await other.create(priority=5)
    for _ in range(3):
        await idle.client().create(priority=1)
    (grant,) = await idle.parts.pool._leases.claim(1)
    assert grant.run == late.name


async def test_a_run_says_its_priority_and_its_time(replica: StartReplica) -> None:
    client = (await replica()).client()
    later = in_s(3600)
    run = await client.create(schedule_time=later, priority=2)
    assert (run.state, run.priority, run.schedule_time) == (
        run_pb2.RUN_STATE_QUEUED,
        2,
        later,
    )
    assert await client.get(run.name) == run
    plain = await client.create(schedule_time=in_s(-5))
    assert (plain.priority, plain.HasField("schedule_time")) == (3, False)


async def test_a_scheduled_run_starts_at_its_time_and_not_before(replica: StartReplica) -> None:
    """The pool looks again when the next run's time comes, not at the next poll."""
    client = (await replica(claim_poll_s=60)).client()
    due = in_s(0.7)
    run = await client.create(schedule_time=due)
    ended = await in_time(client.ended(run.name), 20)
    assert ended.result == "The result is 391."
    assert ended.start_time.ToNanoseconds() >= due.ToNanoseconds() - 1_000_000
    assert ended.start_time.ToNanoseconds() < due.ToNanoseconds() + 10_000_000_000


async def test_a_scheduled_run_outlives_the_replica_that_took_it_in(replica: StartReplica) -> None:
    first = await replica()
    run = await first.client().create(schedule_time=in_s(0.5))
    await first.kill()
    second = await replica(claim_poll_s=60)
    assert (await second.client().ended(run.name)).result == "The result is 391."


async def test_the_time_limit_counts_from_the_start(replica: StartReplica, world: World) -> None:
    made = await replica()
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(seconds=100))
    run = await made.client().create(schedule_time=in_s(1000), limits=limits)
    left_s = await world.database.fetchval(
        "SELECT extract(epoch FROM deadline_time - clock_timestamp())::float8 FROM runs"
        " WHERE run = $1::text::uuid",
        run.name.removeprefix("runs/"),
    )
    assert 1000 < left_s < 1101


async def test_a_scheduled_run_can_be_cancelled_before_its_time(replica: StartReplica) -> None:
    client = (await replica()).client()
    run = await client.create(schedule_time=in_s(3600))
    assert (await client.cancel(run.name)).state == run_pb2.RUN_STATE_CANCELLED


async def test_what_waits_for_its_time_is_no_queue_and_has_a_bound_of_its_own(
    replica: StartReplica, world: World
) -> None:
    made = await replica(max_running=1, max_queued_runs=1, max_scheduled_runs=2)
    await occupied(made, world)
    client = made.client()
    for _ in range(2):
        await client.create(schedule_time=in_s(3600))
    with pytest.raises(RemitError) as caught:
        await client.create(schedule_time=in_s(3600))
    assert caught.value.reason == reasons.ERROR_REASON_OVERLOADED
    assert "wait for their time" in caught.value.message
    assert caught.value.retry_after_s
    await client.create()  # the queue has room all the same
    assert (await made.parts.pool._leases.waiting()).by_org == {"orgs/acme": 1}


async def test_an_org_takes_no_more_places_of_a_replica_than_its_bound(
    replica: StartReplica, world: World
) -> None:
    made = await replica(max_running=8, max_running_per_org=1)
    await occupied(made, world)
    second = await made.client().create()
    assert second.state == run_pb2.RUN_STATE_QUEUED
    other = await made.client(client_remit("orgs/small/users/u")).create()
    assert other.state == run_pb2.RUN_STATE_RUNNING
    await made.parts.pool._claim_all()
    assert (await made.client().get(second.name)).state == run_pb2.RUN_STATE_QUEUED
    third = await made.client().create()
    let_go(world)
    ends = [await made.client().ended(run.name) for run in (second, third)]
    assert all(run.result == "The result is 391." for run in ends)
    starts = [run.start_time.ToNanoseconds() for run in ends]
    assert starts == sorted(starts), "nobody overtakes within an org"
