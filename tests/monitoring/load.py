"""What a mesh goes through so that its metrics move: successes, failures, denials and deaths."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, Final

import grpc
from google.protobuf import struct_pb2

from remit.api.agent.v1 import agent_service_pb2_grpc, run_pb2
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.contracts import AREAS
from tests.integration.clients import (
    a_run,
    bearer,
    channel,
    followed,
    reason_of,
    result_of,
)
from tests.integration.conftest import RunningMesh
from tests.monitoring.prometheus import Prometheus
from tests.tools.receiver import answer, receiving
from tests.waiting import PATIENCE, eventually

TOOLS: Final = '''
"""Tools that go wrong."""

import asyncio

from remit.tools import ToolError, tool


@tool(permission_class="none", idempotent=False)
async def stall() -> str:
    """Do not end."""
    await asyncio.sleep(50)
    return "late"


@tool(permission_class="none", idempotent=True)
async def stumble() -> str:
    """Fail."""
    raise ToolError("it stumbled")


@tool(permission_class="none", idempotent=True)
async def sign() -> str:
    """Do what people have to approve."""
    return "signed"
'''
"""The module `going_wrong`, which the tools service loads."""

POLICY: Final = """
@id("signed-with-approval")
@approval("role:admin; expires=1h")
forbid (principal, action == Action::"tools.call", resource == Tool::"tools/sign");
"""
"""Stands beside the shipped policies."""

PRICES: Final = "prices: {tools/stall: {call_nanos: 7_000}}"
"""So that the tool at which a service dies holds money."""

LEASE_S: Final = "2"
ENVIRONMENT: Final = {
    "REMIT_AGENT_LEASE_S": LEASE_S,
    "REMIT_AGENT_MAX_RUNNING": "2",
    "REMIT_INFERENCE_EFFECT_LEASE_S": LEASE_S,
    "REMIT_TOOLS_EFFECT_LEASE_S": LEASE_S,
    "REMIT_TOOLS_EFFECT_SWEEP_S": "0.5",
    "REMIT_TOOLS_MODULES": "going_wrong",
    "REMIT_AGENT_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
    "REMIT_TOOLS_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
    "REMIT_AGENT_WEBHOOK_RETRY_BASE_S": "0.1",
    **{f"REMIT_{area.upper()}_OBSERVE_S": "0.5" for area in AREAS},
}
PATIENT_RUNS: Final = 12


async def go_through_everything(mesh: RunningMesh, prometheus: Prometheus) -> None:
    """All of it, in an order in which nothing hides another."""
    _shadow(mesh)
    await _runs(mesh, 8)
    await _refusals(mesh)
    await _failures(mesh)
    await _people(mesh)
    await _webhooks(mesh, prometheus)
    await _disaster(mesh, prometheus)
    await _runs(mesh, 8)


def _shadow(mesh: RunningMesh) -> None:
    """Policies that see all that follows, and agree."""
    started = mesh.run("policy", "shadow", "start", str(SHIPPED_POLICIES))
    assert started.returncode == 0, started.stderr


async def _runs(mesh: RunningMesh, count: int) -> None:
    wanted = (a_run(f"What is {n} * 7?", context={"n": str(n)}) for n in range(count))
    histories = await asyncio.gather(*(followed(mesh.address, mesh.api_key, r) for r in wanted))
    assert {result_of(events).state for events in histories} == {run_pb2.RUN_STATE_SUCCEEDED}


async def _refusals(mesh: RunningMesh) -> None:
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        for request, key in (
            (a_run(""), mesh.api_key),
            (a_run("<script>"), mesh.api_key),
            (a_run(agent="agents/nobody"), mesh.api_key),
            (a_run(), "rk_wrong"),
        ):
            await _fails(agents.CreateRun(request, metadata=bearer(key), timeout=10 * PATIENCE))


async def _failures(mesh: RunningMesh) -> None:
    """A run out of steps, one out of money, a tool that fails, a key used again, a denied path."""
    limits = (run_pb2.RunLimits(max_steps=1), run_pb2.RunLimits(max_cost_nanos=1))
    for limit in limits:
        events = await followed(mesh.address, mesh.api_key, a_run(limits=limit))
        assert result_of(events).state == run_pb2.RUN_STATE_FAILED
    key = str(uuid.uuid4())
    await call(mesh, "calculator", key, expression="1 + 1")
    await call(mesh, "calculator", key, expression="1 + 1")
    await _fails(call(mesh, "calculator", key, expression="1 + 2"))
    await _fails(call(mesh, "stumble", str(uuid.uuid4())))
    await _fails(call(mesh, "read_file", str(uuid.uuid4()), path="../../etc/passwd"))


async def _people(mesh: RunningMesh) -> None:
    """What people approve, what they deny, and what still waits for them."""
    ran = ("keys", "create", "bob", "--user", f"{mesh.org}/users/bob", "--json")
    bob = str(json.loads(await _told(mesh, *ran))["secret"])
    approved, denied, _ = wanted = [str(uuid.uuid4()) for _ in range(3)]
    asked = [await _approval(mesh, bob, request) for request in wanted]
    await _told(mesh, "approvals", "approve", asked[0])
    await _told(mesh, "approvals", "deny", asked[1], "--reason", "not today")
    await call(mesh, "sign", approved, api_key=bob)
    await _fails(call(mesh, "sign", denied, api_key=bob))


async def _approval(mesh: RunningMesh, api_key: str, request: str) -> str:
    """The approval that a call asks for."""
    try:
        await call(mesh, "sign", request, api_key=api_key)
    except grpc.aio.AioRpcError as error:
        return reason_of(error).metadata["approval"]
    message = "people were to be asked"
    raise AssertionError(message)


async def _told(mesh: RunningMesh, *arguments: str) -> str:
    """What a command of an admin prints."""
    done = await asyncio.to_thread(mesh.run, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def _webhooks(mesh: RunningMesh, prometheus: Prometheus) -> None:
    """A receiver that confirms at the second try, and one that wants no more."""
    async with receiving() as late, receiving() as gone:
        late.answers, gone.answers = [answer(500)], [answer(410)]
        for receiver in (late, gone):
            await followed(mesh.address, mesh.api_key, a_run(webhook=receiver.url))
        for state in ("DELIVERED", "FAILED"):
            await _until(prometheus, f'sum(agent_webhooks_total{{state="{state}"}}) > 0')


async def _disaster(mesh: RunningMesh, prometheus: Prometheus) -> None:
    """Tools, the model and a replica of agent die, all with work at hand."""
    stalling = asyncio.ensure_future(call(mesh, "stall", str(uuid.uuid4())))
    await _until(prometheus, 'max(remit_holds_oldest_seconds{action="tools.call"}) > 1')
    mesh.kill("tools-0")
    mesh.kill("inference-0")
    wanted = (a_run(f"What is {n} * 11?") for n in range(PATIENT_RUNS))
    runs = [
        asyncio.create_task(followed(mesh.address, mesh.api_key, run, timeout_s=60))
        for run in wanted
    ]
    await _until(prometheus, "max(agent_queue_length) > 0 and sum(agent_runs_waiting) > 0")
    mesh.kill("agent-0")
    await asyncio.gather(*runs)
    await _until(prometheus, 'sum(agent_runs_claimed_total{origin="orphan"}) > 0')
    await _until(prometheus, 'sum(remit_claims_lapsed_total{state="IN_DOUBT"}) > 0')
    stalling.cancel()
    await asyncio.gather(stalling, return_exceptions=True)


async def call(
    mesh: RunningMesh, tool: str, key: str, *, api_key: str = "", **arguments: Any
) -> Any:
    """Calls a tool at the edge, as the admin unless another API key is given."""
    given = struct_pb2.Struct()
    given.update(arguments)
    async with channel(mesh.address) as edge:
        request = tool_service_pb2.CallToolRequest(
            tool=f"tools/{tool}", arguments=given, request_id=key
        )
        tools = tool_service_pb2_grpc.ToolServiceStub(edge)
        who = bearer(api_key or mesh.api_key)
        return await tools.CallTool(request, metadata=who, timeout=60 * PATIENCE)


async def _fails(answer: Any) -> None:
    try:
        await answer
    except grpc.aio.AioRpcError:
        return
    message = "it was to be refused"
    raise AssertionError(message)


async def _until(prometheus: Prometheus, condition: str) -> None:
    """Waits until a condition in PromQL holds of any series."""
    await eventually(lambda: bool(prometheus.query(condition)), 40)
