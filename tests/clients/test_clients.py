"""The clients in other languages run an agent through the real gateway and follow it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from scripts.protos import ROOT
from tests.clients.languages import LANGUAGES, Language, build
from tests.clients.relay import before, relay
from tests.integration.clients import bearer, channel
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE, in_time

CLIENT_TIMEOUT_S = 60.0

Lines = list[dict[str, Any]]
# A cold build of one client, on a machine that is busy with other tests.
cold = pytest.mark.timeout(400)


@pytest.fixture(params=list(LANGUAGES))
def language(request: pytest.FixtureRequest) -> Language:
    return LANGUAGES[request.param]


@cold
async def test_a_client_follows_a_run_over_two_streams(
    language: Language, mesh: RunningMesh
) -> None:
    lines = await run_client(language, mesh.address, mesh.api_key)
    assert_told_all(lines, await journal(mesh, told(lines, "run")))


@cold
async def test_a_client_goes_on_where_its_connection_was_cut(
    language: Language, mesh: RunningMesh
) -> None:
    async with relay(mesh.address, before(b"tools/calculator")) as broken:
        lines = await run_client(language, broken.address, mesh.api_key)
    assert broken.cuts == 1
    assert broken.connections == 2
    assert_told_all(lines, await journal(mesh, told(lines, "run")))


async def test_the_client_that_comes_with_remit_goes_on_where_its_connection_was_cut(
    mesh: RunningMesh,
) -> None:
    async with relay(mesh.address, before(b"tools/calculator")) as broken:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", str(ROOT / "tests/client/example.py")),
            env=os.environ | {"REMIT_ADDRESS": broken.address, "REMIT_API_KEY": mesh.api_key},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await in_time(process.communicate(), CLIENT_TIMEOUT_S)
    assert (process.returncode, broken.cuts, broken.connections) == (0, 1, 2)
    *events, answer = output.decode().splitlines()
    run = events[0].split()[-1]
    told = await journal(mesh, run)
    assert [int(line.split()[0]) for line in events] == [sequence for sequence, _ in told]
    assert {line.split()[-1] for line in events} == {run}
    assert "42" in answer


def assert_told_all(lines: Lines, journal: Sequence[tuple[int, str]]) -> None:
    """Whether a client told every event once and in order, and all else that it is to tell."""
    events = [(line["sequence"], line["event"]) for line in lines if "event" in line]
    assert events == journal
    assert [sequence for sequence, _ in events] == list(range(1, len(events) + 1))
    # The first stream was broken off on purpose, where the second goes on.
    assert told(lines, "resumed_after") == 2
    assert (
        lines.index({"resumed_after": 2}) == [line.get("sequence") for line in lines].index(3) - 1
    )
    assert told(lines, "again") == told(lines, "run")
    assert "391" in told(lines, "answer")
    # Behind the last event a stream is over, and the run is read as it ended.
    assert told(lines, "behind") == 0
    assert "391" in told(lines, "answer_behind")
    assert told(lines, "code") == "NOT_FOUND"
    assert told(lines, "reason") == "RUN_NOT_FOUND"


def told(lines: Lines, key: str) -> Any:
    """The one value that the client told under a key."""
    (value,) = [line[key] for line in lines if key in line]
    return value


async def run_client(language: Language, address: str, key: str) -> Lines:
    """What a client prints."""
    built = await asyncio.to_thread(build, language)
    process = await asyncio.create_subprocess_exec(
        *language.command(built),
        env=language.environment(built) | {"REMIT_ADDRESS": address, "REMIT_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await in_time(process.communicate(), CLIENT_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.splitlines()]


async def journal(mesh: RunningMesh, run: str) -> list[tuple[int, str]]:
    """Sequence and name of every event of a run, read in one stream."""
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        asked = agent_service_pb2.WatchRunRequest(name=run)
        stream = agents.WatchRun(asked, metadata=bearer(mesh.api_key), timeout=30 * PATIENCE)
        events = [each.event async for each in stream if each.HasField("event")]
    return [(event.sequence, event.WhichOneof("event") or "") for event in events]
