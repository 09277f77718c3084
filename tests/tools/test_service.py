"""CallTool over the gate and a real database."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.effects.v1.attempt_pb2 import Attempt, AttemptKey
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.errors import RemitError
from remit.tools.arguments import plain_struct
from remit.tools.settings import ToolsSettings
from tests.effects.world import World
from tests.tools.service_world import BOB, ToolsWorld, a_run, error_of, opened, token_of
from tests.waiting import eventually


def lines(runs: Path) -> list[str]:
    return runs.read_text().splitlines() if runs.exists() else []


def outcomes(world: World) -> list[event_pb2.Outcome.ValueType]:
    return [
        event.outcome
        for event in world.events.values()
        if event.kind == event_pb2.EVENT_KIND_OUTCOME
    ]


async def test_a_call_is_performed_billed_and_recorded(tools: ToolsWorld, world: World) -> None:
    response = await tools.call("tools/calculator", {"expression": "17 * 23"})
    assert plain_struct(response.result) == {"result": "391", "exact": True}
    assert response.usage.calls == 1
    assert response.cost_nanos == 100
    assert response.claim.startswith("claims/")
    assert (response.intent_leaf_index, response.replayed) == (0, False)
    await tools.settled_down()
    assert world.open_holds() == []
    (intent, outcome) = world.events.values()
    assert (intent.action, intent.resource) == ("tools.call", "tools/calculator")
    assert outcome.outcome == event_pb2.OUTCOME_SUCCEEDED
    assert len(json.loads(intent.detail_json)["arguments_sha256"]) == 64


async def test_the_same_call_again_is_answered_from_the_record(
    tools: ToolsWorld, world: World
) -> None:
    first = await tools.call("tools/write_file", {"path": "a.txt", "content": "one"})
    second = await tools.call("tools/write_file", {"path": "a.txt", "content": "one"})
    assert second.replayed
    second.replayed = False
    assert second == first
    assert first.artifacts[0].content == b"one"
    assert len(world.holds) == 1


async def test_the_same_key_with_another_body_is_refused(tools: ToolsWorld) -> None:
    await tools.call("tools/calculator", {"expression": "1"})
    for body in ({"expression": "2"}, {"expression": "1 "}):
        error = await error_of(lambda body=body: tools.call("tools/calculator", body))  # type: ignore[misc]
        assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    error = await error_of(lambda: tools.call("tools/calculator", {"expression": "1"}, limit_s=1))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_keys_of_other_subjects_are_other_keys(tools: ToolsWorld) -> None:
    await tools.call("tools/calculator", {"expression": "1"})
    response = await tools.call("tools/calculator", {"expression": "2"}, token=token_of(BOB))
    assert not response.replayed


async def test_a_failure_is_an_effect_that_happened_and_is_replayed(
    tools: ToolsWorld, world: World, runs: Path
) -> None:
    errors = [await error_of(lambda: tools.call("tools/fail_once", {})) for _ in range(2)]
    for error in errors:
        assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
        assert error.message == "tools/fail_once: the paper tray is empty"
        assert error.metadata["claim"].startswith("claims/")
    assert len(lines(runs)) == 1
    await tools.settled_down()
    assert outcomes(world) == [event_pb2.OUTCOME_FAILED]
    (hold,) = world.holds.values()
    assert hold.state == reservation_pb2.Reservation.STATE_SETTLED


async def test_a_crash_tells_its_type_and_no_more(tools: ToolsWorld) -> None:
    error = await error_of(lambda: tools.call("tools/crash", {}))
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert error.message == "tools/crash failed with RuntimeError; the service's log tells more"
    assert "hunter2" not in str(error.to_status())


async def test_a_result_over_its_bound_is_said(tools: ToolsWorld) -> None:
    error = await error_of(lambda: tools.call("tools/too_much", {}))
    assert error.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE
    assert "the limit is 262144" in error.message


async def test_time_that_runs_out_leaves_a_doubt_behind_what_may_not_be_repeated(
    tools: ToolsWorld, world: World, runs: Path
) -> None:
    for _ in range(2):
        error = await error_of(lambda: tools.call("tools/wait_for_ever", {}, limit_s=0.05))
        assert error.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
        assert "whether it took effect is unknown" in error.message
    assert lines(runs) == ["waiting"]
    await tools.settled_down()
    assert outcomes(world) == [event_pb2.OUTCOME_IN_DOUBT]


async def test_time_that_runs_out_fails_what_only_reads(tools: ToolsWorld, world: World) -> None:
    error = await error_of(lambda: tools.call("tools/watch_for_ever", {}, limit_s=0.05))
    assert error.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    await tools.settled_down()
    assert outcomes(world) == [event_pb2.OUTCOME_FAILED]


@pytest.mark.parametrize(
    ("tool", "outcome", "ran"),
    [
        ("tools/wait_for_ever", event_pb2.OUTCOME_IN_DOUBT, ["waiting"]),
        ("tools/prepare_for_ever", event_pb2.OUTCOME_CANCELLED, ["preparing", "preparing"]),
        ("tools/watch_for_ever", event_pb2.OUTCOME_CANCELLED, ["watching", "watching"]),
    ],
)
async def test_a_caller_who_leaves_stops_the_tool(
    tools: ToolsWorld,
    world: World,
    runs: Path,
    tool: str,
    outcome: event_pb2.Outcome.ValueType,
    ran: list[str],
) -> None:
    for _ in range(2):
        before = len(lines(runs))
        task = asyncio.create_task(tools.call(tool, {}))
        await eventually(
            lambda before=before, task=task: task.done() or len(lines(runs)) > before  # type: ignore[misc]
        )
        task.cancel()
        with pytest.raises((asyncio.CancelledError, RemitError)):
            await task
        await tools.settled_down()
    assert lines(runs) == ran
    assert set(outcomes(world)) == {outcome}
    assert world.open_holds() == []


async def test_a_tool_sees_its_effect_and_neither_call_nor_remit(tools: ToolsWorld) -> None:
    run = a_run()
    response = await tools.call(
        "tools/who",
        {},
        token=token_of(run=run, tools=("tools/who",)),
        caller=options_pb2.CALLER_AGENT,
    )
    found = plain_struct(response.result)
    assert found == {
        "key": response.claim.removeprefix("claims/"),
        "subject": "orgs/acme/users/alice",
        "org": "orgs/acme",
        "run": run,
        "call": "None",
    }


async def test_a_run_calls_the_tools_of_its_remit_alone(tools: ToolsWorld, world: World) -> None:
    token = token_of(run=a_run(), tools=("tools/clock",))
    agent = options_pb2.CALLER_AGENT
    await tools.call("tools/clock", {}, token=token, caller=agent)
    error = await error_of(
        lambda: tools.call(
            "tools/calculator", {"expression": "1"}, token=token, caller=agent, key="key-2"
        )
    )
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert error.metadata["permission"] == "tools.call"
    error = await error_of(
        lambda: tools.call("tools/calculater", {}, token=token, caller=agent, key="key-3")
    )
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_NOT_FOUND
    assert "did you mean" not in error.message
    assert len(world.holds) == 1


async def test_a_run_says_what_its_journal_holds_and_a_client_may_not(tools: ToolsWorld) -> None:
    token, agent = token_of(run=a_run(), tools=("tools/clock",)), options_pb2.CALLER_AGENT
    run = await tools.call("tools/clock", {}, token=token, caller=agent)
    client = await tools.call("tools/clock", {})
    request = tool_service_pb2.AcknowledgeResultsRequest(claims=[run.claim, client.claim])
    error = await error_of(lambda: tools.stub().AcknowledgeResults(request))
    assert error.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED
    response = await tools.stub(agent).AcknowledgeResults(request)
    own, foreign = (RemitError.from_status(result).reason_name for result in response.results)
    assert (response.results[0].code, foreign) == (0, "RESOURCE_NOT_FOUND"), own
    error = await error_of(lambda: tools.call("tools/clock", {}, token=token, caller=agent))
    assert error.reason == error_reason_pb2.ERROR_REASON_RESULT_NOT_KEPT
    assert (await tools.call("tools/clock", {})).result == client.result


async def test_who_checks_the_books_asks_where_claims_stand_and_nobody_else_may(
    tools: ToolsWorld,
) -> None:
    done = await tools.call("tools/clock", {})
    await tools.settled_down()
    cost, key = tools.stub(options_pb2.CALLER_COST), AttemptKey(claim=done.claim, attempt=1)
    batch = tool_service_pb2.BatchGetAttemptsRequest(keys=[key])
    got, listed = (
        await cost.BatchGetAttempts(batch),
        await cost.ListAttempts(tool_service_pb2.ListAttemptsRequest()),
    )
    for told in (got, listed):
        (attempt,) = told.attempts
        assert (attempt.key, attempt.state) == (key, Attempt.STATE_CLOSED)
        assert attempt.cost_nanos == done.cost_nanos
        assert told.closing_bound.ToTimedelta().total_seconds() > 0
    assert not listed.has_more
    for caller in (options_pb2.CALLER_PUBLIC, options_pb2.CALLER_POLICY):
        error = await error_of(partial(tools.stub(caller).BatchGetAttempts, batch))
        assert error.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


async def test_a_denied_call_runs_nothing(tools: ToolsWorld, world: World, runs: Path) -> None:
    world.denied = True
    error = await error_of(lambda: tools.call("tools/fail_once", {}))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert lines(runs) == []
    await tools.settled_down()
    assert world.open_holds() == []


async def test_without_money_nothing_runs(tools: ToolsWorld, world: World, runs: Path) -> None:
    world.out_of_money = True
    error = await error_of(lambda: tools.call("tools/fail_once", {}))
    assert error.reason == error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert lines(runs) == []


@pytest.mark.parametrize("area", ["policy", "cost", "audit"])
async def test_without_a_neighbour_nothing_runs(
    tools: ToolsWorld, world: World, runs: Path, area: str
) -> None:
    world.away.add(area)
    error = await error_of(lambda: tools.call("tools/fail_once", {}))
    assert error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert lines(runs) == []
    world.away.clear()


async def test_every_violation_of_a_request_is_reported(tools: ToolsWorld) -> None:
    error = await error_of(lambda: tools.call("calculator", {}, key="", limit_s=-1))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    assert [violation.field for violation in error.violations] == ["request_id", "tool", "timeout"]
    for key in ("k" * 129, "k\0", "k\n"):
        error = await error_of(partial(tools.call, "tools/clock", {}, key=key))
        assert [violation.field for violation in error.violations] == ["request_id"]


async def test_wrong_arguments_cost_nothing(tools: ToolsWorld, world: World) -> None:
    error = await error_of(lambda: tools.call("tools/calculator", {"expresion": "1"}))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    assert {violation.field for violation in error.violations} == {
        "arguments.expression",
        "arguments.expresion",
    }
    assert (world.holds, world.events) == ({}, {})


async def test_users_have_workspaces_of_their_own(tools: ToolsWorld) -> None:
    await tools.call("tools/write_file", {"path": "a.txt", "content": "alice's"})
    read = await tools.call("tools/read_file", {"path": "a.txt"}, key="key-2")
    assert plain_struct(read.result)["content"] == "alice's"
    error = await error_of(
        lambda: tools.call("tools/read_file", {"path": "a.txt"}, token=token_of(BOB))
    )
    assert error.message == "tools/read_file: a.txt does not exist"


async def test_a_lost_replicas_effect_is_in_doubt(
    settings: ToolsSettings, world: World, runs: Path
) -> None:
    """What another process started and never ended is never made again by itself."""
    short = settings.model_copy(update={"effect_lease_s": 0.2})
    async with opened(short, world) as lost, opened(short, world) as heir:
        task = asyncio.create_task(lost.call("tools/wait_for_ever", {}))
        await eventually(lambda: lines(runs))

        async def verdict() -> RemitError | None:
            error = await error_of(lambda: heir.call("tools/wait_for_ever", {}))
            in_progress = error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS
            return None if error.reason == in_progress else error

        error = await eventually(verdict)
        assert error is not None
        assert error.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
        assert lines(runs) == ["waiting"]
        task.cancel()
        with pytest.raises((asyncio.CancelledError, RemitError)):
            await task
