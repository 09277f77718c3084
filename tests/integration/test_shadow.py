"""Policies in shadow, in real processes: they see what replicas decide, and nobody feels it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import run_pb2
from remit.cli import exit_codes
from remit.policy.schema import SHIPPED_POLICIES
from tests.integration.clients import a_run, followed, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.integration.walking import rows
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)

FORBID = (
    '@id("no-sums") @reason("nobody counts") forbid (principal, action == Action::"tools.call",'
    ' resource == Tool::"tools/calculator");'
)

DENIED = (
    "SELECT count(*) FROM effect_attempts WHERE position('PERMISSION_DENIED'::bytea IN error) > 0"
)


@pytest.fixture
def mesh() -> Iterator[RunningMesh]:
    with started_mesh({"policy": 2}) as running:
        yield running


async def remit(mesh: RunningMesh, *arguments: str) -> Any:
    """What `remit policy shadow` shows, asked again while a killed replica is missed."""

    async def answered() -> dict[str, Any] | None:
        done = await asyncio.to_thread(mesh.run, "policy", "shadow", *arguments, "--json")
        assert done.returncode in {exit_codes.OK, exit_codes.UNHEALTHY}, done.stdout + done.stderr
        return json.loads(done.stdout) if done.returncode == exit_codes.OK else None

    document = await eventually(answered, 30)
    assert document is not None
    return document["shadow"]


async def sums(mesh: RunningMesh, count: int) -> set[int]:
    """Runs that call the calculator once each; the states that they end in."""
    wanted = (a_run(f"What is {n} * 7?") for n in range(count))
    ended = await asyncio.gather(*(followed(mesh.address, mesh.api_key, run) for run in wanted))
    return {result_of(events).state for events in ended}


async def test_what_replicas_decide_is_seen_and_a_killed_one_goes_on(
    mesh: RunningMesh, tmp_path: Path
) -> None:
    shipped = (SHIPPED_POLICIES / "default.cedar").read_text("utf-8")
    (tmp_path / "default.cedar").write_text(shipped)
    (tmp_path / "sums.cedar").write_text(FORBID)
    started = await remit(mesh, "start", str(tmp_path), "--for", "1h", "--request-id", "start")
    assert started["policy_count"] > 1

    async def denied() -> int:
        return int((await remit(mesh, "show"))["newly_denied"])

    # A replica learns of it within a look; from then on each call is seen.
    async def first() -> bool:
        assert await sums(mesh, 2) == {run_pb2.RUN_STATE_SUCCEEDED}
        return await denied() > 0

    await eventually(first, 60)
    mesh.kill("policy-0")
    before = await denied()
    assert await sums(mesh, 4) == {run_pb2.RUN_STATE_SUCCEEDED}, "although it would forbid them"

    async def grows() -> bool:
        assert await sums(mesh, 1) == {run_pb2.RUN_STATE_SUCCEEDED}
        return await denied() > before

    await eventually(grows, 60)
    ended = await remit(mesh, "stop", "--request-id", "stop")
    assert (ended["end"], ended["failed"]) == ("END_STOPPED", 0)
    [change] = ended["changes"]
    assert (change["policy_id"], change["resource"]) == ("no-sums", "tools/calculator")
    assert change["reason"] == "forbidden: nobody counts"
    assert [row["count"] for row in await rows(mesh, "tools", DENIED)] == [0]
    told = mesh.run("policy", "shadow", "show")
    assert "stopped" in told.stdout
    assert "no-sums" in told.stdout
