"""Replicas among each other: adoption, fencing, fairness, drain."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from remit.agent.journal import fold
from remit.agent.leases import Held
from remit.agent.logbook import Logbook, started
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.telemetry import fresh
from remit.telemetry.logs import add_place
from tests.agent.conftest import Replica, StartReplica, World
from tests.agent.outside import client_remit
from tests.monitoring.values import gained
from tests.waiting import eventually, in_time


async def held_run(made: Replica, world: World, service: str = "inference") -> run_pb2.Run:
    """A run whose first effect of that service was performed and hangs."""
    effects = getattr(world, service).effects
    effects.hold = asyncio.Event()
    run = await made.client().create()
    await eventually(lambda: effects.held == 1)
    return run


def tokens(events: list[run_pb2.RunEvent]) -> list[int]:
    return [event.started.fencing_token for event in events if event.HasField("started")]


@pytest.mark.parametrize("service", ["inference", "tools"])
async def test_the_run_of_a_dead_replica_is_adopted_and_its_effect_happens_once(
    service: str, replica: StartReplica, world: World
) -> None:
    first = await replica()
    run = await held_run(first, world, service)
    await first.kill()
    getattr(world, service).effects.hold.set()
    adopted = gained("agent_runs_claimed_total", origin="orphan")
    second = await replica(replica="second")
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == "The result is 391."
    assert tokens(events) == [1, 2]
    assert adopted() >= 1
    assert [e.started.replica for e in events if e.HasField("started")] == ["0", "second"]
    performed = world.inference.effects.performed + world.tools.effects.performed
    assert set(performed.values()) == {1}
    assert len(performed) == 3


async def test_a_worker_that_lost_its_lease_writes_and_starts_nothing(
    replica: StartReplica, world: World
) -> None:
    """A frozen process: its lease lapses, another adopts the run, then it wakes up."""
    frozen = await replica(running=False)
    run = await held_run(frozen, world)
    hung, world.inference.effects.hold = world.inference.effects.hold, None
    await frozen.lapse()
    second = await replica(lease_s=30)
    # The adopter's call replays what the frozen worker's call recorded, then calls the tool.
    events = await second.client().watch(run.name)
    journal = [event.SerializeToString(deterministic=True) for event in events]
    assert hung is not None
    hung.set()
    await eventually(lambda: frozen.parts.pool.running == 0)
    again = await second.client().watch(run.name)
    assert [event.SerializeToString(deterministic=True) for event in again] == journal
    assert tokens(again) == [1, 2]
    assert sum(world.tools.effects.performed.values()) == 1


async def test_a_stale_token_is_refused_by_the_journal(replica: StartReplica, world: World) -> None:
    made = await replica()
    run = await held_run(made, world)
    books = made.parts.runs.canceller.books
    progress = fold(await books.reader.journal(run.name, page=100))
    grant = await made.parts.runs.canceller.leases.seize(run.name)
    assert grant is not None
    assert grant.fencing_token == 2
    stale = Logbook(books, run.name, 1, progress, grant.key)
    draft = stale.draft()
    draft.add(run_pb2.StageStarted(stage="stale"))
    with pytest.raises(RemitError) as caught:
        await stale.commit(draft)
    assert caught.value.reason == reasons.ERROR_REASON_FENCED
    newest = Logbook(books, run.name, 2, progress, grant.key)
    draft = newest.draft()
    draft.add(started(2, "x"))
    await newest.commit(draft)
    assert (await made.client().get(run.name)).last_sequence == progress.sequence + 1


async def test_a_worker_stops_when_its_lease_cannot_be_renewed(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await replica(lease_s=3)

    async def away(_: object) -> set[str]:
        raise RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "no database")

    run = await held_run(made, world)
    job = made.parts.pool._jobs[run.name].task
    monkeypatch.setattr(made.parts.pool._leases, "renew", away)
    await asyncio.wait([job], timeout=30)
    assert job.cancelled()


@pytest.mark.parametrize("event", ["lease_lapsed", "lease_lost", "worker_failed"])
async def test_what_the_pool_says_of_a_run_is_of_the_runs_trace(
    event: str, replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await replica(lease_s=0.4)
    pool, place = made.parts.pool, fresh()

    async def renews_nothing(_: object) -> set[str]:
        return set()

    async def breaks(_: object) -> None:
        raise ValueError

    monkeypatch.setattr(pool, "reserve", lambda _: False)  # claimed, in no call's context

    if event == "lease_lapsed":
        monkeypatch.setattr(pool, "_renew", asyncio.Event().wait)
    elif event == "lease_lost":
        monkeypatch.setattr(pool._leases, "renew", renews_nothing)
    else:
        monkeypatch.setattr(pool, "_work", breaks)
    world.inference.effects.hold = asyncio.Event()
    client = made.client()
    traced = replace(client, metadata=(*client.metadata, ("traceparent", place.traceparent)))
    with capture_logs(processors=[add_place]) as logs:
        run = await traced.create()
        await eventually(lambda: [line for line in logs if line["event"] == event])
    line = next(line for line in logs if line["event"] == event)
    assert (line["run"], line.get("trace_id")) == (run.name, place.trace_id)


async def test_a_lease_is_renewed_while_the_run_lasts(replica: StartReplica, world: World) -> None:
    made = await replica(lease_s=6)  # a third of it must be longer than a busy machine's pauses
    run = await held_run(made, world)
    tenure = made.parts.pool._jobs[run.name].tenure
    first = tenure.grant_time
    await eventually(lambda: tenure.grant_time > first + 0.5)
    hold = world.inference.effects.hold
    assert hold is not None
    hold.set()
    events = await made.client().watch(run.name)
    assert tokens(events) == [1]


async def test_a_drain_lets_effects_end_and_hands_runs_over_at_once(
    replica: StartReplica, world: World
) -> None:
    first = await replica(lease_s=60, replica="first")
    run = await held_run(first, world)
    second = await replica(lease_s=60, replica="second", claim_poll_s=30)
    draining = asyncio.create_task(first.parts.pool.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    hold = world.inference.effects.hold
    assert hold is not None
    world.inference.effects.hold = None
    hold.set()
    await draining
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == "The result is 391."
    assert tokens(events) == [1, 2]
    assert set(world.inference.effects.performed.values()) == {1}


async def test_a_draining_replica_ends_its_streams_and_takes_no_run(
    replica: StartReplica, world: World
) -> None:
    made = await replica(hand_over_s=0.05)
    run = await held_run(made, world)
    client = made.client()
    watching = asyncio.create_task(client.watch(run.name))
    await eventually(lambda: made.parts.feed._topics)
    await made.parts.pool.drain()
    made.parts.feed.close()
    with pytest.raises(RemitError) as caught:
        await watching
    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert not made.parts.pool.reserve("orgs/acme")


async def test_a_run_created_while_its_replica_drains_is_handed_over(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await replica(lease_s=60, replica="first")
    create, drained = first.parts.runs.creator.store.create, asyncio.Event()

    async def create_late(*args: Any) -> Any:
        stored = await create(*args)
        await drained.wait()
        return stored

    monkeypatch.setattr(first.parts.runs.creator.store, "create", create_late)
    creating = asyncio.create_task(first.client().create())
    await eventually(lambda: first.parts.pool._reserved.total() == 1)
    await first.parts.pool.drain()
    drained.set()
    run = await creating
    assert first.parts.pool.running == 0
    second = await replica(lease_s=60, replica="second")
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == "The result is 391."
    assert tokens(events) == [1, 2]


async def test_a_run_granted_while_its_replica_drains_is_handed_over(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await replica(replica="first")
    run = await held_run(first, world)
    await first.kill()
    lost_at = await world.database.fetchval("SELECT fencing_token FROM runs")
    second = await replica(lease_s=60, replica="second", running=False)
    claim, pool = second.parts.pool._leases.claim, second.parts.pool

    async def claim_late(limit: int, **bounds: Any) -> Any:
        grants = await claim(limit, **bounds)
        if grants:
            await pool.drain()
        return grants

    monkeypatch.setattr(pool._leases, "claim", claim_late)

    async def claimed() -> bool:
        await pool._claim_all()
        return pool._draining

    await eventually(claimed)
    assert pool.running == 0
    (grant,) = await claim(1)
    assert (grant.run, grant.fencing_token) == (run.name, lost_at + 2)


async def test_a_run_that_was_put_back_is_taken_again_long_before_its_lease_lapses(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await replica(lease_s=60, replica="first")
    monkeypatch.setattr("remit.agent.pool._PUT_BACK_S", 0.05)
    failures = [RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "no database")]
    work = first.parts.pool._work

    async def fails_once(tenure: Any) -> None:
        if failures:
            raise failures.pop()
        await work(tenure)

    monkeypatch.setattr(first.parts.pool, "_work", fails_once)
    run = await first.client().create()
    events = await in_time(first.client().watch(run.name), 20)
    assert events[-1].ended.run.result == "The result is 391."
    assert tokens(events) == [1, 2]


async def test_queued_runs_are_taken_in_turns_between_orgs(
    replica: StartReplica, world: World
) -> None:
    idle = await replica(running=False, max_running=1)
    await held_run(idle, world)  # takes the only place
    names: dict[str, str] = {}
    for org, count in (("acme", 6), ("small", 2)):
        client = idle.client(client_remit(f"orgs/{org}/users/u"))
        for _ in range(count):
            names[(await client.create()).name] = org
    grants = await idle.parts.pool._leases.claim(4)
    assert not any(grant.is_orphan for grant in grants)
    orgs = [names[grant.run] for grant in grants]
    # acme has one at work already, so small goes first and both get two of four at least.
    assert orgs.count("small") == 2
    assert {grant.fencing_token for grant in grants} == {2}
    rest = await idle.parts.pool._leases.claim(10)
    assert len(rest) == 4
    assert await idle.parts.pool._leases.claim(10) == []


@pytest.mark.parametrize("what", ["renew", "release"])
async def test_leases_are_locked_in_the_order_of_the_journal(
    what: str, replica: StartReplica, world: World
) -> None:
    """A batch of the journal locks its runs by name; locked otherwise, both would wait for ever."""
    idle = await replica(running=False, max_running=2)
    runs = sorted([(await held_run(idle, world)).name, (await idle.client().create()).name])
    lock = "SELECT FROM runs WHERE run = $1::text::uuid FOR UPDATE"
    first, last = (run.removeprefix("runs/") for run in runs)
    leases, held = idle.parts.pool._leases, [Held(run, 1) for run in reversed(runs)]
    async with world.database.transaction() as batch:
        await batch.execute(lock, first)
        changing = asyncio.create_task(getattr(leases, what)(held))
        await eventually(lambda: world.database.fetchval(_WAITS))
        await batch.execute(lock, last)
    changed = await in_time(changing, 10)
    assert what == "release" or changed == set(runs)


_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


async def test_events_of_another_replica_are_pushed(replica: StartReplica, world: World) -> None:
    first = await replica()
    second = await replica()
    second.parts.feed._heartbeat_s = 60.0
    run = await held_run(first, world)
    client = second.client()
    stream = client.runs.WatchRun(
        agent_service_pb2.WatchRunRequest(name=run.name, after_sequence=4),
        metadata=client.metadata,
    )
    received: list[Any] = []

    async def follow() -> None:
        received.extend([response async for response in stream])

    following = asyncio.create_task(follow())
    await eventually(lambda: second.parts.feed._topics)
    hold = world.inference.effects.hold
    assert hold is not None
    hold.set()
    # Far sooner than the heartbeat's own look.
    await in_time(following, 10)
    assert received[-1].event.HasField("ended")
    assert [r.sequence for r in received] == list(range(5, 5 + len(received)))


async def test_a_run_whose_definition_was_changed_by_hand_ends_and_says_so(
    replica: StartReplica, world: World, owner_execute: Any
) -> None:
    first = await replica()
    run = await held_run(first, world)
    await first.kill()
    await owner_execute("UPDATE agent_definitions SET definition = 'changed'::bytea")
    second = await replica()
    ended = await second.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    assert RemitError.from_status(ended.error).reason == reasons.ERROR_REASON_DATA_CORRUPT


async def test_a_corrupt_journal_is_named_and_other_runs_go_on(
    replica: StartReplica, world: World, owner_execute: Any
) -> None:
    first = await replica()
    broken = await held_run(first, world)
    await first.kill()
    await owner_execute(
        "UPDATE run_events SET percent = 42 WHERE sequence = 2 AND run = $1::uuid",
        broken.name.removeprefix("runs/"),
    )
    hold = world.inference.effects.hold
    assert hold is not None
    hold.set()
    second = await replica()
    client = second.client()
    healthy = await client.create()
    assert (await client.ended(healthy.name)).result == "The result is 391."

    async def quarantined() -> bool:
        return (await client.get(broken.name)).state == run_pb2.RUN_STATE_FAILED

    await eventually(quarantined)
    run = await client.get(broken.name)
    error = RemitError.from_status(run.error)
    assert error.reason == reasons.ERROR_REASON_DATA_CORRUPT
    assert error.message == f"{broken.name}: event 2 does not match its digest"
