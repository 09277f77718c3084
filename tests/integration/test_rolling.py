"""A rolling restart under load: every part is told to stop, drains and comes back; nobody notices.

Unlike in a storm nothing may even be in doubt. Leases are far longer than the test: what a replica
had goes on at once because it handed it over, not because it was found dead.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from remit.local.envoy_process import EnvoyProcess
from remit.rpc.contracts import AREAS
from tests.integration.reckoning import reckon, rows, take_checkpoint, verify_log
from tests.integration.storming import Crowd, StormWorld, storm_world
from tests.waiting import eventually

CLIENTS = 4
RUNS_BETWEEN = 2
LONG_LEASE_S = "300"
LONG_LEASES = {
    "REMIT_AGENT_LEASE_S": LONG_LEASE_S,
    "REMIT_INFERENCE_EFFECT_LEASE_S": LONG_LEASE_S,
    "REMIT_TOOLS_EFFECT_LEASE_S": LONG_LEASE_S,
}
ENVOY_LAG_S = 0.2
DRAINED_WITHIN_S = 30.0


@pytest.mark.storm
@pytest.mark.timeout(900)
async def test_restarting_every_replica_of_everything_loses_no_run_and_no_event(
    tmp_path: Path,
) -> None:
    replicas = dict.fromkeys(AREAS, 2)
    parts = [f"{area}-{n}" for n in range(2) for area in AREAS]
    await _rolled([*parts, "envoy", *parts, "envoy"], replicas, tmp_path)


@pytest.mark.timeout(180)
async def test_restarting_an_agent_the_tools_and_the_gateway_loses_no_run_and_no_event(
    tmp_path: Path,
) -> None:
    await _rolled(["agent-0", "tools-0", "envoy"], {"agent": 2}, tmp_path)


async def _rolled(parts: Sequence[str], replicas: dict[str, int], folder: Path) -> None:
    async with storm_world(replicas, LONG_LEASES) as world:
        await take_checkpoint(world.mesh, folder / "before")
        crowd = Crowd(world, CLIENTS)
        crowd.begin()
        await crowd.have_done(CLIENTS)
        began = time.monotonic()
        for part in parts:
            await _restarted(world, part)
            await crowd.have_done(RUNS_BETWEEN)
        seconds = time.monotonic() - began
        await crowd.leave(60)
        found = await reckon(world, crowd)
        assert found.in_doubt == 0
        await verify_log(world.mesh, folder, folder / "before")
    print(f"{len(parts)} restarts in {seconds:.0f} s; {found}")  # noqa: T201 - this run's numbers


async def _restarted(world: StormWorld, part: str) -> None:
    """Tells a part to stop and waits until it is back in the gateway's rotation."""
    gateway = EnvoyProcess(world.mesh.topology)
    pid, owners = world.mesh.pid(part), await _owners(world, part)
    if part == "envoy":  # it knows no drain by SIGTERM
        await gateway.drain(lag_s=ENVOY_LAG_S, limit_s=5)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: world.mesh.pid(part) not in {0, pid}, DRAINED_WITHIN_S)
    left = owners & await _owners(world, part)
    assert not left, "a replica that ended still holds runs"
    await eventually(lambda: _in_rotation(gateway), DRAINED_WITHIN_S)


async def _owners(world: StormWorld, part: str) -> set[str]:
    """Under which names the processes of an agent replica hold runs; each process has its own."""
    area, _, replica = part.rpartition("-")
    if area != "agent":
        return set()
    held = "SELECT DISTINCT owner FROM runs WHERE state < 3 AND owner LIKE $1"
    return {owner for (owner,) in await rows(world.mesh, "remit_agent", held, f"{replica}/%")}


async def _in_rotation(gateway: EnvoyProcess) -> bool:
    return not await gateway.unhealthy_replicas()
