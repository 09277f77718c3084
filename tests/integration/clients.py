"""A client of the mesh made only from the generated stubs, as any team would write it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_status import rpc_status

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    event_pb2,
)
from remit.rpc.errors import RemitError
from tests.waiting import PATIENCE

Metadata = tuple[tuple[str, str], ...]


def bearer(key: str) -> Metadata:
    """Metadata with an API key."""
    return (("authorization", f"Bearer {key}"),)


@contextlib.asynccontextmanager
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A plain-text channel to the edge."""
    async with grpc.aio.insecure_channel(address) as open_channel:
        yield open_channel


def a_run(task: str = "What is 17 * 23?", **fields: Any) -> agent_service_pb2.CreateRunRequest:
    """A request for the assistant."""
    given = {"agent": "agents/assistant", "task": task, "request_id": str(uuid.uuid4())}
    return agent_service_pb2.CreateRunRequest(**(given | fields))


async def followed(
    address: str, key: str, request: agent_service_pb2.CreateRunRequest, *, timeout_s: float = 60
) -> list[run_pb2.RunEvent]:
    """Every event of a run, over as many streams as it takes: a broken one is resumed."""
    events: list[run_pb2.RunEvent] = []
    async with channel(address) as open_channel:
        agents = agent_service_pb2_grpc.AgentServiceStub(open_channel)
        while not events or events[-1].WhichOneof("event") != "ended":
            after = events[-1].sequence if events else 0
            asked = agent_service_pb2.StreamRunRequest(request=request, after_sequence=after)
            try:
                stream = agents.StreamRun(asked, metadata=bearer(key), timeout=timeout_s)
                async for response in stream:
                    # One by one: what came before a break is kept.
                    events += [response.event] if response.HasField("event") else []
            except grpc.aio.AioRpcError as error:
                if error.code() not in {
                    # Of a stream that the edge reset: nobody here cancels one.
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                }:
                    raise
    return events


async def events_of(address: str, key: str, run: str) -> list[event_pb2.Event]:
    """What the log holds of a run; nothing while a part on the way is away."""
    async with channel(address) as edge:
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        request = audit_query_service_pb2.ListEventsRequest(run=run, page_size=200)
        try:
            response = await audit.ListEvents(request, metadata=bearer(key), timeout=10 * PATIENCE)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return []
    return [logged.event for logged in response.events]


def result_of(events: list[run_pb2.RunEvent]) -> run_pb2.Run:
    """The run as it ended."""
    assert events[-1].WhichOneof("event") == "ended"
    return events[-1].ended.run


def reason_of(error: grpc.aio.AioRpcError) -> RemitError:
    """The error that the status carries; it must carry details."""
    assert rpc_status.from_call(error) is not None, f"no details: {error}"  # type: ignore[arg-type]
    return RemitError.from_rpc(error)
