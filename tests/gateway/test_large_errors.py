"""What one client is told of a bad request costs no other client its call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message

from remit.api.agent.v1 import agent_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError, Violation, invalid_request
from tests.gateway.services import Context, Services, running_services
from tests.gateway.test_sse import progress

AGENTS = "/remit.api.agent.v1.AgentService"
ENTRIES = {f"{n:05d}": "<script" for n in range(9_000)}


async def refuse(request: Any, _context: Context) -> message.Message:
    raise invalid_request(
        [Violation(f"context[{key}]", "contains a script tag") for key in request.context]
    )


async def test_thousands_of_faults_are_told_and_cut_no_other_stream(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def follow(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield progress(1)
        await go_on.wait()
        yield progress(2)

    async with running_services(tmp_path) as services:
        services.methods[f"{AGENTS}/CreateRun"] = refuse
        services.streams[f"{AGENTS}/WatchRun"] = follow
        async with (
            asyncio.timeout(60),
            services.client.stream("GET", "/v1/runs/r/events") as stream,
        ):
            events = stream.events()
            assert (await anext(events)).id == "1"
            answer = await services.client.post("/v1/runs", {"context": ENTRIES})
            assert answer.status == 400
            assert_told(answer.error())
            assert_told(await over_grpc(services))
            go_on.set()
            assert [event.id or event.name async for event in events] == ["2", "end"]


async def over_grpc(services: Services) -> RemitError:
    request = agent_service_pb2.CreateRunRequest(context=ENTRIES)
    async with grpc.aio.insecure_channel(str(services.world.topology.edge)) as channel:
        create: Any = channel.unary_unary(f"{AGENTS}/CreateRun")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(request.SerializeToString(), timeout=20)
    return RemitError.from_rpc(caught.value)


def assert_told(error: RemitError) -> None:
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    *told, last = error.violations
    assert told
    assert last.description == f"and {len(ENTRIES) - len(told)} more"
