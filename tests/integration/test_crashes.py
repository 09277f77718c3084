"""kill -9 of any part while runs are under way: no run is lost, nothing is done without its record.

The outside world is the workspace of `write_file`: a run that reports success has written its file,
and the audit log holds an intent for each effect that any run reports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from remit.api.agent.v1 import run_pb2
from remit.api.audit.v1 import (
    event_pb2,
)
from tests.integration.clients import a_run, events_of, followed, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.waiting import eventually, in_time

RUNS = 6
LEASE_S = "2"
SHORT_LEASES = {
    "REMIT_AGENT_LEASE_S": LEASE_S,
    "REMIT_INFERENCE_EFFECT_LEASE_S": LEASE_S,
    "REMIT_TOOLS_EFFECT_LEASE_S": LEASE_S,
}
PARTS = ("agent", "inference", "tools", "policy", "cost", "audit", "envoy", "postgres")
EFFECT_DATABASES = ("remit_inference", "remit_tools")


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningMesh]:
    """A mesh whose parts are killed one after another, with leases that a test can outwait."""
    with started_mesh(environment=SHORT_LEASES) as running:
        yield running


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", PARTS)
async def test_runs_outlive_a_killed_part(mortal: RunningMesh, part: str) -> None:
    name = part if part in {"envoy", "postgres"} else f"{part}-0"
    restarts = mortal.restarts(name)
    runs = [
        asyncio.create_task(
            followed(
                mortal.address,
                mortal.api_key,
                a_run(f"What is {n} * 1000?"),
                timeout_s=90,
            )
        )
        for n in range(RUNS)
    ]
    await _one_has_begun(mortal)
    mortal.kill(name)
    histories = await in_time(asyncio.gather(*runs), 150)
    assert await eventually(lambda: mortal.restarts(name) > restarts, 30)
    for n, events in enumerate(histories):
        run = result_of(events)
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
        if run.state == run_pb2.RUN_STATE_SUCCEEDED:
            assert str(n * 1000) in run.result.replace(",", "")
        else:
            assert run.error.message, "a run that fails says why"
        await _recorded(mortal, run.name, events)
    await eventually(lambda: _nothing_left_open(mortal), 60)


async def _one_has_begun(mesh: RunningMesh) -> None:
    """Waits until an effect of any run has been claimed since the last look."""
    before = await _attempts(mesh)

    async def more() -> bool:
        return await _attempts(mesh) > before

    await eventually(more, 30)


async def _attempts(mesh: RunningMesh) -> int:
    counts = [
        await _query(mesh, db, "SELECT count(*) FROM effect_attempts") for db in EFFECT_DATABASES
    ]
    return sum(counts)


async def _nothing_left_open(mesh: RunningMesh) -> bool:
    """Every attempt is closed, and no money is held."""
    try:
        for database in EFFECT_DATABASES:
            open_ = "SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL"
            if await _query(mesh, database, open_):
                return False
        held = await _query(mesh, "remit_cost", "SELECT count(*) FROM reservations WHERE state = 1")
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
        return False  # it is restarting
    return held == 0


async def _query(mesh: RunningMesh, database: str, query: str) -> int:
    socket = json.loads((Path(mesh.state) / "mesh.json").read_text())["postgres_socket"]
    connection = await asyncpg.connect(host=socket, user="postgres", database=database)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def _recorded(mesh: RunningMesh, run: str, events: list[run_pb2.RunEvent]) -> None:
    """The log holds an intent for every claim that the run's journal names."""
    claims = {
        claim
        for event in events
        for claim in (event.model_call_ended.claim, event.tool_call_ended.claim)
        if claim
    }

    async def intents() -> bool:
        events = await events_of(mesh.address, mesh.api_key, run)
        return claims <= {e.claim for e in events if e.kind == event_pb2.EVENT_KIND_INTENT}

    assert await eventually(intents, 30)
