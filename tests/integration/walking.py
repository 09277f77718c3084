"""Runs that go on until they are stopped: their model asks for one tool call after another.

The provider is a server on loopback. A test holds it where it wants to change something while a
model call is under way, and sees how often it was asked for each task.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
from starlette.responses import Response

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from tests.inference.openai_server import OpenAIServer, call_delta, chunks, delta, usage
from tests.integration.clients import a_run, bearer, channel
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE

STEPS: Final = 100
AGENT: Final = f"""
name: walker
display_name: Walker
description: Goes on.
instructions: Go on.
model: scripted
tools: [calculator]
max_steps: {STEPS}
max_duration_s: 600
max_cost_usd: 10
"""
MODELS: Final = """
models:
  - name: scripted
    engine: openai
    description: A script.
    base_url: {base_url}
    provider_model: scripted
    context_tokens: 4000000
    max_output_tokens: 8000
"""
PRICES: Final = """
prices:
  models/scripted:
    input_nanos_per_million: 1000
    output_nanos_per_million: 1000
"""


@dataclass
class Walking:
    """The model of the walkers."""

    asked: Counter[str] = field(default_factory=Counter)
    """Model calls that reached the provider, by the task of their run."""
    released: dict[str, asyncio.Event] = field(default_factory=dict)
    """A task that is among these is answered once its event is set."""

    async def answer(self, body: dict[str, Any]) -> Response:
        """One more call of a tool, never the same."""
        task = next(m["content"] for m in body["messages"] if m["role"] == "user")
        self.asked[task] += 1
        step = self.asked[task]
        if task in self.released:
            await self.released[task].wait()
        expression = json.dumps({"expression": f"{step} + 1"})
        call = call_delta(0, id=f"call-{step}", name="calculator", arguments=expression)
        start, end = delta(role="assistant", content=""), delta(finish_reason="tool_calls")
        return await chunks(start, call, end, usage(10, 10))(body)


def environment(folder: Path, server: OpenAIServer) -> dict[str, str]:
    """What a mesh is told so that it has walkers."""
    folder.chmod(0o755)
    agents = folder / "agents"
    agents.mkdir()
    (agents / "walker.yaml").write_text(AGENT)
    (folder / "models.yaml").write_text(MODELS.format(base_url=server.base_url))
    (folder / "prices.yaml").write_text(PRICES)
    return {
        "REMIT_AGENT_AGENTS_DIR": str(agents),
        "REMIT_INFERENCE_MODELS_FILE": str(folder / "models.yaml"),
        "REMIT_COST_PRICES_FILE": str(folder / "prices.yaml"),
    }


async def walk(mesh: RunningMesh, key: str, task: str) -> str:
    """Starts a run; returns its name."""
    async with channel(mesh.address) as edge:
        created = await agent_service_pb2_grpc.AgentServiceStub(edge).CreateRun(
            a_run(task, agent="agents/walker"), metadata=bearer(key), timeout=30 * PATIENCE
        )
    return created.run.name


async def run_of(mesh: RunningMesh, key: str, name: str) -> run_pb2.Run:
    """The run as its owner reads it."""
    async with channel(mesh.address) as edge:
        got = await agent_service_pb2_grpc.AgentServiceStub(edge).GetRun(
            agent_service_pb2.GetRunRequest(name=name),
            metadata=bearer(key),
            timeout=30 * PATIENCE,
        )
    return got.run


async def rows(mesh: RunningMesh, area: str, query: str, *given: object) -> list[asyncpg.Record]:
    """What a database of the mesh holds, whoever is disabled."""
    socket = json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"]
    connection = await asyncpg.connect(host=socket, user="postgres", database=f"remit_{area}")
    try:
        found: list[asyncpg.Record] = await connection.fetch(query, *given)
        return found
    finally:
        await connection.close()
