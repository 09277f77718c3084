"""Orgs that are disabled as a whole, by whoever operates the mesh and by nobody else."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import org_service_pb2
from remit.rpc.calls import remit_token
from tests.policy.test_admin_service import as_admin, create, refused
from tests.policy.test_ext_authz import check, error_of
from tests.policy.test_principals import ALLOW, DENY, enters, turn
from tests.policy.test_service import check as question
from tests.policy.test_service import issue
from tests.policy.test_service_accounts import CREATE_RUN, token_of
from tests.policy.world import ALICE, ORG, World

OTHER = "orgs/other"
EVE, MALLORY = f"{OTHER}/users/eve", f"{OTHER}/users/mallory"


@pytest.fixture(autouse=True)
async def _operated(world: World) -> None:
    """The org that is set up first operates the mesh."""
    await world.admin_secret()


async def ask(world: World, verb: str, user: str = ALICE, **fields: Any) -> Any:
    roles = fields.pop("roles", ("admin",))
    with remit_token(world.client_token(user, roles=roles)):
        if verb == "List":
            return await world.orgs().ListOrgs(org_service_pb2.ListOrgsRequest(**fields))
        given = {"name": OTHER, "request_id": "o1"} | fields
        request = getattr(org_service_pb2, f"{verb}OrgRequest")(**given)
        return (await getattr(world.orgs(), f"{verb}Org")(request)).org


async def eves_secret(world: World) -> str:
    made = await as_admin(world, "CreateApiKey", create(user=EVE), user=MALLORY)
    return str(made.secret)


async def test_nobody_of_a_disabled_org_comes_in_until_it_is_enabled(world: World) -> None:
    secret = await eves_secret(world)
    own = await world.admin_secret()
    assert await enters(world, secret)
    disabled = await ask(world, "Disable")
    assert disabled.HasField("disable_time")
    error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_DISABLED
    assert f"{OTHER} is disabled" in error.message
    assert await enters(world, own)
    assert not (await ask(world, "Enable", request_id="o2")).HasField("disable_time")
    assert await enters(world, secret)


async def test_its_runs_start_no_new_effect_and_those_of_others_do(world: World) -> None:
    client = await token_of(world, await eves_secret(world), CREATE_RUN)
    own = await token_of(world, await world.admin_secret(), CREATE_RUN)
    running = await issue(world, f"runs/{uuid.uuid4()}", client=client)
    of_others = await issue(world, f"runs/{uuid.uuid4()}", client=own)
    assert (await world.hot().CheckPermission(question(running))).decision == ALLOW
    await ask(world, "Disable")
    answer = await world.hot().CheckPermission(question(running))
    assert (answer.decision, f"{OTHER} is disabled" in answer.reason) == (DENY, True)
    assert (await world.hot().CheckPermission(question(of_others))).decision == ALLOW
    await ask(world, "Enable", request_id="o2")
    assert (await world.hot().CheckPermission(question(running))).decision == ALLOW


async def test_whoever_is_disabled_stays_so_when_their_org_is_enabled(world: World) -> None:
    secret = await eves_secret(world)
    await turn(world, "Disable", EVE, user=MALLORY)
    await ask(world, "Disable")
    await ask(world, "Enable", request_id="o2")
    error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert f"{EVE} is disabled" in error.message


async def test_a_repeated_request_is_one_change_and_one_entry(world: World) -> None:
    await eves_secret(world)
    made = await asyncio.gather(*(ask(world, "Disable") for _ in range(4)))
    assert made == [made[0]] * 4
    assert (await ask(world, "Disable", request_id="o2")).disable_time == made[0].disable_time
    error = await refused(ask(world, "Disable", name="orgs/third"))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    entries = [e for e in world.audit.events.values() if e.action == "orgs.disable"]
    admin = [e for e in entries if e.kind == event_pb2.EVENT_KIND_ADMIN]
    assert [(e.resource, e.subject, e.org) for e in admin] == [(OTHER, ALICE, ORG)] * 2


async def test_only_admins_of_the_org_that_operates_the_mesh(world: World) -> None:
    await eves_secret(world)
    for verb in ("Disable", "Enable", "List"):
        for who in ({"user": MALLORY}, {"roles": ("member",)}):
            error = await refused(ask(world, verb, **who))
            assert (verb, error.reason_name) == (verb, "PERMISSION_DENIED")


async def test_what_cannot_be_disabled(world: World) -> None:
    error = await refused(ask(world, "Disable", name=ORG))
    assert "operates the mesh" in error.violations[0].description
    for verb in ("Disable", "Enable"):
        error = await refused(ask(world, verb, name="orgs/nobody"))
        assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
        for fields in ({"name": EVE}, {"name": ""}, {"request_id": ""}):
            error = await refused(ask(world, verb, **fields))
            assert [each.field for each in error.violations] == [*fields]


async def test_orgs_are_listed_in_pages(world: World) -> None:
    await eves_secret(world)
    await ask(world, "Disable")
    first = await ask(world, "List", page_size=1)
    second = await ask(world, "List", page_size=1, page_token=first.next_page_token)
    assert [each.name for each in (*first.orgs, *second.orgs)] == [ORG, OTHER]
    assert [each.HasField("disable_time") for each in (*first.orgs, *second.orgs)] == [False, True]
    assert not second.next_page_token
    for fields in ({"page_size": -1}, {"page_token": EVE}):
        error = await refused(ask(world, "List", **fields))
        assert [each.field for each in error.violations] == [*fields]
