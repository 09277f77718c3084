"""Sub-runs: rights, limits and cancellation go down the tree; results and bills come up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from remit.agent.leases import LeaseStore
from remit.agent.sub_runs import MAX_LINE, check_line
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.agent.conftest import Client, Replica, StartReplica, World
from tests.agent.outside import (
    MODEL_COST_NANOS,
    TOOL_COST_NANOS,
    Generate,
    Turn,
    away,
    client_remit,
    multiplies,
    says,
)
from tests.monitoring.values import value
from tests.waiting import eventually, in_time

TASK = {"task": "What is 17 * 23?"}


def agent(name: str, *, agents: str = "", max_steps: int = 4) -> str:
    return (
        f"name: {name}\ndisplay_name: {name.title()}\ndescription: Is {name}.\n"
        f"instructions: I am {name}.\nmodel: builtin-rules\ntools: [calculator, send_email]\n"
        f"agents: [{agents}]\nmax_steps: {max_steps}\n"
    )


@pytest.fixture
def agents(agents_dir: Path) -> Path:
    """A boss who may ask a helper and a second one."""
    for text in (agent("boss", agents="helper, second"), agent("helper"), agent("second")):
        (agents_dir / f"{text.split()[1]}.yaml").write_text(text)
    return agents_dir


def asks(*calls: tuple[str, dict[str, Any]]) -> Callable[[Generate], Turn]:
    """A boss who makes these calls and then says what came of them; others multiply."""

    def think(asked: Generate) -> Turn:
        if asked.messages[0].text != "I am boss.":
            return multiplies(asked)
        told = [m for m in asked.messages if m.role == message_pb2.ROLE_TOOL]
        if told:
            return says(" | ".join(message.text for message in told))
        return says("", *calls)

    return think


async def boss(client: Client, **more: Any) -> run_pb2.Run:
    return await client.create("Lead.", agent="agents/boss", **more)


async def below(client: Client, parent: str) -> list[run_pb2.Run]:
    response = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(parent=parent), metadata=client.metadata
    )
    return list(response.runs)


async def the_one_below(client: Client, parent: str) -> run_pb2.Run:
    """The only sub-run, as soon as it is there."""
    await eventually(lambda: _any(client, parent))
    (found,) = await below(client, parent)
    return found


async def _any(client: Client, parent: str) -> bool:
    return bool(await below(client, parent))


def reason_of(run: run_pb2.Run) -> reasons.ErrorReason.ValueType:
    return RemitError.from_status(run.error).reason


async def test_the_answer_and_the_bill_of_a_sub_run_come_up(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    client = (await replica(agents_dir=agents)).client()
    tokens = {"agent": "agents/boss", "kind": "input"}
    before = value("agent_tokens_total", **tokens)
    started = await boss(client, priority=1)
    events = await client.watch(started.name)
    run = events[-1].ended.run
    child = await the_one_below(client, run.name)
    assert (child.parent, child.agent, child.priority) == (run.name, "agents/helper", 1)
    assert (child.task, child.result) == ("What is 17 * 23?", "The result is 391.")
    assert child.subject == run.subject
    assert json.loads(run.result) == {"answer": child.result}
    assert child.cost_nanos == 2 * MODEL_COST_NANOS + TOOL_COST_NANOS
    assert run.cost_nanos == 2 * MODEL_COST_NANOS + child.cost_nanos
    assert run.usage.input_tokens == 20 + child.usage.input_tokens
    named = next(e.sub_run_started for e in events if e.HasField("sub_run_started"))
    ended = next(e.tool_call_ended for e in events if e.HasField("tool_call_ended"))
    assert named.run == ended.run == child.name
    assert value("agent_tokens_total", **tokens) == before + 20, "each run counts its own"


async def test_a_sub_run_has_no_more_than_its_parent_may_pass_on(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    client = (await replica(agents_dir=agents)).client()
    run = await boss(client, limits=run_pb2.RunLimits(max_cost_nanos=123_456))
    await client.ended(run.name)
    child = await the_one_below(client, run.name)
    assert child.limits.max_cost_nanos == 123_456
    assert child.limits.max_duration.ToNanoseconds() <= 300 * 10**9
    assert world.policy.delegated[child.name].run == run.name
    registered = world.policy.registered[run.name]
    assert list(registered.delegable_tools) == ["tools/calculator", "tools/send_email"]
    assert list(registered.delegable_models) == ["models/builtin-rules"]


async def test_a_run_that_waits_for_its_sub_runs_takes_no_place(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK), ("agents/second", TASK))
    client = (await replica(agents_dir=agents, max_running=1)).client()
    run = await client.ended((await boss(client)).name)
    assert run.result.count("The result is 391.") == 2
    assert len(await below(client, run.name)) == 2


async def test_sub_runs_do_not_count_among_the_runs_that_a_user_may_have(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.policy.max_user_runs = world.policy.max_org_runs = 1
    world.inference.think = asks(("agents/helper", TASK), ("agents/second", TASK))
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert len(await below(client, run.name)) == 2


async def test_tools_and_agents_are_called_side_by_side(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(
        ("agents/helper", TASK), ("calculator", {"expression": "2 * 3"}), ("agents/second", TASK)
    )
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert run.result.split(" | ")[1] == '{"value": 6}'
    assert run.cost_nanos == 2 * MODEL_COST_NANOS + TOOL_COST_NANOS + sum(
        child.cost_nanos for child in await below(client, run.name)
    )


async def _with_a_held_child(
    world: World, replica: StartReplica, agents: Path, **more: Any
) -> tuple[Replica, run_pb2.Run, run_pb2.Run]:
    """A boss that waits for a helper, which waits for its tool."""
    world.inference.think = asks(("agents/helper", TASK))
    world.tools.effects.hold = asyncio.Event()
    made = await replica(agents_dir=agents)
    run = await boss(made.client(), **more)
    await eventually(lambda: world.tools.effects.held == 1)
    await eventually(lambda: made.parts.pool.running == 1)
    return made, run, await the_one_below(made.client(), run.name)


async def test_a_cancellation_goes_down_and_the_bill_comes_up(
    replica: StartReplica, world: World, agents: Path
) -> None:
    made, run, child = await _with_a_held_child(world, replica, agents)
    client = made.client()
    cancelled = await client.cancel(run.name)
    child = await client.get(child.name)
    assert cancelled.state == child.state == run_pb2.RUN_STATE_CANCELLED
    assert f"was cancelled by {run.name}" in RemitError.from_status(child.error).message
    assert cancelled.cost_nanos == MODEL_COST_NANOS + child.cost_nanos
    assert child.cost_nanos == MODEL_COST_NANOS
    await eventually(lambda: world.tools.at_once == 0)
    assert await client.cancel(run.name) == cancelled, "the same request, the same answer"


async def test_a_pause_goes_down_and_so_does_its_end(
    replica: StartReplica, world: World, agents: Path
) -> None:
    made, run, child = await _with_a_held_child(world, replica, agents)
    client = made.client()
    await client.pause(run.name)
    for name in (run.name, child.name):
        assert (await client.get(name)).state == run_pb2.RUN_STATE_PAUSED
    assert world.tools.effects.hold is not None
    world.tools.effects.hold.set()
    await client.resume(run.name)
    ended = await client.ended(run.name)
    assert json.loads(ended.result) == {"answer": "The result is 391."}
    assert sum(world.tools.effects.performed.values()) == 1


async def test_a_deadline_goes_down(replica: StartReplica, world: World, agents: Path) -> None:
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(seconds=1))
    made, run, child = await _with_a_held_child(world, replica, agents, limits=limits)
    assert child.limits.max_duration.ToNanoseconds() <= 10**9
    ended = await made.client().ended(run.name)
    child = await made.client().get(child.name)
    # Whose time is up first is a matter of milliseconds: the sub-run's end may still be answered.
    assert child.state in {run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
    told = 0 if ended.state == run_pb2.RUN_STATE_FAILED else MODEL_COST_NANOS
    if told:
        assert "RUN_LIMIT_REACHED" in ended.result
    else:
        assert reason_of(ended) == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    assert ended.cost_nanos == MODEL_COST_NANOS + child.cost_nanos + told


async def test_a_fatal_error_beside_a_sub_run_stops_it(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(
        ("agents/helper", TASK), ("send_email", {"to": "a@example.org", "text": "x"})
    )
    broke = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "no money is left")
    world.tools.effects.failures = [broke]
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert reason_of(run) == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    for child in await below(client, run.name):
        assert child.state == run_pb2.RUN_STATE_CANCELLED


async def test_the_failure_of_a_sub_run_is_told_to_the_model(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    broke = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "no money is left")
    world.tools.effects.failures = [broke]
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert run.result == "BUDGET_EXHAUSTED: no money is left"
    assert run.cost_nanos == 3 * MODEL_COST_NANOS, "two turns of its own and one below"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("agents/helpr", TASK), "agents/helpr is not offered; did you mean agents/helper"),
        (("agents/boss", TASK), "agents/boss is not offered"),
        (("agents/helper", {"job": "x"}), "job: is not an argument"),
        (("agents/helper", {"task": ""}), "task: "),
        (("agents/helper", {"task": 7}), "task: must be a text"),
        (("agents/helper", {"task": "x", "context": {"a": 1}}), "context: must be an object"),
    ],
)
async def test_a_call_that_can_become_no_run_is_told_to_the_model(
    call: tuple[str, dict[str, Any]],
    told: str,
    replica: StartReplica,
    world: World,
    agents: Path,
) -> None:
    world.inference.think = asks(call)
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert run.result.startswith("INVALID_REQUEST")
    assert told in run.result
    assert await below(client, run.name) == []


async def test_a_worker_that_dies_before_its_sub_run_is_there_leads_to_one_sub_run(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    first = await replica(agents_dir=agents)
    registered = asyncio.Event()

    async def hang(_: str) -> None:
        registered.set()
        await asyncio.Event().wait()

    world.policy.on_delegation = hang
    run = await boss(first.client())
    await in_time(registered.wait(), 10)
    await first.kill()
    world.policy.on_delegation = None
    second = await replica(agents_dir=agents)
    ended = await second.client().ended(run.name)
    assert json.loads(ended.result) == {"answer": "The result is 391."}
    assert len(await below(second.client(), run.name)) == 1
    assert len(world.policy.delegated) == 1


async def test_a_worker_that_lost_its_run_starts_no_sub_run(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    first = await replica(agents_dir=agents)
    thief = LeaseStore(world.database, owner="thief", lease_s=1)
    stolen: list[str] = []

    async def steal(child: str) -> None:
        """Between the registration of the sub-run and its creation, somebody takes the parent."""
        if not stolen:
            stolen.append(child)
            assert await thief.seize(run.name) is not None

    world.policy.on_delegation = steal
    world.inference.effects.hold = asyncio.Event()
    run = await boss(first.client())
    world.inference.effects.hold.set()
    await eventually(lambda: bool(stolen))
    await eventually(lambda: first.parts.pool.running == 0)
    assert await below(first.client(), run.name) == [], "the fenced worker created none"
    ended = await first.client().ended(run.name)  # adopted when the thief's lease lapsed
    assert json.loads(ended.result) == {"answer": "The result is 391."}
    assert [child.name for child in await below(first.client(), run.name)] == stolen


async def test_a_service_that_is_away_while_a_sub_run_begins_is_waited_for(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    client = (await replica(agents_dir=agents)).client()
    run = await boss(client)
    world.policy.failures = [away("policy"), away("policy")]
    ended = await client.ended(run.name)
    assert json.loads(ended.result) == {"answer": "The result is 391."}
    assert len(await below(client, run.name)) == 1


async def test_a_line_of_runs_has_an_end(
    replica: StartReplica, world: World, agents_dir: Path
) -> None:
    for number in range(1, MAX_LINE + 2):
        next_one = f"a{number + 1}" if number <= MAX_LINE else ""
        (agents_dir / f"a{number}.yaml").write_text(agent(f"a{number}", agents=next_one))

    def think(asked: Generate) -> Turn:
        last = asked.messages[-1]
        if last.role == message_pb2.ROLE_TOOL:
            return says(last.text)
        number = int(asked.messages[0].text.removesuffix(".").rpartition("a")[2])
        return says("", (f"agents/a{number + 1}", {"task": "go on"}))

    world.inference.think = think
    client = (await replica(agents_dir=agents_dir)).client()
    run = await client.create("Go on.", agent="agents/a1")
    ended = await client.ended(run.name)
    assert f"would be run {MAX_LINE + 1} in one line" in ended.result
    made = await world.database.fetchval("SELECT count(*) FROM runs")
    assert made == MAX_LINE


def test_an_agent_is_not_started_below_itself() -> None:
    with pytest.raises(RemitError) as caught:
        check_line("agents/a", ["agents/c", "agents/b", "agents/a"])
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    (fault,) = caught.value.violations
    assert fault.description == (
        "would go round in a circle: agents/a -> agents/b -> agents/c -> agents/a"
    )
    check_line("agents/d", ["agents/c", "agents/b", "agents/a"])


async def test_the_sub_runs_of_a_journal_that_was_changed_are_stopped(
    replica: StartReplica,
    world: World,
    agents: Path,
    owner_execute: Callable[..., Awaitable[None]],
) -> None:
    made, run, child = await _with_a_held_child(world, replica, agents)
    client = made.client()
    await owner_execute(
        "UPDATE run_events SET payload = payload || '\\x00'::bytea WHERE run = $1 AND sequence = 2",
        run.name.removeprefix("runs/"),
    )
    other = await replica(agents_dir=agents)
    await owner_execute(
        "UPDATE runs SET awaits_sub_runs = false WHERE run = $1", run.name.removeprefix("runs/")
    )

    async def is_over() -> bool:
        return (await other.client().get(run.name)).state == run_pb2.RUN_STATE_FAILED

    await eventually(is_over)
    assert reason_of(await client.get(run.name)) == reasons.ERROR_REASON_DATA_CORRUPT
    assert (await client.get(child.name)).state == run_pb2.RUN_STATE_CANCELLED


async def test_the_sub_runs_of_another_are_not_listed(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.inference.think = asks(("agents/helper", TASK))
    made = await replica(agents_dir=agents)
    client = made.client()
    run = await client.ended((await boss(client)).name)
    stranger = made.client(client_remit("orgs/other/users/eve"))
    assert await below(stranger, run.name) == []
    assert await below(client, f"runs/{SystemIds().uuid7()}") == []
    with pytest.raises(RemitError, match="parent") as caught:
        await below(client, "runs/../x")
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
