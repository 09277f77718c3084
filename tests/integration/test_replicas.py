"""Two replicas of a service: one may die under load, and no caller notices."""

from __future__ import annotations

import asyncio
import re
import urllib.request

import grpc
import pytest

from remit.api.inference.v1 import model_service_pb2, model_service_pb2_grpc
from tests.integration.conftest import RunningMesh, started_mesh
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.timeout(300)
CALLERS = 16
CALLS_AROUND_THE_KILL = 150


async def both_answer(mesh: RunningMesh) -> bool:
    """Whether each replica has served calls of clients."""
    admin = mesh.topology.admin
    url = f"http://{admin.host}:{admin.port}/clusters"
    with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
        told = re.findall(
            r"edge_inference::[^:]+:[0-9]+::rq_success::([0-9]+)", answer.read().decode()
        )
    return len(told) == 2 and all(map(int, told))


async def test_a_replica_killed_under_load_costs_no_call() -> None:
    with started_mesh({"inference": 2}) as mesh:
        answered, failures = 0, list[grpc.aio.AioRpcError]()
        stop = asyncio.Event()

        async def call_until_stopped(stub: model_service_pb2_grpc.ModelServiceStub) -> None:
            nonlocal answered
            metadata = (("authorization", f"Bearer {mesh.api_key}"),)
            while not stop.is_set():
                try:
                    request = model_service_pb2.ListModelsRequest()
                    await stub.ListModels(request, metadata=metadata, timeout=10 * PATIENCE)
                except grpc.aio.AioRpcError as error:
                    failures.append(error)
                answered += 1

        async with grpc.aio.insecure_channel(mesh.address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            callers = [asyncio.create_task(call_until_stopped(stub)) for _ in range(CALLERS)]
            # The gateway begins with whom it finds first: both must be in its rotation.
            await eventually(lambda: both_answer(mesh), timeout_s=60)
            await eventually(lambda: answered >= CALLS_AROUND_THE_KILL, timeout_s=60)
            before = mesh.restarts("inference-0")
            mesh.kill("inference-0")
            at_kill = answered
            await eventually(lambda: answered >= at_kill + CALLS_AROUND_THE_KILL, timeout_s=60)
            await eventually(lambda: mesh.restarts("inference-0") > before, timeout_s=30)
            stop.set()
            await asyncio.gather(*callers)
        assert failures == []
