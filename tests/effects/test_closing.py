"""What ended is closed in the end, whatever else cannot be."""

from __future__ import annotations

import pytest

from remit.effects.statements import LAPSE
from remit.effects.store import ClaimStore
from remit.postgres import Database
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, World, a_call, a_request, replica, settled_down

PAGE = 2


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    """A database with the claim tables."""
    return await database("tools")


async def unclosed(claims: Database) -> int:
    return int(
        await claims.fetchval("SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL")
    )


async def test_what_cannot_be_closed_does_not_keep_the_rest_open(claims: Database) -> None:
    world = World()
    one = replica(ClaimStore(claims, owner="one", lease_s=LEASE_S, max_batch=PAGE), world)
    with a_call():
        for number in range(3 * PAGE):
            await one.gate.perform(a_request(str(number)), world.effect)
            await settled_down(one)
    await claims.execute(
        "UPDATE effect_attempts SET closed_time = NULL, state = 'DONE',"
        " update_time = update_time - interval '1 hour'"
    )
    oldest = await claims.fetch(
        "SELECT claim FROM effect_attempts ORDER BY update_time LIMIT $1", PAGE
    )
    world.stuck |= {f"claims/{row['claim']}" for row in oldest}
    for _ in range(4):
        await one.closer.sweep()
    assert await unclosed(claims) == PAGE, "all but those that cost refuses to settle"
    world.stuck.clear()
    for _ in range(2):
        await one.closer.sweep()
    assert await unclosed(claims) == 0


async def test_looking_for_lapsed_leases_reads_no_history(claims: Database) -> None:
    async with claims.transaction() as connection:
        # With a generic plan, as a long-lived connection may have one.
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute("SET LOCAL enable_seqscan = off")
        await connection.execute(f"PREPARE lapse AS {LAPSE}")
        plan = await connection.fetch("EXPLAIN EXECUTE lapse ('CLAIMED', 'REFUSED', 100)")
    assert "effect_attempts_open" in "\n".join(row[0] for row in plan)
