"""Policies in shadow, in real processes: they see what replicas decide, and nobody feels it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import run_pb2
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


@pytest.fixture
def mesh() -> Iterator[RunningMesh]:
    with started_mesh({"policy": 2}) as running:
        yield running


def remit(mesh: RunningMesh, *arguments: str) -> Any:
    done = mesh.run("policy", "shadow", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["shadow"]


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
    assert remit(mesh, "start", str(tmp_path), "--for", "1h")["policy_count"] > 1

    async def denied() -> int:
        return int(remit(mesh, "show")["newly_denied"])

    # A replica learns of it within a look; from then on each call is seen.
    async def first() -> bool:
        assert await sums(mesh, 2) == {run_pb2.RUN_STATE_SUCCEEDED}
        return await denied() > 0

    await eventually(first, 60)
    mesh.kill("policy-0")
    before = await denied()
    assert await sums(mesh, 4) == {run_pb2.RUN_STATE_SUCCEEDED}, "although it would forbid them"

    async def grows() -> bool:
        return await denied() > before

    await eventually(grows, 60)
    ended = remit(mesh, "stop")
    assert (ended["end"], ended["failed"]) == ("END_STOPPED", 0)
    [change] = ended["changes"]
    assert (change["policy_id"], change["resource"]) == ("no-sums", "tools/calculator")
    assert change["reason"] == "forbidden: nobody counts"
    performed = await rows(
        mesh, "tools", "SELECT count(*) FROM effect_attempts WHERE state = 'REFUSED'"
    )
    assert [row["count"] for row in performed] == [0]
    told = mesh.run("policy", "shadow", "show")
    assert "stopped" in told.stdout
    assert "no-sums" in told.stdout
