"""Whatever is wrong with a request, its answer has a code, a reason and a next step."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    event_pb2,
)
from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    reservation_pb2,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    message_pb2,
)
from remit.api.policy.v1 import policy_admin_service_pb2, policy_admin_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.local.first_key import ORG
from remit.rpc.errors import RemitError
from tests.integration.clients import a_run, bearer, channel, followed, reason_of, result_of
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE, eventually

CALCULATOR_NANOS = 1_000
"""What the shipped price list asks for a call."""
RUN_ID = "01980000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Case:
    """One wrong request."""

    call: Callable[[grpc.aio.Channel, Any], Awaitable[Any]]
    reason: reasons.ErrorReason.ValueType
    fields: tuple[str, ...] = ()


def create(**fields: Any) -> Callable[[grpc.aio.Channel, Any], Awaitable[Any]]:
    async def call(edge: grpc.aio.Channel, metadata: Any) -> Any:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        return await agents.CreateRun(a_run(**fields), metadata=metadata, timeout=10 * PATIENCE)

    return call


def get_run(name: str) -> Callable[[grpc.aio.Channel, Any], Awaitable[Any]]:
    async def call(edge: grpc.aio.Channel, metadata: Any) -> Any:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        request = agent_service_pb2.GetRunRequest(name=name)
        return await agents.GetRun(request, metadata=metadata, timeout=10 * PATIENCE)

    return call


def call_tool(tool: str, **arguments: Any) -> Callable[[grpc.aio.Channel, Any], Awaitable[Any]]:
    async def call(edge: grpc.aio.Channel, metadata: Any) -> Any:
        given = struct_pb2.Struct()
        given.update(arguments)
        request = tool_service_pb2.CallToolRequest(
            tool=tool, arguments=given, request_id=str(uuid.uuid4())
        )
        tools = tool_service_pb2_grpc.ToolServiceStub(edge)
        return await tools.CallTool(request, metadata=metadata, timeout=10 * PATIENCE)

    return call


def generate(model: str) -> Callable[[grpc.aio.Channel, Any], Awaitable[Any]]:
    async def call(edge: grpc.aio.Channel, metadata: Any) -> Any:
        message = message_pb2.Message(role=message_pb2.ROLE_USER, text="hello")
        request = inference_service_pb2.GenerateTextRequest(
            model=model, messages=[message], request_id=str(uuid.uuid4())
        )
        inference = inference_service_pb2_grpc.InferenceServiceStub(edge)
        return await inference.GenerateText(request, metadata=metadata, timeout=10 * PATIENCE)

    return call


CASES = {
    "unknown agent": Case(create(agent="agents/asistant"), reasons.ERROR_REASON_AGENT_NOT_FOUND),
    "malformed agent": Case(
        create(agent="assistant"), reasons.ERROR_REASON_INVALID_REQUEST, ("agent",)
    ),
    "empty task": Case(create(task=""), reasons.ERROR_REASON_INVALID_REQUEST, ("task",)),
    "long task": Case(create(task="x" * 10_001), reasons.ERROR_REASON_INVALID_REQUEST, ("task",)),
    "script in the task": Case(
        create(task="sum <script>alert(1)</script>"),
        reasons.ERROR_REASON_SUSPICIOUS_INPUT,
        ("task",),
    ),
    "handler in the context": Case(
        create(context={"page": "<img onerror=alert(1)>"}),
        reasons.ERROR_REASON_SUSPICIOUS_INPUT,
    ),
    "no request id": Case(
        create(request_id=""), reasons.ERROR_REASON_INVALID_REQUEST, ("request_id",)
    ),
    "negative limit": Case(
        create(limits=run_pb2.RunLimits(max_cost_nanos=-1)),
        reasons.ERROR_REASON_INVALID_REQUEST,
    ),
    "unknown run": Case(get_run(f"runs/{RUN_ID}"), reasons.ERROR_REASON_RUN_NOT_FOUND),
    "malformed run": Case(get_run("runs/x"), reasons.ERROR_REASON_INVALID_REQUEST, ("name",)),
    "unknown tool": Case(call_tool("tools/calculater"), reasons.ERROR_REASON_TOOL_NOT_FOUND),
    "missing argument": Case(
        call_tool("tools/calculator"), reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    ),
    "unknown argument": Case(
        call_tool("tools/calculator", expression="1+1", precision="high"),
        reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
    ),
    "failing tool": Case(
        call_tool("tools/calculator", expression="1/0"), reasons.ERROR_REASON_TOOL_FAILED
    ),
    "unknown model": Case(generate("models/gpt-99"), reasons.ERROR_REASON_MODEL_NOT_FOUND),
}


async def refused(mesh: RunningMesh, case: Case, metadata: Any = None) -> RemitError:
    async with channel(mesh.address) as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await case.call(edge, bearer(mesh.api_key) if metadata is None else metadata)
    error = reason_of(caught.value)
    assert error.reason_name == RemitError(case.reason, "").reason_name, error.message
    assert error.code is caught.value.code()
    assert error.message
    assert error.next_step
    return error


@pytest.mark.parametrize("name", CASES)
async def test_a_wrong_request_says_what_is_wrong(mesh: RunningMesh, name: str) -> None:
    error = await refused(mesh, CASES[name])
    fields = {violation.field for violation in error.violations}
    assert set(CASES[name].fields) <= fields


async def test_all_violations_come_at_once(mesh: RunningMesh) -> None:
    case = Case(create(agent="x", task="", request_id=""), reasons.ERROR_REASON_INVALID_REQUEST)
    error = await refused(mesh, case)
    assert {"agent", "task", "request_id"} <= {v.field for v in error.violations}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), reasons.ERROR_REASON_CREDENTIAL_MISSING),
        (bearer(""), reasons.ERROR_REASON_CREDENTIAL_INVALID),
        (bearer("nonsense"), reasons.ERROR_REASON_CREDENTIAL_INVALID),
        (bearer("rmt_0000_0000_0000"), reasons.ERROR_REASON_CREDENTIAL_INVALID),
    ],
)
async def test_without_a_good_key_nobody_gets_in(
    mesh: RunningMesh, metadata: Any, reason: reasons.ErrorReason.ValueType
) -> None:
    await refused(mesh, Case(get_run(f"runs/{RUN_ID}"), reason), metadata)


async def made_key(mesh: RunningMesh, roles: list[str], user: str) -> Any:
    request = policy_admin_service_pb2.CreateApiKeyRequest(
        display_name="test",
        user=f"{ORG}/users/{user}",
        roles=roles,
        request_id=str(uuid.uuid4()),
    )
    async with channel(mesh.address) as edge:
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge)
        return await admin.CreateApiKey(
            request, metadata=bearer(mesh.api_key), timeout=10 * PATIENCE
        )


async def test_a_revoked_key_is_refused_within_the_bound(mesh: RunningMesh) -> None:
    made = await made_key(mesh, ["member"], "carol")
    case = Case(get_run(f"runs/{RUN_ID}"), reasons.ERROR_REASON_RUN_NOT_FOUND)
    await refused(mesh, case, bearer(made.secret))
    async with channel(mesh.address) as edge:
        await policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge).RevokeApiKey(
            policy_admin_service_pb2.RevokeApiKeyRequest(
                name=made.api_key.name, request_id=str(uuid.uuid4())
            ),
            metadata=bearer(mesh.api_key),
            timeout=10 * PATIENCE,
        )
    case = Case(get_run(f"runs/{RUN_ID}"), reasons.ERROR_REASON_CREDENTIAL_REVOKED)
    # The other replica of policy may know the key for as long as it keeps an edge's answer.
    await eventually(lambda: _is_refused(mesh, case, bearer(made.secret)), 20)


async def _is_refused(mesh: RunningMesh, case: Case, metadata: Any) -> bool:
    async with channel(mesh.address) as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await case.call(edge, metadata)
    return reason_of(caught.value).reason == case.reason


async def test_a_member_administers_nothing_and_sees_no_run_of_others(mesh: RunningMesh) -> None:
    made = await made_key(mesh, ["member"], "dave")
    metadata = bearer(made.secret)

    async def create_key(edge: grpc.aio.Channel, metadata: Any) -> Any:
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge)
        return await admin.CreateApiKey(
            policy_admin_service_pb2.CreateApiKeyRequest(), metadata=metadata, timeout=10 * PATIENCE
        )

    await refused(mesh, Case(create_key, reasons.ERROR_REASON_PERMISSION_DENIED), metadata)
    run = result_of(await followed(mesh.address, mesh.api_key, a_run("What is 1 + 1?")))
    await refused(mesh, Case(get_run(run.name), reasons.ERROR_REASON_RUN_NOT_FOUND), metadata)


async def test_a_service_of_the_mesh_cannot_be_called_from_outside(mesh: RunningMesh) -> None:
    async def reserve(edge: grpc.aio.Channel, metadata: Any) -> Any:
        call: Any = edge.unary_unary("/remit.api.cost.v1.CostService/ReserveBudget")
        return await call(b"", metadata=metadata, timeout=10 * PATIENCE)

    await refused(mesh, Case(reserve, reasons.ERROR_REASON_METHOD_UNKNOWN))


async def test_a_run_without_money_fails_and_says_so(mesh: RunningMesh) -> None:
    limits = run_pb2.RunLimits(max_cost_nanos=0)
    run = result_of(await followed(mesh.address, mesh.api_key, a_run(limits=limits)))
    assert run.state == run_pb2.RUN_STATE_FAILED
    error = RemitError.from_status(run.error)
    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert error.quota
    assert run.cost_nanos == 0


async def test_a_user_whose_budget_is_zero_spends_nothing(mesh: RunningMesh) -> None:
    made = await made_key(mesh, ["member"], "erin")
    async with channel(mesh.address) as edge:
        await cost_report_service_pb2_grpc.CostReportServiceStub(edge).SetBudget(
            cost_report_service_pb2.SetBudgetRequest(
                account=f"{ORG}/users/erin",
                period=reservation_pb2.PERIOD_TOTAL,
                limit_nanos=0,
                request_id=str(uuid.uuid4()),
            ),
            metadata=bearer(mesh.api_key),
            timeout=10 * PATIENCE,
        )
    run = result_of(await followed(mesh.address, made.secret, a_run()))
    assert run.state == run_pb2.RUN_STATE_FAILED
    error = RemitError.from_status(run.error)
    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert error.quota[0].subject.endswith("/users/erin")


async def test_a_refusal_names_account_limit_rest_and_renewal(mesh: RunningMesh) -> None:
    account = f"{ORG}/users/frank"
    made = await made_key(mesh, ["member"], "frank")
    async with channel(mesh.address) as edge:
        reports = cost_report_service_pb2_grpc.CostReportServiceStub(edge)
        await reports.SetBudget(
            cost_report_service_pb2.SetBudgetRequest(
                account=account,
                period=reservation_pb2.PERIOD_MONTH,
                limit_nanos=CALCULATOR_NANOS + 1,
                request_id=str(uuid.uuid4()),
            ),
            metadata=bearer(mesh.api_key),
            timeout=10 * PATIENCE,
        )
        call = call_tool("tools/calculator", expression="6 * 7")
        await call(edge, bearer(made.secret))
    error = await refused(
        mesh, Case(call, reasons.ERROR_REASON_BUDGET_EXHAUSTED), bearer(made.secret)
    )
    (quota,) = error.quota
    assert quota.subject == account
    assert f"the MONTH limit is {CALCULATOR_NANOS + 1} nano-USD, 1 left" in quota.description
    assert "renews at " in quota.description
    assert error.retry_after_s is not None
    assert 0 <= error.retry_after_s <= 31 * 86_400
    assert error.metadata["left_nanos"] == "1"
    # The call came to 99 % of its budget: that is in the list, and in the log.
    await eventually(lambda: _is_told(mesh, account), 60)


async def _is_told(mesh: RunningMesh, account: str) -> bool:
    async with channel(mesh.address) as edge:
        alerts = await cost_report_service_pb2_grpc.CostReportServiceStub(edge).ListBudgetAlerts(
            cost_report_service_pb2.ListBudgetAlertsRequest(account=account),
            metadata=bearer(mesh.api_key),
            timeout=10 * PATIENCE,
        )
        if not alerts.alerts:
            return False
        (alert,) = alerts.alerts
        events = await audit_query_service_pb2_grpc.AuditQueryServiceStub(edge).ListEvents(
            audit_query_service_pb2.ListEventsRequest(claim=alert.claim),
            metadata=bearer(mesh.api_key),
            timeout=10 * PATIENCE,
        )
    assert alert.percent == 80
    kinds = {logged.event.kind: logged.event.resource for logged in events.events}
    return kinds.get(event_pb2.EVENT_KIND_ALERT) == account


async def test_a_deadline_that_passed_is_said_and_nothing_hangs(mesh: RunningMesh) -> None:
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agents.ListRuns(
                agent_service_pb2.ListRunsRequest(),
                metadata=bearer(mesh.api_key),
                timeout=0.0005,
            )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
