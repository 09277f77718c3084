"""A run through the front door, with a client made only from the stubs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    event_pb2,
)
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.rpc.contracts import public_services
from tests.integration.clients import a_run, bearer, channel, followed, result_of
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE, eventually


async def test_a_run_calls_a_tool_and_answers(mesh: RunningMesh) -> None:
    events = await followed(mesh.address, mesh.api_key, a_run())
    run = result_of(events)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "391" in run.result
    assert run.cost_nanos > 0
    assert run.usage.output_tokens > 0
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    tools = [e.tool_call_ended for e in events if e.WhichOneof("event") == "tool_call_ended"]
    assert [tool.tool for tool in tools] == ["tools/calculator"]
    assert "391" in json_format.MessageToJson(tools[0].result)
    texts = "".join(e.text_delta.text for e in events if e.WhichOneof("event") == "text_delta")
    assert run.result in texts


async def test_its_events_its_bill_and_its_record_agree(mesh: RunningMesh) -> None:
    run = result_of(await followed(mesh.address, mesh.api_key, a_run("What is 12 + 30?")))
    async with channel(mesh.address) as edge:
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        cost = cost_report_service_pb2_grpc.CostReportServiceStub(edge)

        async def recorded() -> list[event_pb2.Event]:
            response = await audit.ListEvents(
                audit_query_service_pb2.ListEventsRequest(run=run.name, page_size=200),
                metadata=bearer(mesh.api_key),
            )
            events = [logged.event for logged in response.events]
            outcomes = [e for e in events if e.kind == event_pb2.EVENT_KIND_OUTCOME]
            return events if len(outcomes) == 3 else []

        events = await eventually(recorded)
        by_kind = [event.kind for event in events]
        assert by_kind.count(event_pb2.EVENT_KIND_INTENT) == 3, "two model turns and a tool"
        assert {event.subject for event in events} == {run.subject}

        async def billed() -> int:
            response = await cost.ListSpend(
                cost_report_service_pb2.ListSpendRequest(
                    group_by=cost_report_service_pb2.ListSpendRequest.DIMENSION_RUN,
                    page_size=200,
                ),
                metadata=bearer(mesh.api_key),
            )
            rows = {row.key: row for row in response.rows}
            return next(
                (row.posted_nanos for key, row in rows.items() if key.endswith(run.name)), 0
            )

        posted = await eventually(billed)
        assert await eventually(lambda: _equals(billed, run.cost_nanos)), posted


async def _equals(read: Any, expected: int) -> bool:
    return bool(await read() == expected)


async def test_the_same_request_id_is_the_same_run(mesh: RunningMesh) -> None:
    request = a_run("What is 2 + 2?")
    first = result_of(await followed(mesh.address, mesh.api_key, request))
    again = result_of(await followed(mesh.address, mesh.api_key, request))
    assert first == again


async def test_a_watcher_resumes_at_any_event(mesh: RunningMesh) -> None:
    request = a_run("What is 3 * 5?")
    events = await followed(mesh.address, mesh.api_key, request)
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        for after in range(len(events)):
            asked = agent_service_pb2.WatchRunRequest(name=events[0].run, after_sequence=after)
            stream = agents.WatchRun(asked, metadata=bearer(mesh.api_key), timeout=20 * PATIENCE)
            rest = [r.event async for r in stream if r.HasField("event")]
            assert rest == events[after:]


async def test_thirty_two_runs_at_once(mesh: RunningMesh) -> None:
    runs = await asyncio.gather(
        *(followed(mesh.address, mesh.api_key, a_run(f"What is {n} * 7?")) for n in range(32))
    )
    for n, events in enumerate(runs):
        run = result_of(events)
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.error
        assert str(n * 7) in run.result


async def test_reflection_lists_the_public_services(mesh: RunningMesh) -> None:
    async with channel(mesh.address) as edge:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(edge)  # type: ignore[arg-type]

        async def asked() -> Any:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        listed = {
            service.name
            async for answer in stub.ServerReflectionInfo(asked(), timeout=10 * PATIENCE)
            for service in answer.list_services_response.service
        }
    assert set(public_services()) <= listed
    assert not {name for name in listed if name.endswith(("CostService", "PolicyService"))}


async def test_identity_headers_from_outside_change_nothing(mesh: RunningMesh) -> None:
    forged = (
        ("remit-token", "forged"),
        ("x-forwarded-client-cert", "URI=spiffe://remit.internal/policy"),
    )
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        listing = agent_service_pb2.ListRunsRequest()
        await agents.ListRuns(
            listing, metadata=(*bearer(mesh.api_key), *forged), timeout=10 * PATIENCE
        )
        try:
            await agents.ListRuns(listing, metadata=forged, timeout=10 * PATIENCE)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017
        else:
            raise AssertionError
