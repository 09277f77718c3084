"""A paused run starts nothing and loses nothing, whoever had it and whoever takes it on."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf import duration_pb2

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Client, Replica, StartReplica, World
from tests.agent.outside import client_remit
from tests.waiting import eventually, in_time

ANSWER = "The result is 391."


async def held_run(made: Replica, world: World, service: str) -> run_pb2.Run:
    """A run whose first effect of that service is being performed and hangs."""
    effects = getattr(world, service).effects
    effects.hold = asyncio.Event()
    run = await made.client().create()
    await eventually(lambda: effects.held == 1)
    return run


def let_go(world: World, service: str) -> None:
    effects = getattr(world, service).effects
    effects.hold, hold = None, effects.hold
    assert hold is not None
    hold.set()


def kinds(events: list[run_pb2.RunEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


async def refused(reason: int, words: str, call: object) -> None:
    with pytest.raises(RemitError, match=words) as caught:
        await call  # type: ignore[misc]
    assert caught.value.reason == reason


async def test_a_tool_call_under_way_ends_and_is_not_made_again(
    replica: StartReplica, world: World
) -> None:
    made = await replica(claim_poll_s=60)
    client = made.client()
    run = await held_run(made, world, "tools")
    paused = await client.pause(run.name)
    assert paused.state == run_pb2.RUN_STATE_PAUSED
    await eventually(lambda: made.parts.pool.running == 0)  # its replica hears of the pause
    let_go(world, "tools")
    await eventually(lambda: not made.parts.pool._leaving)
    assert sum(world.tools.effects.performed.values()) == 1
    assert (await client.get(run.name)).last_sequence == paused.last_sequence
    resumed = await client.resume(run.name)
    assert resumed.state == run_pb2.RUN_STATE_RUNNING
    events = await client.watch(run.name)
    assert events[-1].ended.run.result == ANSWER
    assert kinds(events).count("paused") == kinds(events).count("resumed") == 1
    assert sum(world.tools.effects.performed.values()) == 1


async def test_a_run_resumed_during_its_call_waits_for_that_call(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    run = await held_run(made, world, "tools")
    await made.client().pause(run.name)
    await made.client().resume(run.name)
    await eventually(lambda: made.parts.pool.running == 1)
    let_go(world, "tools")
    assert (await made.client().ended(run.name)).result == ANSWER
    assert set(world.tools.effects.performed.values()) == {1}


async def test_nobody_takes_a_paused_run_and_policy_refuses_its_old_token(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    run = await held_run(made, world, "inference")
    await made.client().pause(run.name)
    assert world.policy.least[run.name] == 2
    let_go(world, "inference")
    other = await replica()
    for each in (made, other):
        await each.parts.pool._claim_all()
        assert each.parts.pool.running == 0
    waiting = await made.parts.pool._leases.waiting()
    assert waiting.queue_length == 0
    assert (await made.client().get(run.name)).state == run_pb2.RUN_STATE_PAUSED


async def test_another_replica_goes_on_after_the_first_has_died(
    replica: StartReplica, world: World
) -> None:
    first = await replica(replica="first")
    run = await held_run(first, world, "tools")
    await first.client().pause(run.name)
    await first.kill()
    let_go(world, "tools")
    second = await replica(replica="second", claim_poll_s=60)
    await second.client().resume(run.name)
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == ANSWER
    assert set(world.tools.effects.performed.values()) == {1}


async def test_a_run_that_waits_for_a_worker_can_be_paused(
    replica: StartReplica, world: World
) -> None:
    made = await replica(max_running=1)
    client = made.client()
    await held_run(made, world, "inference")
    queued = await client.create()
    assert queued.state == run_pb2.RUN_STATE_QUEUED
    await client.pause(queued.name)
    let_go(world, "inference")
    await eventually(lambda: made.parts.pool.running == 0)
    assert (await client.get(queued.name)).state == run_pb2.RUN_STATE_PAUSED
    assert (await client.resume(queued.name)).state == run_pb2.RUN_STATE_QUEUED
    assert (await client.ended(queued.name)).result == ANSWER


async def test_a_paused_run_can_be_cancelled(replica: StartReplica, world: World) -> None:
    made = await replica()
    run = await held_run(made, world, "tools")
    await made.client().pause(run.name)
    cancelled = await made.client().cancel(run.name)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    await eventually(lambda: not made.parts.pool._leaving)


async def test_time_stands_still_while_a_run_is_paused(replica: StartReplica, world: World) -> None:
    made = await replica()
    client = made.client()
    world.tools.effects.hold = asyncio.Event()
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(seconds=3))
    run = await client.create(limits=limits)
    await eventually(lambda: world.tools.effects.held == 1)
    await client.pause(run.name)
    let_go(world, "tools")
    deadline = await _deadline(world, run)
    # The pause lasts longer than the run may: by the database's clock, which nobody here can move.
    await world.database.fetchval("SELECT pg_sleep(3.2)")
    await client.resume(run.name)
    assert await _deadline(world, run) - deadline >= 3.2
    assert (await client.ended(run.name)).result == ANSWER


async def _deadline(world: World, run: run_pb2.Run) -> float:
    seconds: float = await world.database.fetchval(
        "SELECT extract(epoch FROM deadline_time)::float8 FROM runs WHERE run = $1::text::uuid",
        run.name.removeprefix("runs/"),
    )
    return seconds


async def test_who_watches_is_told_and_stays(replica: StartReplica, world: World) -> None:
    made = await replica()
    made.parts.feed._heartbeat_s = 60.0
    client = made.client()
    run = await held_run(made, world, "tools")
    watching = asyncio.create_task(client.watch(run.name))
    await client.pause(run.name)
    let_go(world, "tools")
    await client.resume(run.name)
    events = await in_time(watching, 20)
    told = [kind for kind in kinds(events) if kind in {"paused", "resumed", "ended"}]
    assert told == ["paused", "resumed", "ended"]
    halt = next(event for event in events if event.HasField("paused"))
    assert halt.paused.subject == "orgs/acme/users/alice"


async def test_the_same_request_gets_the_same_answer_and_another_is_refused(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    client = made.client()
    run = await held_run(made, world, "tools")
    await refused(reasons.ERROR_REASON_INVALID_STATE, "RUNNING", client.resume(run.name))
    paused = await client.pause(run.name)
    assert await client.pause(run.name) == paused
    await refused(reasons.ERROR_REASON_INVALID_STATE, "PAUSED", client.pause(run.name, "again"))
    let_go(world, "tools")
    await client.resume(run.name)
    assert (await client.ended(run.name)).result == ANSWER
    for call in (client.pause(run.name), client.resume(run.name)):
        await refused(reasons.ERROR_REASON_INVALID_STATE, "SUCCEEDED", call)
    await refused(reasons.ERROR_REASON_INVALID_REQUEST, "request_id", client.pause(run.name, ""))


async def test_a_foreign_run_does_not_exist(replica: StartReplica, world: World) -> None:
    made = await replica()
    run = await held_run(made, world, "tools")
    other: Client = made.client(client_remit("orgs/other/users/eve"))
    for call in (other.pause(run.name), other.resume(run.name)):
        await refused(reasons.ERROR_REASON_RUN_NOT_FOUND, "does not exist", call)
    let_go(world, "tools")


async def test_paused_runs_can_be_listed(replica: StartReplica, world: World) -> None:
    made = await replica()
    client = made.client()
    run = await held_run(made, world, "tools")
    await client.create()

    async def names(state: run_pb2.RunState.ValueType) -> list[str]:
        request = agent_service_pb2.ListRunsRequest(state=state)
        listed = await client.runs.ListRuns(request, metadata=client.metadata)
        return [each.name for each in listed.runs]

    await client.pause(run.name)
    assert await names(run_pb2.RUN_STATE_PAUSED) == [run.name]
    assert run.name not in await names(run_pb2.RUN_STATE_RUNNING)
    await client.cancel(run.name)
    assert await names(run_pb2.RUN_STATE_PAUSED) == []


async def test_a_pause_that_policy_did_not_hear_of_is_completed_by_the_same_request(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await replica()
    client, desk = made.client(), made.parts.runs.pauser.desk
    run = await held_run(made, world, "tools")
    fence = desk.fence

    async def away(_run: str, _token: int) -> None:
        raise RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "policy is away")

    monkeypatch.setattr(desk, "fence", away)
    await refused(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away", client.pause(run.name))
    assert (await client.get(run.name)).state == run_pb2.RUN_STATE_PAUSED
    monkeypatch.setattr(desk, "fence", fence)
    assert (await client.pause(run.name)).state == run_pb2.RUN_STATE_PAUSED
    assert world.policy.least[run.name] == 2
    let_go(world, "tools")
