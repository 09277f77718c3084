"""Whole runs as load: how fast they end and what each of them uses.

A run is 2 model turns and 1 tool call with the engine `builtin-rules`: 3 governed effects. A fixed
number of runs is kept going for a fixed time: whoever's run has ended starts the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from tests.bench.counters import CLIENT, Counters, read
from tests.bench.running import MeasuringError, Mesh
from tests.bench.stats import quantile

TASK: Final = "What is 17 * 23?"
EFFECTS: Final = 3
RUN_TIMEOUT_S: Final = 120.0
LEAST_RUNS_EACH: Final = 3
"""Of each place, on average, before a load ends: fewer would say nothing of the throughput."""
MAX_FAILED_SHARE: Final = 0.02
CLOSING_S: Final = 2.0
"""Effects are closed after the answer; that belongs to the bill."""

_numbers = itertools.count()


async def one_run(agents: agent_service_pb2_grpc.AgentServiceStub, mesh: Mesh) -> float:
    """Seconds from the request to the end of one run.

    Raises:
        MeasuringError: it ended without an answer.
        grpc.aio.AioRpcError: the call failed.

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
        raise MeasuringError(f"a run did not succeed: {state}")
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
    """Keeps `concurrency` runs going for a time, and until there are enough; returns the figures.

    Raises:
        MeasuringError: more than a few runs failed.

    """
    before = await read(mesh)
    began = time.perf_counter()
    ends: list[tuple[float, float]] = []
    failures: list[Exception] = []

    def enough() -> bool:
        tried = len(ends) + len(failures)
        late = time.perf_counter() >= began + seconds
        return late and tried >= LEAST_RUNS_EACH * concurrency

    async def worker(agents: agent_service_pb2_grpc.AgentServiceStub) -> None:
        while not enough():
            try:
                took_s = await one_run(agents, mesh)
            except (grpc.aio.AioRpcError, MeasuringError) as error:
                failures.append(error)
            else:
                ends.append((time.perf_counter() - began, took_s))

    async with grpc.aio.insecure_channel(mesh.edge) as channel, asyncio.TaskGroup() as workers:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        for _ in range(concurrency):
            workers.create_task(worker(stub))
    if len(failures) > MAX_FAILED_SHARE * len(ends):
        raise MeasuringError(f"{len(failures)} runs failed, {len(ends)} ended: {failures[0]}")
    loaded = await read(mesh)
    await asyncio.sleep(CLOSING_S)
    after = await read(mesh)
    return (
        {"failed": float(len(failures))}
        | speed(ends, concurrency)
        | _bill(after.since(before), len(ends))
        | _machine(loaded.since(before))
    )


def speed(ends: Sequence[tuple[float, float]], concurrency: int) -> dict[str, float]:
    """Throughput while every place was taken, and the times of all runs, from (end, duration) in s.

    The first runs began together into an empty mesh, and while the last ones end no new ones begin;
    so as many at either end are left out of the throughput.
    """
    first, last = concurrency - 1, len(ends) - concurrency - 1
    steady_s = ends[last][0] - ends[first][0] if last > first else 0.0
    times = sorted(took_s for _, took_s in ends)
    return {
        "runs": float(len(ends)),
        "runs_per_s": (last - first) / steady_s if steady_s else 0.0,
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
            "flushes_per_run": used.flushes / runs,
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
        | _each("wait_share", _waited(used))
    )


def _waited(used: Counters) -> dict[str, float]:
    """Shares of the time; a thread that ended took what it had waited with it, hence the zero."""
    return {part: max(0.0, use.waited_s) / used.at_s for part, use in used.use.items()}


def _each(metric: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{metric}.{part}": value for part, value in values.items()}
