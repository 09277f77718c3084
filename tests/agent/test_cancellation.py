"""Cancelling: nothing starts after the answer, and whoever dies on the way can be replaced."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.telemetry import fresh
from remit.telemetry.logs import add_place
from tests.agent.conftest import StartReplica, World
from tests.agent.outside import away
from tests.waiting import eventually


async def test_a_cancelled_run_ends_and_its_effect_is_asked_to_stop(
    replica: StartReplica, world: World
) -> None:
    world.tools.effects.hold = asyncio.Event()
    made = await replica()
    client = made.client()
    run = await client.create()
    await eventually(lambda: world.tools.effects.held == 1)
    cancelled = await client.cancel(run.name)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    assert RemitError.from_status(cancelled.error).reason == reasons.ERROR_REASON_CANCELLED
    assert cancelled.cost_nanos > 0
    assert world.policy.least[run.name] == 2
    await eventually(lambda: world.tools.at_once == 0)
    events = await client.watch(run.name)
    assert events[-2].cancel_requested.subject == "orgs/acme/users/alice"
    assert events[-1].ended.run == cancelled


async def test_a_run_is_cancelled_from_another_replica(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    first, second = await replica(), await replica()
    run = await first.client().create()
    await eventually(lambda: world.inference.effects.held == 1)
    await second.client().cancel(run.name)
    await eventually(lambda: first.parts.pool.running == 0)
    assert (await first.client().get(run.name)).state == run_pb2.RUN_STATE_CANCELLED


async def test_a_cancelled_run_ends_in_its_own_trace(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica()).client()
    own, callers = fresh().traceparent, fresh().traceparent
    created = replace(client, metadata=(*client.metadata, ("traceparent", own)))
    cancels = replace(client, metadata=(*client.metadata, ("traceparent", callers)))
    run = await created.create()
    await eventually(lambda: world.inference.effects.held == 1)
    with capture_logs(processors=[add_place]) as logs:
        await cancels.cancel(run.name)
    (line,) = [line for line in logs if line["event"] == "agent_execution_completed"]
    assert (line["run"], line["state"]) == (run.name, "CANCELLED")
    assert line["trace_id"] in own


async def test_a_queued_run_can_be_cancelled(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica(max_running=1)).client()
    await client.create()
    waiting = await client.create()
    assert waiting.state == run_pb2.RUN_STATE_QUEUED
    assert (await client.cancel(waiting.name)).state == run_pb2.RUN_STATE_CANCELLED


async def test_the_same_cancellation_is_answered_again_and_another_is_refused(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica()).client()
    run = await client.create()
    first = await client.cancel(run.name, "one")
    assert await client.cancel(run.name, "one") == first
    for request_id in ("two", ""):
        with pytest.raises(RemitError) as caught:
            await client.cancel(run.name, request_id)
        expected = (
            reasons.ERROR_REASON_INVALID_STATE
            if request_id
            else reasons.ERROR_REASON_INVALID_REQUEST
        )
        assert caught.value.reason == expected


async def test_an_ended_run_cannot_be_cancelled(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    run = await client.create()
    await client.ended(run.name)
    with pytest.raises(RemitError, match=r"\(SUCCEEDED\); an ended run cannot") as caught:
        await client.cancel(run.name)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_STATE


async def test_two_cancellations_at_once_end_the_run_once(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    first, second = await replica(), await replica()
    run = await first.client().create()
    await asyncio.gather(
        first.client().cancel(run.name, "same"), second.client().cancel(run.name, "same")
    )
    events = await first.client().watch(run.name)
    assert sum(event.HasField("ended") for event in events) == 1
    assert sum(event.HasField("cancel_requested") for event in events) == 1


async def test_a_cancellation_that_policy_could_not_hear_is_completed_by_an_adopter(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica(lease_s=0.3)).client()
    run = await client.create()
    await eventually(lambda: world.inference.effects.held == 1)
    world.policy.failures = [away("policy")]
    with pytest.raises(RemitError) as caught:
        await client.cancel(run.name)
    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert (await client.ended(run.name)).state == run_pb2.RUN_STATE_CANCELLED
    assert (await client.cancel(run.name)).state == run_pb2.RUN_STATE_CANCELLED
    assert world.inference.effects.performed.total() == 1
