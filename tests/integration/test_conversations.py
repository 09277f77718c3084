"""Conversations through the whole mesh: over gRPC, over REST, by the command line."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import grpc
import pytest

from remit.api.agent.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    run_pb2,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import policy_admin_service_pb2, policy_admin_service_pb2_grpc
from tests.integration.clients import a_run, bearer, channel, followed, reason_of, result_of
from tests.integration.conftest import RunningMesh
from tests.rest import Client

LONG = "Remember this: " + "the tide comes in and goes out. " * 40


async def a_member(mesh: RunningMesh, user: str) -> str:
    """An API key of a user who is no admin."""
    async with channel(mesh.address) as edge:
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge)
        made = await admin.CreateApiKey(
            policy_admin_service_pb2.CreateApiKeyRequest(
                display_name="talks",
                user=f"{mesh.org}/users/{user}",
                roles=["member"],
                request_id=str(uuid.uuid4()),
            ),
            metadata=bearer(mesh.api_key),
        )
    return str(made.secret)


async def refusal(call: Any) -> reasons.ErrorReason.ValueType:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value).reason


async def test_a_thread_over_grpc_and_rest(mesh: RunningMesh) -> None:
    key, other = await a_member(mesh, "thora"), await a_member(mesh, "tjorven")
    service = conversation_service_pb2
    async with channel(mesh.address) as edge:
        talks = conversation_service_pb2_grpc.ConversationServiceStub(edge)
        begun = await talks.CreateConversation(
            service.CreateConversationRequest(display_name="Tides", request_id="r1"),
            metadata=bearer(key),
        )
        name = begun.conversation.name

        async def told(task: str, **fields: Any) -> run_pb2.Run:
            return result_of(await followed(mesh.address, key, a_run(task, **fields)))

        alone = await told("What is 17 * 23?")
        first = await told(LONG, conversation=name)
        second = await told("What is 17 * 23?", conversation=name)
        assert [run.state for run in (alone, first, second)] == [run_pb2.RUN_STATE_SUCCEEDED] * 3
        assert (second.previous_run, second.history_runs) == (first.name, 1)
        assert "391" in second.result
        # Its two model turns have read the exchange before, and it is billed for that.
        assert second.usage.input_tokens > alone.usage.input_tokens + 2 * len(LONG) // 8
        for call in (
            talks.GetConversation(
                service.GetConversationRequest(name=name), metadata=bearer(other)
            ),
            talks.DeleteConversation(
                service.DeleteConversationRequest(name=name, request_id="r2"),
                metadata=bearer(other),
            ),
        ):
            assert await refusal(call) == reasons.ERROR_REASON_CONVERSATION_NOT_FOUND
    rest = Client(mesh.address, {"authorization": f"Bearer {key}"})
    listed = (await rest.get("/v1/conversations")).json()["conversations"]
    assert [(each["name"], each["runs"]) for each in listed] == [(name, 2)]
    runs = (await rest.get(f"/v1/runs?conversation={name}")).json()["runs"]
    assert [run["name"] for run in runs] == [second.name, first.name]
    body = {"requestId": "r3"}
    gone = await rest.post(f"/v1/{name}:delete", body)
    assert gone.status == 200, gone
    assert (await rest.post(f"/v1/{name}:delete", body)).json() == gone.json()
    for path in (name, first.name, second.name):
        answer = await rest.get(f"/v1/{path}")
        assert answer.status == 404, answer
    kept = {run["name"] for run in (await rest.get("/v1/runs")).json()["runs"]}
    assert kept == {alone.name}


async def test_the_command_line_continues_what_was_used_last(mesh: RunningMesh) -> None:
    key = await a_member(mesh, "tove")

    async def remit(*arguments: str) -> Any:
        done = await asyncio.to_thread(mesh.run, *arguments, "--api-key", key, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    begun = await remit("conversations", "create", "Sums")
    name = begun["conversation"]["name"]
    await remit("run", "--conversation", name, "What is 2 + 3?")
    await remit("run", "--continue", "What is 17 * 23?")
    shown = await remit("conversations", "show", name)
    assert [run["task"] for run in shown["runs"]] == ["What is 2 + 3?", "What is 17 * 23?"]
    assert shown["runs"][1]["history_runs"] == 1
    assert (await remit("conversations", "delete", name))["conversation"]["name"] == name
    assert (await remit("conversations", "list"))["conversations"] == []
