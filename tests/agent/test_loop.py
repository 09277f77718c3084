"""The loop among failures: what is waited out, what the model is told, what ends the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import duration_pb2
from structlog.testing import capture_logs

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.errors import RemitError, Violation
from remit.telemetry.logs import add_place
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import Generate, Turn, away, fenced, results, says
from tests.monitoring.values import value
from tests.waiting import eventually

AGENT = """\
name: tester
display_name: Tester
description: Tests.
instructions: Test.
model: builtin-rules
tools: [calculator, search, send_email, write_file]
max_steps: 4
"""


def reason_of(run: run_pb2.Run) -> reasons.ErrorReason.ValueType:
    return RemitError.from_status(run.error).reason


async def ended(client: Client, **more: Any) -> run_pb2.Run:
    return await client.ended((await client.create(**more)).name)


def waits(events: list[run_pb2.RunEvent]) -> int:
    return sum(event.HasField("waiting") for event in events)


@pytest.mark.parametrize("service", ["inference", "tools"])
async def test_a_service_that_is_away_is_waited_for(
    service: str, replica: StartReplica, world: World
) -> None:
    getattr(world, service).effects.failures = [away(service), away(service)]
    client = (await replica()).client()
    with capture_logs(processors=[add_place]) as logs:
        run = await client.create()
        events = await client.watch(run.name)
    assert waits(events) == 2
    retries = [line for line in logs if line["event"] == "retrying_agent"]
    assert [(line["attempt"], line["reason"]) for line in retries] == [
        (1, "DEPENDENCY_UNAVAILABLE"),
        (2, "DEPENDENCY_UNAVAILABLE"),
    ]
    assert all(line["delay_s"] >= 0.05 for line in retries), "the service's advice"
    assert {line["run"] for line in retries} == {run.name}
    waiting = next(event.waiting for event in events if event.HasField("waiting"))
    assert (
        RemitError.from_status(waiting.reason).message == f"the {service} service cannot be reached"
    )
    assert waiting.retry_time.ToNanoseconds() > 0
    assert events[-1].ended.run.result == "The result is 391."


async def test_a_run_that_was_taken_over_counts_as_waiting_while_it_waits(
    replica: StartReplica, world: World
) -> None:
    waiting = {"reason": "DEPENDENCY_UNAVAILABLE"}
    world.inference.effects.failures = [away("inference", retry_after_s=30)]
    first = await replica(retry_cap_s=30)
    await first.client().create()
    await eventually(lambda: value("agent_runs_waiting", **waiting) == 1)
    await first.kill()
    assert value("agent_runs_waiting", **waiting) == 0
    second = await replica(retry_cap_s=30)
    await eventually(lambda: second.parts.pool.running == 1)
    await eventually(lambda: value("agent_runs_waiting", **waiting) == 1)


async def test_the_tools_service_away_at_the_start_is_waited_for(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    made.mesh.remove("/remit.api.tools")
    client = made.client()
    run = await client.create()

    async def waiting() -> bool:
        count = await world.database.fetchval("SELECT count(*) FROM run_events")
        return bool(count >= 4)

    await eventually(waiting)
    again = world.mesh()
    made.mesh._handlers |= {p: h for p, h in again._handlers.items() if "tools" in p}
    assert (await client.ended(run.name)).result == "The result is 391."


async def test_a_stream_that_breaks_off_is_asked_for_again_and_its_text_begins_anew(
    replica: StartReplica, world: World
) -> None:
    world.inference.breaks = 1
    client = (await replica(delta_interval_ms=1)).client()
    run = await client.create("no tools here")
    events = await client.watch(run.name)
    assert events[-1].ended.run.result == "You said: no tools here"
    text = ""
    for event in events:
        if event.HasField("model_call_started"):
            text = ""
        text += event.text_delta.text
    assert text == "You said: no tools here"
    assert sum(world.inference.effects.performed.values()) == 1


async def test_the_model_is_told_of_a_tool_that_failed(replica: StartReplica, world: World) -> None:
    def think(asked: Generate) -> Turn:
        last = asked.messages[-1]
        if last.role == message_pb2.ROLE_TOOL:
            return says(f"told: {last.tool_error} {last.text}")
        return says("", ("calculator", {"expression": "1 * 1"}))

    world.inference.think = think
    client = (await replica()).client()
    for reason in (
        reasons.ERROR_REASON_TOOL_FAILED,
        reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        reasons.ERROR_REASON_PERMISSION_DENIED,
        reasons.ERROR_REASON_TOOL_NOT_FOUND,
        reasons.ERROR_REASON_TOO_LARGE,
    ):
        error = RemitError(reason, "it broke", violations=[Violation("expression", "is odd")])
        world.tools.effects.failures = [error]
        run = await ended(client)
        assert run.result == f"told: True {error.reason_name}: it broke\nexpression: is odd"


@pytest.mark.parametrize("service", ["inference", "tools"])
async def test_other_failures_end_the_run_with_their_reason(
    service: str, replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    for reason in (
        reasons.ERROR_REASON_BUDGET_EXHAUSTED,
        reasons.ERROR_REASON_EFFECT_IN_DOUBT,
        reasons.ERROR_REASON_PRICE_UNKNOWN,
        reasons.ERROR_REASON_KEY_REUSED,
        reasons.ERROR_REASON_INTERNAL,
    ):
        getattr(world, service).effects.failures = [RemitError(reason, "no")]
        run = await ended(client)
        assert run.state == run_pb2.RUN_STATE_FAILED
        assert reason_of(run) == reason
        assert run.result == ""


async def test_a_deadline_that_passed_is_asked_about_once_more(
    replica: StartReplica, world: World
) -> None:
    late = RemitError(reasons.ERROR_REASON_DEADLINE_EXCEEDED, "too late")
    world.tools.effects.failures = [late]
    client = (await replica()).client()
    assert (await ended(client)).result == "The result is 391."
    world.tools.effects.failures = [late, late]
    world.inference.think = lambda asked: (
        says(asked.messages[-1].text)
        if asked.messages[-1].role == message_pb2.ROLE_TOOL
        else says("", ("calculator", {"expression": "1 * 1"}))
    )
    assert (await ended(client)).result == "DEADLINE_EXCEEDED: too late"


async def test_a_refused_remit_is_renewed(replica: StartReplica, world: World) -> None:
    world.inference.effects.failures = [
        RemitError(reasons.ERROR_REASON_REMIT_INVALID, "the remit expired")
    ]
    client = (await replica()).client()
    run = await client.create()
    assert (await client.ended(run.name)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert world.policy.issued == [(run.name, 1), (run.name, 1)]


async def test_a_remit_is_renewed_before_it_ends(replica: StartReplica, world: World) -> None:
    world.policy.lifetime_s = 0.0
    client = (await replica()).client()
    run = await client.create()
    assert (await client.ended(run.name)).state == run_pb2.RUN_STATE_SUCCEEDED
    # One for the creation, one for each of three effects.
    assert len(world.policy.issued) >= 4


async def test_a_run_that_gets_no_remit_any_more_ends_with_the_reason(
    replica: StartReplica, world: World
) -> None:
    world.policy.lifetime_s = 0.0
    disabled = RemitError(reasons.ERROR_REASON_PRINCIPAL_DISABLED, "bob is disabled")
    client = (await replica()).client()

    def calls(_: object) -> Turn:
        world.policy.failures = [disabled] * 9
        return says("", ("calculator", {"expression": "1 * 1"}))

    world.inference.think = calls
    run = await ended(client)
    assert (run.state, reason_of(run)) == (run_pb2.RUN_STATE_FAILED, disabled.reason)
    assert not world.tools.effects.performed
    assert waits(await client.watch(run.name)) == 0
    assert len(world.policy.failures) == 8, "it was asked for once"


async def test_a_fenced_worker_stops_without_a_word(replica: StartReplica, world: World) -> None:
    world.inference.effects.failures = [fenced("runs/x")]
    made = await replica(lease_s=60)
    client = made.client()
    run = await client.create()
    await eventually(lambda: made.parts.pool.running == 0)
    assert (await client.get(run.name)).state == run_pb2.RUN_STATE_RUNNING
    assert (await client.get(run.name)).last_sequence == 4


async def test_the_step_limit_ends_the_run(replica: StartReplica, world: World) -> None:
    world.inference.think = lambda _: says("again", ("calculator", {"expression": "1 * 1"}))
    run = await ended((await replica()).client(), limits=run_pb2.RunLimits(max_steps=3))
    assert reason_of(run) == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    assert run.error.message == "the run used its 3 steps without an answer"
    assert len(world.inference.requests) == 3
    assert sum(world.tools.effects.performed.values()) == 2


async def test_the_time_limit_ends_the_run_and_its_effects(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(nanos=200_000_000))
    run = await ended((await replica()).client(), limits=limits)
    assert reason_of(run) == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    assert run.error.message == "the run did not end within 0.2 s"


async def test_an_outage_longer_than_the_run_ends_it_at_its_deadline(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.failures = [away("inference", 0.01)] * 1000
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(nanos=400_000_000))
    run = await ended((await replica()).client(), limits=limits)
    assert reason_of(run) == reasons.ERROR_REASON_RUN_LIMIT_REACHED


async def test_several_tools_of_a_turn_run_side_by_side_within_their_bound(
    replica: StartReplica, world: World
) -> None:
    calls = [("calculator", {"expression": f"{n} * 2"}) for n in range(5)]

    def think(asked: Generate) -> Turn:
        told = [m for m in asked.messages if m.role == message_pb2.ROLE_TOOL]
        return says(" ".join(m.text for m in told)) if told else says("", *calls)

    world.inference.think = think
    world.tools.effects.hold = asyncio.Event()
    client = (await replica(max_parallel_tools=3)).client()
    run = await client.create()
    await eventually(lambda: world.tools.effects.held == 3)
    world.tools.effects.hold.set()
    answer = (await client.ended(run.name)).result
    assert answer == " ".join(f'{{"value": {n * 2}}}' for n in range(5))
    assert world.tools.most_at_once == 3


async def test_a_call_that_ends_the_run_stops_its_siblings(
    replica: StartReplica, world: World
) -> None:
    world.inference.think = lambda _: says(
        "", *[("calculator", {"expression": "1 * 1"}) for _ in range(3)]
    )
    world.tools.effects.hold = asyncio.Event()
    world.tools.effects.failures = [RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "empty")]
    run = await ended((await replica()).client())
    assert reason_of(run) == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    await eventually(lambda: world.tools.at_once == 0)


async def test_an_idempotent_call_in_doubt_is_made_again_where_the_agent_says_so(
    replica: StartReplica, world: World, agents_dir: Any
) -> None:
    (agents_dir / "tester.yaml").write_text(AGENT + "on_doubt: retry_idempotent\n")
    doubt = RemitError(reasons.ERROR_REASON_EFFECT_IN_DOUBT, "unknown")
    client = (await replica(agents_dir=agents_dir)).client()
    world.tools.effects.failures = [doubt]
    run = await client.create(agent="agents/tester")
    assert (await client.ended(run.name)).result == "The result is 391."
    assert list(world.tools.effects.performed) == [f"{run.name}/steps/1/tools/c0/2"]
    world.tools.effects.failures = [doubt] * 3
    run = await ended(client, agent="agents/tester")
    assert reason_of(run) == reasons.ERROR_REASON_EFFECT_IN_DOUBT
    world.inference.think = lambda _: says("", ("send_email", {}))
    world.tools.effects.failures = [doubt]
    run = await ended(client, agent="agents/tester")
    assert reason_of(run) == reasons.ERROR_REASON_EFFECT_IN_DOUBT


async def test_a_tool_that_is_not_offered_fails_the_run_by_name(
    replica: StartReplica, world: World
) -> None:
    world.tools.names = ("calculators", "clock", "read_file", "search")
    run = await ended((await replica()).client())
    assert reason_of(run) == reasons.ERROR_REASON_TOOL_NOT_FOUND
    assert "tools/calculator, which is not offered; did you mean tools/calculators?" in (
        run.error.message
    )


async def test_a_turn_that_was_cut_is_no_answer(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    for finish, reason in (
        (message_pb2.FINISH_REASON_LENGTH, reasons.ERROR_REASON_RUN_LIMIT_REACHED),
        (message_pb2.FINISH_REASON_CONTENT_FILTER, reasons.ERROR_REASON_PROVIDER_FAILED),
        (message_pb2.FINISH_REASON_BUDGET, reasons.ERROR_REASON_BUDGET_EXHAUSTED),
        (message_pb2.FINISH_REASON_DEADLINE, reasons.ERROR_REASON_DEADLINE_EXCEEDED),
        (message_pb2.FINISH_REASON_PERMISSION, reasons.ERROR_REASON_PERMISSION_DENIED),
    ):
        turn = says("half an ans")
        turn.finish_reason = finish
        world.inference.think = lambda _, turn=turn: turn  # type: ignore[misc]
        run = await ended(client)
        assert reason_of(run) == reason
        assert run.result == ""
        assert run.cost_nanos == turn.cost_nanos


async def test_large_results_and_artifacts_are_stored_once_and_returned(
    replica: StartReplica, world: World
) -> None:
    content = b"# Report\n" * 1000

    def act(asked: tool_service_pb2.CallToolRequest) -> tool_service_pb2.CallToolResponse:
        response = results(text="x" * 5000)
        response.artifacts.add(
            artifact=tool_pb2.Artifact(name="report.md", media_type="text/markdown"),
            content=content,
        )
        return response

    def think(asked: Generate) -> Turn:
        if len(asked.messages) > 6:
            return says("done")
        return says("", ("calculator", {"expression": "1 * 1"}))

    world.inference.think, world.tools.act = think, act
    client = (await replica()).client()
    run = await ended(client)
    assert [artifact.name for artifact in run.artifacts] == ["report.md"]
    assert run.artifacts[0].size_bytes == len(content)
    made = await client.runs.GetArtifact(
        agent_service_pb2.GetArtifactRequest(run=run.name, artifact="report.md"),
        metadata=client.metadata,
    )
    assert made.content == content
    assert made.media_type == "text/markdown"
    assert made.digest == run.artifacts[0].digest
    # Task, offer, result, artifact: each once, although the tool was called three times.
    assert await world.database.fetchval("SELECT count(*) FROM content") == 4
    with pytest.raises(RemitError, match=r"did you mean report.md") as caught:
        await client.runs.GetArtifact(
            agent_service_pb2.GetArtifactRequest(run=run.name, artifact="raport.md"),
            metadata=client.metadata,
        )
    assert caught.value.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND


async def test_a_bug_ends_the_run_under_an_error_id(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("remit.agent.turns.model_request", broken)
    run = await ended((await replica()).client())
    assert reason_of(run) == reasons.ERROR_REASON_INTERNAL
    assert "its id is" in run.error.message


async def test_a_timeout_that_is_not_the_runs_own_ends_it_and_says_so(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await replica()

    async def too_late(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("remit.agent.turns.ModelTurns.ask", too_late)
    run = await ended(made.client())
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert reason_of(run) == reasons.ERROR_REASON_INTERNAL
