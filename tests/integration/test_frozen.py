"""Three agent replicas, one killed and one frozen: the third takes over, and nothing happens twice.

A frozen process is the worst kind of dead: it comes back and goes on where it stopped. It must then
find that its runs are another's, change nothing and start nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from remit.local.probes import ask
from tests.integration.reckoning import (
    EFFECT_DATABASES,
    nothing_is_open,
    reckon,
    rows,
)
from tests.integration.storming import (
    CLAIM_POLL_S,
    LEASE_S,
    Crowd,
    Kill,
    StormWorld,
    arm,
    storm_world,
)
from tests.waiting import PATIENCE, eventually

REPLICAS = 3
CLIENTS = 9
PATIENCE_S = 5
"""A stream of a frozen replica is silent, and its client looks elsewhere."""
ADOPTED_WITHIN_S = LEASE_S + CLAIM_POLL_S
"""The bound: a lease that was renewed just before the death, and one look of those who are left."""
BUSY_S = 4.0 * PATIENCE
"""What a loaded machine may add to it."""
_ATTEMPTS = """
    SELECT (to_jsonb(a) - '{result,result_digest,update_time}'::text[])::text
    FROM effect_attempts a ORDER BY claim, attempt
"""
BEFORE_A_TOOL = Kill("", "agent", "agent.calls.ToolCalls._attempt before", 3)


@pytest.mark.timeout(240)
async def test_what_a_killed_and_a_frozen_replica_had_goes_on_elsewhere_and_once() -> None:
    async with storm_world({"agent": REPLICAS}) as world:
        crowd = Crowd(world, CLIENTS, PATIENCE_S)
        crowd.begin()
        await crowd.have_done(CLIENTS)
        frozen = await _frozen_before_a_tool(world)
        killed = (frozen + 1) % REPLICAS
        tokens = await _tokens(world, frozen)
        assert tokens, "a replica is frozen in the midst of a run"
        tokens |= await _tokens(world, killed)
        world.mesh.kill(f"agent-{killed}")
        began = time.monotonic()
        await eventually(lambda: _are_adopted(world, tokens))
        took_s = time.monotonic() - began
        assert took_s < ADOPTED_WITHIN_S + BUSY_S
        _tell(f"{len(tokens)} runs adopted {took_s:.2f} s after the kill")
        await crowd.leave(120)
        await eventually(lambda: nothing_is_open(world.mesh), 60)

        before = await _everything(world)
        fences = dict(
            await rows(world.mesh, "remit_policy", "SELECT run, min_fencing_token FROM run_fences")
        )
        for run, token in tokens.items():
            assert fences[f"runs/{run}"] > token
        os.kill(world.mesh.pid(f"agent-{frozen}"), signal.SIGCONT)
        await eventually(lambda: _works_on_nothing(world, frozen), 30)
        await eventually(lambda: nothing_is_open(world.mesh), 60)
        assert await _everything(world) == before
        found = await reckon(world, crowd)
        assert found.in_doubt == 0
        _tell(str(found))


async def _frozen_before_a_tool(world: StormWorld) -> int:
    """Stops whichever replica is the next to call a tool, just before the call; its number."""
    _, fired = arm(world.orders, BEFORE_A_TOOL, sent=signal.SIGSTOP)
    await eventually(fired.exists, 30)
    return await eventually(lambda: _stopped(world), 10) - 1


def _stopped(world: StormWorld) -> int:
    """The replica that is stopped, counted from 1; 0 if none is yet."""
    for replica in range(REPLICAS):
        with contextlib.suppress(FileNotFoundError):
            stat = Path(f"/proc/{world.mesh.pid(f'agent-{replica}')}/stat").read_text()
            if stat.rpartition(") ")[2].startswith("T"):
                return replica + 1
    return 0


async def _tokens(world: StormWorld, replica: int) -> dict[str, int]:
    """The runs that a replica works on, each with the token that it has."""
    held = "SELECT run::text, fencing_token FROM runs WHERE state < 3 AND owner LIKE $1"
    return dict(await rows(world.mesh, "remit_agent", held, f"{replica}/%"))


async def _are_adopted(world: StormWorld, tokens: Mapping[str, int]) -> bool:
    """Whether each run has had another worker since, or has ended."""
    held = "SELECT run::text, fencing_token FROM runs WHERE state < 3 AND run = ANY ($1::uuid[])"
    now = dict(await rows(world.mesh, "remit_agent", held, list(tokens)))
    return all(token > tokens[run] for run, token in now.items())


async def _works_on_nothing(world: StormWorld, replica: int) -> bool:
    """Whether a replica answers again and has given up what it had."""
    address = world.mesh.topology.replicas["agent"][replica]
    answer = await ask(address.host, address.http_port, "/metrics")
    return "agent_running 0.0" in answer.body.splitlines()


async def _everything(world: StormWorld) -> list[object]:
    """Every journal, every fence, every attempt, every mail and every file.

    Of an attempt without its result: that goes when the journal is known to hold it.
    """
    whole = [("remit_agent", "run_events"), ("remit_agent", "runs"), ("remit_policy", "run_fences")]
    stored = [
        await rows(world.mesh, database, f"SELECT t::text AS row FROM {table} t ORDER BY row")  # noqa: S608
        for database, table in whole
    ]
    stored += [await rows(world.mesh, database, _ATTEMPTS) for database in EFFECT_DATABASES]
    return [*stored, world.mails(), world.written]


def _tell(text: str) -> None:
    print(text)  # noqa: T201 - the numbers of this run
