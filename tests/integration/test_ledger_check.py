"""A model call dies with its process: its hold is closed within the bound, and the checks agree.

One mesh for all of it: `remit cost check` and `remit audit verify --complete` under load, after a
kill -9, and with faults by hand.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any, Final

import pytest

from remit.effects import EffectSettings
from tests.integration.conftest import RunningMesh
from tests.integration.reckoning import nothing_is_open, rows
from tests.integration.storming import LEASE_S, Crowd, Kill, arm, storm_world
from tests.waiting import eventually

CLIENTS: Final = 4
SWEEP_S: Final = 0.5
BOUND_S: Final = EffectSettings(effect_lease_s=LEASE_S, effect_sweep_s=SWEEP_S).closing_bound_s
BUSY_S: Final = 20.0
"""What a loaded machine may add to it: rounds of sweepers that wait for a processor."""
BEFORE_A_MODEL_CALL: Final = Kill("", "inference", "effects.gate.EffectGate._io before", 1)
_DEAD: Final = """
    SELECT 'claims/' || claim, attempt FROM effect_attempts
    WHERE state = 'IN_DOUBT' AND closed_time IS NOT NULL
"""
_CLOSED: Final = """
    SELECT close_time, posted_nanos = hold_nanos FROM reservations
    WHERE claim = $1 AND attempt = $2 AND state = 2
"""
_A_BILL: Final = """
    UPDATE effect_attempts SET cost_nanos = cost_nanos + $1 WHERE (claim, attempt) IN (
        SELECT claim, attempt FROM effect_attempts WHERE state = 'CLOSED'
        ORDER BY claim, attempt LIMIT 1
    ) RETURNING 'claims/' || claim
"""

_AN_EFFECT: Final = """
    SELECT 'claims/' || claim, attempt, intent_leaf FROM effect_attempts
    WHERE state = 'CLOSED' ORDER BY claim, attempt LIMIT 1
"""
_NO_OUTCOME: Final = """
    DELETE FROM events WHERE claim = $1 AND kind = 'OUTCOME'
        AND position('-' || $2::text || '-' IN (
            SELECT event_id FROM leaves WHERE leaves.leaf_index = events.leaf_index)) > 0
"""


@pytest.mark.timeout(300)
async def test_a_dead_effects_hold_is_closed_within_the_bound_and_the_check_agrees() -> None:
    async with storm_world({"inference": 2}) as world:
        crowd = Crowd(world, CLIENTS)
        crowd.begin()
        await crowd.have_done(CLIENTS)
        _, fired = arm(world.orders, BEFORE_A_MODEL_CALL)
        await eventually(fired.exists, 30)
        ((killed,),) = await rows(world.mesh, "remit_cost", "SELECT clock_timestamp()")
        lag_s = await _lag_s(world.mesh, killed)
        print(f"closed {lag_s:.2f} s after the kill; the bound is {BOUND_S:.2f} s")  # noqa: T201
        assert lag_s <= BOUND_S + BUSY_S

        code, told = await _check(world.mesh)
        assert (code, told["differences"]) == (0, []), "under load"
        code, told = await _complete(world.mesh)
        assert (code, told["differences"]) == (0, []), "under load"
        await crowd.leave(120)
        await eventually(lambda: nothing_is_open(world.mesh), 60)
        code, told = await _check(world.mesh)
        assert (code, told["agrees"], told["differences"]) == (0, True, [])
        assert told["attempts"] >= told["reservations"] > CLIENTS

        code, told = await _complete(world.mesh)
        assert (code, told["complete"]) == (0, True)
        assert told["attempts"] >= told["reservations"] > CLIENTS
        assert min(told["events"], told["calls"]) > CLIENTS
        ((claim, attempt, leaf),) = await rows(world.mesh, "remit_inference", _AN_EFFECT)
        await rows(world.mesh, "remit_audit", _NO_OUTCOME, claim, str(attempt))
        code, told = await _complete(world.mesh)
        assert (code, told["complete"]) == (9, False)
        (found,) = told["differences"]
        named = (found["kind"], found["claim"], found["attempt"], found["leaf_index"])
        assert named == ("KIND_OUTCOME_MISSING", claim, attempt, leaf)

        ((claim,),) = await rows(world.mesh, "remit_tools", _A_BILL, 1)
        code, told = await _check(world.mesh)
        assert (code, told["agrees"]) == (9, False)
        (found,) = told["differences"]
        assert (found["claim"], found["kind"]) == (claim, "KIND_BILL_DIFFERS")
        assert "was billed" in found["explanation"]
        await rows(world.mesh, "remit_tools", _A_BILL, -1)
        code, told = await _check(world.mesh)
        assert (code, told["agrees"]) == (0, True)


async def _lag_s(mesh: RunningMesh, killed: datetime) -> float:
    """From the kill until the hold of the effect that died was posted whole."""
    claim, attempt = (await eventually(lambda: rows(mesh, "remit_inference", _DEAD), 90))[0]
    ((closed, is_whole),) = await rows(mesh, "remit_cost", _CLOSED, claim, attempt)
    assert is_whole
    assert isinstance(closed, datetime)
    return (closed - killed).total_seconds()


async def _check(mesh: RunningMesh) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `remit cost check`."""
    return await _told(mesh, "cost", "check")


async def _complete(mesh: RunningMesh) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `remit audit verify --complete`."""
    return await _told(mesh, "audit", "verify", "--complete")


async def _told(mesh: RunningMesh, *command: str) -> tuple[int, dict[str, Any]]:
    ended = await asyncio.to_thread(mesh.run, *command, "--json")
    assert ended.stdout, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return ended.returncode, document
