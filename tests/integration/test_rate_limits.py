"""The default limit in a whole mesh: three replicas of policy that count in one Redis."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cli import exit_codes
from remit.rpc.errors import RemitError
from tests.integration.conftest import RunningMesh, started_mesh
from tests.redis_server import RedisServer, running_redis
from tests.rest import Client
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)
AGENT = "agents/assistant"
CALLERS = 60
DAY_S = 86_400


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with running_redis() as running:
        yield running


def limited_by(server: RedisServer) -> dict[str, str]:
    """The default number, over a window that no test outlives."""
    return {
        "REMIT_POLICY_RUN_LIMIT_OF_USER": "10",
        "REMIT_POLICY_RUN_LIMIT_WINDOW_S": str(DAY_S),
        "REMIT_POLICY_LIMITS_URL": server.url,
        "REMIT_POLICY_LIMITS_TIMEOUT_S": "2",
    }


async def test_ten_runs_pass_whoever_counts_and_the_eleventh_is_told_when(
    server: RedisServer,
) -> None:
    with started_mesh({"policy": 3}, environment=limited_by(server)) as mesh:
        outcomes = Counter(await asyncio.gather(*(create(mesh) for _ in range(CALLERS))))
        assert outcomes == {"": 10, "RATE_LIMITED": CALLERS - 10}
        admin = Client(mesh.address, {"authorization": f"Bearer {mesh.api_key}"})
        body = {"agent": AGENT, "task": "t", "requestId": str(uuid.uuid4())}
        answer = await admin.call("POST", "/v1/runs", body)
        assert answer.status == 429
        assert DAY_S - 300 * 4 < int(answer.headers["retry-after"]) <= DAY_S
        assert answer.error().reason == reasons.ERROR_REASON_RATE_LIMITED
        told = await asyncio.to_thread(mesh.run, "run", "What is 6 * 7?")
        assert told.returncode == exit_codes.REFUSED, told
        assert "may start 10 runs in any 86400 s" in told.stderr
        # Another user of the same org has a limit of their own.
        made = await asyncio.to_thread(
            mesh.run, "keys", "create", "batch", "--user", f"{mesh.org}/users/batch", "--json"
        )
        secret = json.loads(made.stdout)["secret"]
        assert await create(mesh, secret) == ""
        # A replica that restarts forgets nothing: it never knew.
        before = mesh.restarts("policy-0")
        mesh.kill("policy-0")

        async def counts_still() -> bool:
            # A question that was on its way to the replica has no answer, and no run.
            outcome = await create(mesh)
            assert outcome in {"RATE_LIMITED", "DEPENDENCY_UNAVAILABLE"}
            return outcome == "RATE_LIMITED"

        assert await eventually(counts_still, 30)
        assert mesh.restarts("policy-0") >= before


async def create(mesh: RunningMesh, secret: str = "") -> str:
    """Why a run was refused; empty if it was not."""
    metadata = (("authorization", f"Bearer {secret or mesh.api_key}"),)
    request = agent_service_pb2.CreateRunRequest(
        agent=AGENT, task="What is 6 * 7?", request_id=str(uuid.uuid4())
    )
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        try:
            await stub.CreateRun(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return RemitError.from_rpc(error).reason_name
    return ""
