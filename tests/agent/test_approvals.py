"""A run that waits for people holds no worker, survives everything, and goes on as they decide."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import duration_pb2

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.agent.outside import Generate, Turn, says
from tests.waiting import eventually

ANSWER = "The result is 391."


async def parked(made: Replica, world: World, service: str = "tools", **more: Any) -> run_pb2.Run:
    """A run that waits for people, and holds no worker."""
    getattr(world, service).effects.wants_approval.add("")
    run = await made.client().create(**more)
    await eventually(lambda: is_parked(made, run.name))
    return await made.client().get(run.name)


async def is_parked(made: Replica, run: str) -> bool:
    waiting = await made.parts.approvals._leases.awaiting("", 10)
    return run in waiting and made.parts.pool.running == 0


def decide(world: World, run: run_pb2.Run, state: str) -> None:
    for name in run.approvals:
        world.policy.approvals[name] = state


def kinds(events: list[run_pb2.RunEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


async def test_it_holds_no_worker_and_goes_on_when_it_is_approved(
    replica: StartReplica, world: World
) -> None:
    made = await replica(max_running=1)
    run = await parked(made, world)
    assert run.state == run_pb2.RUN_STATE_RUNNING
    assert list(run.approvals) == list(world.policy.approvals)
    # Its place is free for another run meanwhile.
    other = await made.client().create("hello")
    assert (await made.client().ended(other.name)).result == "You said: hello"
    assert not world.tools.effects.performed
    decide(world, run, "APPROVED")
    events = await made.client().watch(run.name)
    assert events[-1].ended.run.result == ANSWER
    assert list(events[-1].ended.run.approvals) == []
    assert sum(world.tools.effects.performed.values()) == 1
    (waiting,) = [event.waiting for event in events if event.HasField("waiting")]
    error = RemitError.from_status(waiting.reason)
    assert error.reason == reasons.ERROR_REASON_APPROVAL_REQUIRED
    assert error.metadata["approval"] == run.approvals[0]


@pytest.mark.parametrize("state", ["DENIED", "EXPIRED", "WITHDRAWN"])
async def test_what_is_not_approved_is_told_to_the_model(
    replica: StartReplica, world: World, state: str
) -> None:
    def think(request: Generate) -> Turn:
        if len(request.messages) > 2:
            return says(f"I was told: {request.messages[-1].text}")
        return says("", ("calculator", {"expression": "2 * 3"}))

    world.inference.think = think
    made = await replica()
    run = await parked(made, world)
    decide(world, run, state)
    ended = await made.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    assert f"is {state}" in ended.result
    assert not world.tools.effects.performed


async def test_it_survives_the_death_of_every_replica(replica: StartReplica, world: World) -> None:
    first = await replica(replica="first")
    run = await parked(first, world)
    await first.kill()
    decide(world, run, "APPROVED")
    second = await replica(replica="second")
    assert (await second.client().ended(run.name)).result == ANSWER
    assert sum(world.tools.effects.performed.values()) == 1


async def test_a_worker_that_dies_before_it_gave_the_run_back_loses_nothing(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await replica(replica="first")

    async def never(*_: object) -> None:
        raise RemitError(reasons.ERROR_REASON_FENCED, "dies here")

    monkeypatch.setattr(first.parts.approvals._leases, "park_for_approvals", never)
    world.tools.effects.wants_approval.add("")
    run = await first.client().create()
    await eventually(lambda: bool(world.policy.approvals) and not first.parts.pool.running)
    await first.kill()
    second = await replica(replica="second")
    await eventually(lambda: is_parked(second, run.name))
    waiting = await second.client().get(run.name)
    decide(world, waiting, "APPROVED")
    assert (await second.client().ended(run.name)).result == ANSWER
    assert len(world.policy.approvals) == 1
    assert sum(world.tools.effects.performed.values()) == 1


async def test_a_model_call_waits_as_well(replica: StartReplica, world: World) -> None:
    made = await replica()
    run = await parked(made, world, "inference")
    assert not world.inference.effects.performed
    world.inference.effects.wants_approval.clear()
    decide(world, run, "APPROVED")
    assert (await made.client().ended(run.name)).result == ANSWER


async def test_calls_beside_it_are_made_and_kept(replica: StartReplica, world: World) -> None:
    def think(request: Generate) -> Turn:
        if len(request.messages) > 2:
            return says("done")
        calls = [("calculator", {"expression": f"{n} * 3"}) for n in (1, 2, 3)]
        return says("", *calls)

    world.inference.think = think
    made = await replica()
    world.tools.effects.wants_approval.update({"/tools/c0", "/tools/c2"})
    run = await made.client().create()
    await eventually(lambda: is_parked(made, run.name))
    waiting = await made.client().get(run.name)
    assert len(waiting.approvals) == 2
    assert len(world.tools.effects.performed) == 1
    first, second = waiting.approvals
    world.policy.approvals[first] = "APPROVED"
    await eventually(lambda: len(world.tools.effects.performed) == 2)
    await eventually(lambda: is_parked(made, run.name))
    assert list((await made.client().get(run.name)).approvals) == [second]
    world.policy.approvals[second] = "DENIED"
    events = await made.client().watch(run.name)
    assert events[-1].ended.run.result == "done"
    assert kinds(events).count("tool_call_ended") == 3
    assert set(world.tools.effects.performed.values()) == {1}


async def test_cancelled_while_it_waits_it_withdraws_what_it_asked(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    run = await parked(made, world)
    ended = await made.client().cancel(run.name)
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    assert world.policy.withdrawn == [run.name]
    decide(world, run, "APPROVED")
    await made.parts.approvals.look()
    assert not world.tools.effects.performed


async def test_a_run_ends_by_its_time_all_the_same(replica: StartReplica, world: World) -> None:
    made = await replica()
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(seconds=3))
    run = await parked(made, world, limits=limits)
    ended = await made.client().ended(run.name)
    error = RemitError.from_status(ended.error)
    assert error.reason == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    assert world.policy.withdrawn == [run.name]


async def test_an_outage_of_policy_only_delays_it(replica: StartReplica, world: World) -> None:
    made = await replica()
    run = await parked(made, world)
    world.policy.approvals_away = True
    asked = world.policy.asked_about
    await eventually(lambda: world.policy.asked_about > asked + 2)
    decide(world, run, "APPROVED")
    assert await is_parked(made, run.name)
    world.policy.approvals_away = False
    assert (await made.client().ended(run.name)).result == ANSWER


async def test_paused_while_it_waits_it_goes_on_when_resumed_and_approved(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    client = made.client()
    run = await parked(made, world)
    assert (await client.pause(run.name)).state == run_pb2.RUN_STATE_PAUSED
    decide(world, run, "APPROVED")
    await eventually(lambda: _nobody_waits(made))
    assert not world.tools.effects.performed
    await client.resume(run.name)
    assert (await client.ended(run.name)).result == ANSWER


async def _nobody_waits(made: Replica) -> bool:
    return not await made.parts.approvals._leases.awaiting("", 10)


async def test_more_runs_than_a_page_are_looked_at(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit.agent.approvals._PAGE", 2)
    made = await replica()
    runs = [await parked(made, world) for _ in range(5)]
    for run in runs:
        decide(world, run, "APPROVED")
    for run in runs:
        assert (await made.client().ended(run.name)).result == ANSWER
