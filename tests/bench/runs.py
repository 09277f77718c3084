"""Whole runs as load: how fast they end and what each of them uses.

A run is 2 model turns and 1 tool call with the engine `builtin-rules`: 3 governed effects. A fixed
number of runs is kept going for a fixed time: whoever's run has ended starts the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping
from typing import Final

import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from tests.bench.counters import CLIENT, Counters, read
from tests.bench.running import Mesh
from tests.bench.stats import quantile

TASK: Final = "What is 17 * 23?"
EFFECTS: Final = 3
RUN_TIMEOUT_S: Final = 120.0
RAMP_SHARE: Final = 0.2
"""Of the time; what ends in it is not counted into the throughput, since nothing was in flight."""
CLOSING_S: Final = 2.0
"""Effects are closed after the answer; that belongs to the bill."""

_numbers = itertools.count()


async def one_run(agents: agent_service_pb2_grpc.AgentServiceStub, mesh: Mesh) -> float:
    """Seconds from the request to the end of one run.

    Raises:
        SystemExit: it did not succeed.

    """
    request = agent_service_pb2.StreamRunRequest(
        request=agent_service_pb2.CreateRunRequest(
            agent="agents/assistant", task=TASK, request_id=f"bench-{os.getpid()}-{next(_numbers)}"
        )
    )
    began = time.perf_counter()
    state = None
    async for response in agents.StreamRun(request, metadata=mesh.metadata, timeout=RUN_TIMEOUT_S):
        if response.event.WhichOneof("event") == "ended":
            state = response.event.ended.run
    took_s = time.perf_counter() - began
    if state is None or state.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise SystemExit(f"a run did not succeed: {state}")
    return took_s


async def complete(mesh: Mesh, concurrency: int, runs: int) -> None:
    """Lets a number of runs come to their end, `concurrency` at a time."""
    left = iter(range(runs))

    async def worker(agents: agent_service_pb2_grpc.AgentServiceStub) -> None:
        for _ in left:
            await one_run(agents, mesh)

    async with grpc.aio.insecure_channel(mesh.edge) as channel, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(worker(agent_service_pb2_grpc.AgentServiceStub(channel)))
    await asyncio.sleep(CLOSING_S)


async def slice_of(mesh: Mesh, concurrency: int, seconds: float) -> dict[str, float]:
    """Keeps `concurrency` runs going for a time; returns the figures, by metric."""
    before = await read(mesh)
    began = time.perf_counter()
    ends: list[tuple[float, float]] = []

    async def worker(agents: agent_service_pb2_grpc.AgentServiceStub) -> None:
        while time.perf_counter() < began + seconds:
            took_s = await one_run(agents, mesh)
            ends.append((time.perf_counter() - began, took_s))

    async with grpc.aio.insecure_channel(mesh.edge) as channel, asyncio.TaskGroup() as workers:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        for _ in range(concurrency):
            workers.create_task(worker(stub))
    loaded = await read(mesh)
    await asyncio.sleep(CLOSING_S)
    after = await read(mesh)
    return (
        _speed(ends, seconds)
        | _bill(after.since(before), len(ends))
        | _machine(loaded.since(before))
    )


def _speed(ends: list[tuple[float, float]], seconds: float) -> dict[str, float]:
    """Throughput in the steady part, and the times of all runs."""
    ramp_s = seconds * RAMP_SHARE
    steady = sum(1 for at_s, _ in ends if ramp_s < at_s <= seconds)
    times = sorted(took_s for _, took_s in ends)
    return {
        "runs": float(len(ends)),
        "runs_per_s": steady / (seconds - ramp_s),
        "p50_ms": quantile(times, 0.5) * 1000,
        "p99_ms": quantile(times, 0.99) * 1000,
    }


def _bill(used: Counters, runs: int) -> dict[str, float]:
    """What one run costs, by part; the client's own part is told apart."""
    parts = {part: use for part, use in used.use.items() if part != CLIENT}
    return (
        {
            "cpu_ms_per_run": sum(use.cpu_s for use in parts.values()) * 1000 / runs,
            "rpcs_per_run": sum(used.rpcs.values()) / runs,
            "commits_per_run": sum(used.commits.values()) / runs,
            "switches_per_run": sum(use.switches for use in parts.values()) / runs,
        }
        | _each("cpu_ms", {part: use.cpu_s * 1000 / runs for part, use in used.use.items()})
        | _each("rpcs", {area: count / runs for area, count in used.rpcs.items()})
        | _each("commits", {area: count / runs for area, count in used.commits.items()})
        | _each("switches", {part: use.switches / runs for part, use in used.use.items()})
    )


def _machine(used: Counters) -> dict[str, float]:
    """How the load's time was spent: cores at work, and what waited for a core."""
    machine = used.machine
    total_s = machine.busy_s + machine.idle_s + machine.stolen_s
    return (
        {
            "idle_share": machine.idle_s / total_s,
            "stolen_share": machine.stolen_s / total_s,
        }
        | _each("core_share", {part: use.cpu_s / used.at_s for part, use in used.use.items()})
        | _each("wait_share", {part: use.waited_s / used.at_s for part, use in used.use.items()})
    )


def _each(metric: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{metric}.{part}": value for part, value in values.items()}
