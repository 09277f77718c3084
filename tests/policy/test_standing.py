"""Remits of runs whose user, org or API key counts no more: none is issued, and it is told."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2
from tests.policy.test_admin_service import as_admin, create, refused, revoke
from tests.policy.test_delegation import delegated, root
from tests.policy.test_orgs import EVE, OTHER, eves_secret
from tests.policy.test_orgs import ask as ask_orgs
from tests.policy.test_principals import CREATE_RUN, turn
from tests.policy.test_service import issue
from tests.policy.test_service_accounts import token_of
from tests.policy.world import ALICE, BOB, World

AGENT = options_pb2.CALLER_AGENT
DISABLED = reasons.ERROR_REASON_PRINCIPAL_DISABLED


def new_run() -> str:
    return f"runs/{uuid.uuid4()}"


async def renewed(world: World, run: str, token: int = 1) -> str:
    request = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=token)
    return (await world.hot(AGENT).IssueRemit(request)).remit


async def disable(world: World, what: str) -> tuple[str, Any]:
    """A disabled user or org, with a remit of a client of theirs from before, and how to enable."""
    if what == "user":
        token = world.client_token(BOB)
        await turn(world, "Disable")
        return BOB, (token, lambda: turn(world, "Enable", request_id="e1"))
    await world.admin_secret()
    await eves_secret(world)
    token = world.client_token(EVE)
    await ask_orgs(world, "Disable")
    return OTHER, (token, lambda: ask_orgs(world, "Enable", request_id="o2"))


@pytest.mark.parametrize("what", ["user", "org"])
async def test_no_remit_is_renewed_and_lower_tokens_are_fenced_all_the_same(
    world: World, what: str
) -> None:
    run = new_run()
    await issue(world, run, client=world.client_token(BOB if what == "user" else EVE))
    name, (_, enable) = await disable(world, what)
    error = await refused(renewed(world, run, token=3))
    assert (error.reason, f"{name} is disabled" in error.message) == (DISABLED, True)
    assert not error.retryable
    await enable()
    error = await refused(renewed(world, run, token=2))
    assert error.reason == reasons.ERROR_REASON_FENCED
    assert await renewed(world, run, token=3)


@pytest.mark.parametrize("what", ["user", "org"])
async def test_no_run_begins_with_a_remit_from_before(world: World, what: str) -> None:
    run = new_run()
    name, (token, enable) = await disable(world, what)
    error = await refused(issue(world, run, client=token))
    assert (error.reason, f"{name} is disabled" in error.message) == (DISABLED, True)
    assert (await refused(renewed(world, run))).reason == reasons.ERROR_REASON_RUN_NOT_FOUND
    await enable()
    assert await issue(world, run, client=token)


async def test_no_sub_run_is_started_or_renewed(world: World) -> None:
    parent = await root(world, new_run())
    sub = new_run()
    await delegated(world, parent, sub)
    await turn(world, "Disable", ALICE, user=BOB)
    for run in (new_run(), sub):
        assert (await refused(delegated(world, parent, run))).reason == DISABLED
    assert (await refused(renewed(world, sub))).reason == DISABLED
    await turn(world, "Enable", ALICE, user=BOB, request_id="e1")
    assert await delegated(world, parent, new_run())


async def test_no_run_begins_with_a_key_that_was_revoked_and_one_under_way_goes_on(
    world: World,
) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    client = await token_of(world, made.secret, CREATE_RUN)
    running = new_run()
    await issue(world, running, client=client)
    await as_admin(world, "RevokeApiKey", revoke(made.api_key.name))
    error = await refused(issue(world, new_run(), client=client))
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_REVOKED
    assert await renewed(world, running, token=2)


async def test_a_refusal_is_told_under_the_users_name(world: World) -> None:
    run = new_run()
    await issue(world, run, client=world.client_token(BOB))
    await turn(world, "Disable")
    await refused(renewed(world, run))
    await refused(issue(world, new_run(), client=world.client_token(BOB)))
    await world.accesses.flush()
    told = [e for e in world.audit.events.values() if "PRINCIPAL_DISABLED" in e.detail_json]
    assert sorted((e.subject, e.run == run) for e in told) == [(BOB, False), (BOB, True)]
