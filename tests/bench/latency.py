"""How soon an event is seen: at the replica that writes it, and at another one, which hears of it.

Both watchers call the agent's replicas straight, under the edge listener's certificate, so that the
figures are those of the push alone. An event bears the time just before its commit: the commit is
in the delay, and the delay after it is shorter still.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.rpc.calls import REMIT_KEY
from tests.bench import calls
from tests.bench.running import MeasuringError, Mesh
from tests.bench.stats import quantile
from tests.bench.streams import TIMEOUT_S, create

REPLICAS: Final = {"agent": 2}
"""Of the mesh that this is measured on."""
LEAST_EVENTS: Final = 20
_WATCH: Final = "/remit.api.agent.v1.AgentService/WatchRun"

Metadata = tuple[tuple[str, str], ...]


async def figures(mesh: Mesh, seconds: float) -> dict[str, float]:
    """Runs one after another, each watched at both replicas; the delays by who wrote the event.

    Raises:
        MeasuringError: a run failed, or too few events came to say anything.

    """
    delays: dict[str, list[float]] = {"same": [], "other": []}
    metadata = ((REMIT_KEY, await calls.remit(mesh, _WATCH)),)
    give_up = time.perf_counter() + seconds
    async with _replicas(mesh) as watched, grpc.aio.insecure_channel(mesh.edge) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        while time.perf_counter() < give_up:
            run = await create(agents, mesh)
            seen = await asyncio.gather(*(_watch(stub, metadata, run) for stub in watched))
            for replica, events in enumerate(seen):
                _sort(delays, replica, events)
    found: dict[str, float] = {}
    for where, all_s in delays.items():
        if len(all_s) < LEAST_EVENTS:
            raise MeasuringError(f"only {len(all_s)} events came to a watcher at the {where} one")
        all_s.sort()
        found[f"{where}_p50_ms"] = quantile(all_s, 0.5) * 1000
        found[f"{where}_p99_ms"] = quantile(all_s, 0.99) * 1000
        found[f"{where}_events"] = len(all_s)
    return found


def kind(seconds: float) -> Callable[[Mesh], Awaitable[dict[str, float]]]:
    """The measurement of a length."""
    return lambda mesh: figures(mesh, seconds)


@contextlib.asynccontextmanager
async def _replicas(mesh: Mesh) -> AsyncIterator[list[agent_service_pb2_grpc.AgentServiceStub]]:
    """A stub straight to each replica of the agent, in their order."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(calls.channel(mesh, "agent", "edge", replica))
            for replica in range(REPLICAS["agent"])
        ]
        yield [agent_service_pb2_grpc.AgentServiceStub(channel) for channel in channels]


async def _watch(
    stub: agent_service_pb2_grpc.AgentServiceStub, metadata: Metadata, run: str
) -> list[tuple[run_pb2.RunEvent, float]]:
    """A run's events with their delays in seconds; none of before it was watched."""
    seen: list[tuple[run_pb2.RunEvent, float]] = []
    began_s = 0.0
    request = agent_service_pb2.WatchRunRequest(name=run)
    async for answer in stub.WatchRun(request, metadata=metadata, timeout=TIMEOUT_S):
        now_s = time.time()
        # What was written before the first answer came was read, and not pushed.
        began_s = began_s or now_s
        if not answer.HasField("event"):
            continue  # a heartbeat
        event_s = answer.event.event_time.ToNanoseconds() / 1e9
        delay_s = now_s - event_s if event_s > began_s else -1.0
        seen.append((answer.event, delay_s))
    if not seen or seen[-1][0].ended.run.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise MeasuringError(f"{run} did not succeed")
    return seen


def _sort(
    delays: dict[str, list[float]], replica: int, seen: list[tuple[run_pb2.RunEvent, float]]
) -> None:
    """Adds the delays of one watcher under where the events were written."""
    writer = next(event.started.replica for event, _ in seen if event.HasField("started"))
    where = "same" if writer == str(replica) else "other"
    delays[where] += [delay_s for _, delay_s in seen if delay_s >= 0]
