"""Streams through the gateway: journals that many follow, and text as it is generated.

A journal is followed while its run goes on, and read again from its beginning after the end.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    message_pb2,
)
from tests.bench.counters import CLIENT, Counters, read
from tests.bench.running import MeasuringError, Mesh
from tests.bench.stats import quantile

TIMEOUT_S: Final = 120.0
SUMS: Final = 32
"""Tool calls of the run that is followed: as many as the rule engine plans in one turn."""
STREAMS: Final = 8
"""Turns that are streamed at once."""
_SUM_TASK: Final = " ".join(f"What is {number} * 17?" for number in range(1, SUMS + 1))
_numbers = itertools.count()


def _request_id(kind: str) -> str:
    return f"bench-{kind}-{os.getpid()}-{next(_numbers)}"


@asynccontextmanager
async def _agents(mesh: Mesh) -> AsyncIterator[agent_service_pb2_grpc.AgentServiceStub]:
    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        yield agent_service_pb2_grpc.AgentServiceStub(channel)


# -------------------------------------------------------------------------------------- journals


async def live(mesh: Mesh, watchers: int, seconds: float) -> dict[str, float]:
    """Runs of many events one after another, each followed by many from its first event on.

    The delay is from the time that an event bears, which is taken just before its commit, to its
    arrival at a watcher: one clock, since all is on one machine.
    """
    before = await read(mesh)
    delays: list[float] = []
    async with _agents(mesh) as agents:
        while (time.perf_counter() - before.at_s) < seconds:
            run = await create(agents, mesh)
            await asyncio.gather(*(_watch(agents, mesh, run, delays) for _ in range(watchers)))
    used = (await read(mesh)).since(before)
    delays.sort()
    return {
        "events_per_s": len(delays) / used.at_s,
        "delay_p50_ms": quantile(delays, 0.5) * 1000,
        "delay_p99_ms": quantile(delays, 0.99) * 1000,
    } | _per(used, len(delays), "event")


async def replayed(mesh: Mesh, watchers: int, seconds: float) -> dict[str, float]:
    """An ended run's journal read again and again by many at once."""
    seen: list[float] = []
    async with _agents(mesh) as agents:
        run = await create(agents, mesh)
        await _watch(agents, mesh, run, [])
        before = await read(mesh)

        async def follow() -> None:
            while (time.perf_counter() - before.at_s) < seconds:
                await _watch(agents, mesh, run, seen)

        await asyncio.gather(*(follow() for _ in range(watchers)))
        used = (await read(mesh)).since(before)
    return {"events_per_s": len(seen) / used.at_s} | _per(used, len(seen), "event")


async def create(agents: agent_service_pb2_grpc.AgentServiceStub, mesh: Mesh) -> str:
    request = agent_service_pb2.CreateRunRequest(
        agent="agents/assistant", task=_SUM_TASK, request_id=_request_id("watched")
    )
    answer = await agents.CreateRun(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    return answer.run.name


async def _watch(
    agents: agent_service_pb2_grpc.AgentServiceStub, mesh: Mesh, run: str, delays: list[float]
) -> None:
    """Follows a run to its end. Raises MeasuringError if it did not succeed."""
    request = agent_service_pb2.WatchRunRequest(name=run)
    state = None
    async for answer in agents.WatchRun(request, metadata=mesh.metadata, timeout=TIMEOUT_S):
        if not answer.HasField("event"):
            continue  # a heartbeat
        delays.append(time.time() - answer.event.event_time.ToNanoseconds() / 1e9)
        if answer.event.WhichOneof("event") == "ended":
            state = answer.event.ended.run.state
    if state != run_pb2.RUN_STATE_SUCCEEDED:
        raise MeasuringError(f"{run} did not succeed: {state}")


# ------------------------------------------------------------------------------------------ text


async def text(mesh: Mesh, seconds: float) -> dict[str, float]:
    """Turns of the rule engine, some at once; each is a governed effect of about 1,000 words.

    The engine yields word by word; words that wait are sent in one chunk.
    """
    turns: list[_Turn] = []
    before = await read(mesh)

    async def speak(models: inference_service_pb2_grpc.InferenceServiceStub) -> None:
        while (time.perf_counter() - before.at_s) < seconds:
            turns.append(await _turn(models, mesh))

    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        models = inference_service_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(*(speak(models) for _ in range(STREAMS)))
    used = (await read(mesh)).since(before)
    chunks = sum(turn.chunks for turn in turns)
    return {
        "chunks_per_s": chunks / used.at_s,
        "words_per_s": sum(turn.words for turn in turns) / used.at_s,
        "words_per_chunk": sum(turn.words for turn in turns) / chunks,
        "first_chunk_p50_ms": quantile(sorted(turn.first_s for turn in turns), 0.5) * 1000,
    } | _per(used, chunks, "chunk")


@dataclass
class _Turn:
    """One streamed turn."""

    chunks: int = 0
    words: int = 0
    first_s: float = 0.0


async def _turn(models: inference_service_pb2_grpc.InferenceServiceStub, mesh: Mesh) -> _Turn:
    """One turn to its end. Raises MeasuringError if it broke off."""
    request = inference_service_pb2.StreamGenerateTextRequest(
        request=inference_service_pb2.GenerateTextRequest(
            model="models/builtin-rules",
            messages=[message_pb2.Message(role=message_pb2.ROLE_USER, text=_SUM_TASK)],
            request_id=_request_id("text"),
        )
    )
    began, turn, ended = time.perf_counter(), _Turn(), False
    answers: Any = models.StreamGenerateText(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    async for answer in answers:
        if answer.WhichOneof("piece") == "text_delta":
            turn.first_s = turn.first_s or time.perf_counter() - began
            turn.chunks += 1
            turn.words += len(answer.text_delta.split())
        ended = ended or answer.WhichOneof("piece") == "response"
    if not (ended and turn.chunks):
        raise MeasuringError(f"a turn ended after {turn.chunks} chunks without its response")
    return turn


def _per(used: Counters, count: int, unit: str) -> dict[str, float]:
    """CPU microseconds that one event or chunk takes, and the share of a core, by part."""
    found = {part: use.cpu_s for part, use in used.use.items()}
    mesh_s = sum(cpu_s for part, cpu_s in found.items() if part != CLIENT)
    return {f"cpu_us_per_{unit}": mesh_s * 1e6 / count} | {
        f"core_share.{part}": cpu_s / used.at_s for part, cpu_s in found.items()
    }
