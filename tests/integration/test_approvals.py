"""Approvals through the front door: a run waits for people, across kills, and does as they say."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.cli import exit_codes
from remit.policy.epochs import read_policies
from remit.policy.rule_sets import compile_policies
from remit.policy.schema import SHIPPED_POLICIES
from tests.integration.approving import approving_mesh, waiting_run
from tests.integration.clients import a_run, bearer, channel, followed, reason_of
from tests.integration.conftest import RunningMesh
from tests.tools.calls import struct
from tests.waiting import eventually

BOB = "orgs/local/users/bob"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh whose policies want an approval before a file is written."""
    with approving_mesh(tmp_path_factory.mktemp("policies")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def bobs_key(guarded: RunningMesh) -> str:
    """The key of a member who starts runs."""
    done = guarded.run("keys", "create", "bob", "--user", BOB, "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["secret"])


def approvals(mesh: RunningMesh, *arguments: str) -> list[dict[str, Any]]:
    done = mesh.run("approvals", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["approvals"])


@pytest.fixture(scope="module")
def sues_key(guarded: RunningMesh) -> str:
    """The key of a member of the team that is shown no personal data."""
    team = ("--team", "orgs/local/teams/support")
    done = guarded.run("keys", "create", "sue", "--user", "orgs/local/users/sue", *team, "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["secret"])


async def end_of(mesh: RunningMesh, key: str, run: str) -> list[run_pb2.RunEvent]:
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        request = agent_service_pb2.WatchRunRequest(name=run)
        stream = agents.WatchRun(request, metadata=bearer(key))
        return [piece.event async for piece in stream if piece.HasField("event")]


async def recorded(mesh: RunningMesh, approval: str) -> set[tuple[str, int]]:
    """Actions and outcomes that the log holds about an approval."""
    async with channel(mesh.address) as edge:
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        request = audit_query_service_pb2.ListEventsRequest(
            kind=event_pb2.EVENT_KIND_ADMIN, page_size=200
        )
        found = await audit.ListEvents(request, metadata=bearer(mesh.api_key))
    events = [logged.event for logged in found.events]
    return {(event.action, event.outcome) for event in events if event.resource == approval}


async def test_an_approved_run_goes_on_after_every_part_was_killed(
    guarded: RunningMesh, bobs_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, approval = await waiting_run(guarded, bobs_key, "approved.md")
    assert run.state == run_pb2.RUN_STATE_RUNNING
    (listed,) = approvals(guarded, "--run", run.name)
    assert (listed["name"], listed["requester"]) == (approval, BOB)
    shown = guarded.run("approvals", "show", approval)
    assert "approved.md" in shown.stdout
    assert "files are written only with approval" in shown.stdout
    own = guarded.run("approvals", "approve", approval, "--api-key", bobs_key)
    assert own.returncode == exit_codes.NOT_ALLOWED, own.stdout + own.stderr
    assert "nobody decides about what they asked for" in own.stderr
    for part in ("agent-0", "tools-0", "policy-0"):
        before = guarded.restarts(part)
        guarded.kill(part)
        await eventually(lambda part=part, before=before: guarded.restarts(part) > before, 60)  # type: ignore[misc]

    def decided() -> bool:
        arguments = ("approvals", "approve", approval, "--request-id", "a1", "--reason", "fine")
        return guarded.run(*arguments).returncode == 0

    assert await eventually(decided, 60)
    began = time.monotonic()
    events = await end_of(guarded, bobs_key, run.name)
    took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"\nfrom the decision to the end of the run: {took_s:.2f} s")  # noqa: T201 - a figure
    ended = events[-1].ended.run
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended
    assert [artifact.name for artifact in ended.artifacts] == ["approved.md"]
    calls = [event for event in events if event.HasField("tool_call_ended")]
    assert len(calls) == 1
    late = guarded.run("approvals", "deny", approval, "--reason", "too late")
    assert late.returncode == exit_codes.FAILED
    assert "USED" in late.stderr or "already" in late.stderr

    async def all_recorded() -> bool:
        found = await recorded(guarded, approval)
        succeeded = {action for action, outcome in found if outcome == event_pb2.OUTCOME_SUCCEEDED}
        refused = ("approvals.decide", event_pb2.OUTCOME_REFUSED) in found
        return refused and {"approvals.ask", "approvals.decide", "approvals.use"} <= succeeded

    assert await eventually(all_recorded, 30)


async def test_a_denied_call_is_told_to_the_model(guarded: RunningMesh, bobs_key: str) -> None:
    run, approval = await waiting_run(guarded, bobs_key, "denied.md")
    done = guarded.run("approvals", "deny", approval, "--reason", "not today")
    assert done.returncode == 0, done.stderr
    events = await end_of(guarded, bobs_key, run.name)
    (call,) = [event.tool_call_ended for event in events if event.HasField("tool_call_ended")]
    assert "not today" in call.error.message
    assert not events[-1].ended.run.artifacts


async def test_a_cancelled_run_withdraws_its_question(guarded: RunningMesh, bobs_key: str) -> None:
    run, approval = await waiting_run(guarded, bobs_key, "cancelled.md")
    done = guarded.run("runs", "cancel", run.name)
    assert done.returncode == 0, done.stderr
    (listed,) = approvals(guarded, "--run", run.name, "--in-state", "withdrawn")
    assert listed["name"] == approval
    late = guarded.run("approvals", "approve", approval)
    assert late.returncode == exit_codes.FAILED


async def test_a_run_that_needs_nobody_waits_for_nobody(
    guarded: RunningMesh, bobs_key: str
) -> None:
    events = await asyncio.wait_for(followed(guarded.address, bobs_key, a_run()), 240)
    assert events[-1].ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert not [event for event in events if event.HasField("waiting")]


def test_the_shipped_policies_ask_about_doubts_alone() -> None:
    shipped = compile_policies(read_policies(SHIPPED_POLICIES)).policies
    asking = {policy.identifier for policy in shipped if policy.approval is not None}
    assert asking == {"doubts-ask-an-admin"}


ADDRESS = "alice@example.com"
GREETING = f"What is 17 * 23? Greet {ADDRESS}."


async def test_policy_chooses_what_a_team_is_shown_in_streams_and_by_tools(
    guarded: RunningMesh, bobs_key: str, sues_key: str
) -> None:
    for key, is_shown in ((bobs_key, True), (sues_key, False)):
        events = await asyncio.wait_for(followed(guarded.address, key, a_run(GREETING)), 240)
        run = events[-1].ended.run
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert run.task == GREETING
        told = "".join(event.text_delta.text for event in events if event.HasField("text_delta"))
        for text in (run.result, told):
            assert "391" in text
            assert (ADDRESS in text, "[email]" in text) == (is_shown, not is_shown)
        async with channel(guarded.address) as edge:
            tools = tool_service_pb2_grpc.ToolServiceStub(edge)
            asked = tool_service_pb2.CallToolRequest(
                tool="tools/read_file", request_id=run.name, arguments=struct({"path": ADDRESS})
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await tools.CallTool(asked, metadata=bearer(key))
        error = reason_of(caught.value)
        assert (ADDRESS in error.message) == is_shown, error


async def test_policy_refuses_a_task_of_whoever_and_one_of_an_agent(
    guarded: RunningMesh, bobs_key: str
) -> None:
    async with channel(guarded.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        for asked in (
            a_run("What opens AKIAIOSFODNN7EXAMPLE?"),
            a_run(GREETING, agent="agents/clerk"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await agents.CreateRun(asked, metadata=bearer(bobs_key))
            error = reason_of(caught.value)
            assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
            assert [violation.field for violation in error.violations] == ["task"]
        # The clerk is told names by admins.
        by_admin = a_run("What is 2 + 2, alice@example.com?", agent="agents/clerk")
        run = (await agents.CreateRun(by_admin, metadata=bearer(guarded.api_key))).run
        assert "alice@example.com" in run.task
