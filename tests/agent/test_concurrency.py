"""How many unfinished runs a user and an org may have, whichever replica they are started on."""

from __future__ import annotations

import asyncio
from collections import Counter

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import client_remit
from tests.agent.test_service import refused

BOB, CAROL = "orgs/acme/users/bob", "orgs/acme/users/carol"
CALLERS = 60


async def outcome_of(client: Client) -> str:
    """Why a run was not created; empty if it was."""
    try:
        await client.create()
    except RemitError as error:
        return error.reason_name
    return ""


async def test_exactly_so_many_begin_on_three_replicas_at_once(
    replica: StartReplica, world: World
) -> None:
    world.policy.max_user_runs = 7
    world.inference.effects.hold = asyncio.Event()  # none of them ends
    clients = [(await replica()).client() for _ in range(3)]

    async def until_told(client: Client) -> str:
        # On a busy machine one may not hear in time; its run may be there all the same.
        while (outcome := await outcome_of(client)) == "DEPENDENCY_UNAVAILABLE":
            pass
        return outcome

    calls = (until_told(clients[number % 3]) for number in range(CALLERS))
    outcomes = Counter(await asyncio.gather(*calls))
    unfinished = await world.database.fetchval("SELECT count(*) FROM runs WHERE state < 3")
    assert unfinished == 7
    assert outcomes.keys() == {"", "CONCURRENCY_LIMITED"}
    assert outcomes[""] <= 7
    world.inference.effects.hold.set()


async def test_a_run_that_ended_makes_room(replica: StartReplica, world: World) -> None:
    world.policy.max_user_runs = 2
    world.inference.effects.hold = asyncio.Event()
    client = (await replica()).client()
    first, _ = await client.create(), await client.create()
    error = await refused(client.create(), reasons.ERROR_REASON_CONCURRENCY_LIMITED)
    assert error.message == "orgs/acme/users/alice may have 2 unfinished runs at once, and has"
    assert error.retry_after_s
    await client.cancel(first.name)
    assert (await client.ended(first.name)).state == run_pb2.RUN_STATE_CANCELLED
    await client.create()
    world.inference.effects.hold.set()


async def test_one_users_runs_are_not_anothers_and_the_org_has_all(
    replica: StartReplica, world: World
) -> None:
    world.policy.max_user_runs, world.policy.max_org_runs = 1, 2
    world.inference.effects.hold = asyncio.Event()
    made = await replica()
    alice, bob, carol = (
        made.client(remit) for remit in (None, client_remit(BOB), client_remit(CAROL))
    )
    await alice.create()
    await bob.create()
    error = await refused(bob.create(), reasons.ERROR_REASON_CONCURRENCY_LIMITED)
    assert {violation.subject for violation in error.quota} == {BOB, "orgs/acme"}
    error = await refused(carol.create(), reasons.ERROR_REASON_CONCURRENCY_LIMITED)
    assert [violation.subject for violation in error.quota] == ["orgs/acme"]
    world.inference.effects.hold.set()


async def test_without_limits_nothing_is_counted(replica: StartReplica) -> None:
    client = (await replica(running=False)).client()
    assert Counter([await outcome_of(client) for _ in range(12)]) == {"": 12}
