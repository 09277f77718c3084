"""Service accounts: principals that are no people, with API keys within bounds, and no voice."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import policy_set_service_pb2, principal_pb2, principal_service_pb2
from remit.policy.bootstrap import bootstrap_admin
from remit.policy.entities import SERVICE_ACCOUNT, Principal
from remit.policy.identity_tokens import Identity
from remit.policy.service_accounts import fitted
from remit.policy.store import NewApiKey, ServiceAccount
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.policy.approvals import asked, decide, exact, guard, guarded, new_claim, put, recorded
from tests.policy.test_admin_service import as_admin, create, refused
from tests.policy.test_ext_authz import LIST_AGENTS, check, error_of, headers_of
from tests.policy.test_policy_sets import files
from tests.policy.test_principals import ALLOW, DENY, enters, listed, rotation, turn
from tests.policy.test_service import check as question
from tests.policy.test_service import issue
from tests.policy.world import ALICE, BOB, ORG, MovedClock, World

CI = "orgs/acme/users/ci"
CORE, OPS = "orgs/acme/teams/core", "orgs/acme/teams/ops"
CREATE_RUN = "/remit.api.agent.v1.AgentService/CreateRun"
DECIDE = "/remit.api.policy.v1.ApprovalService/DecideApproval"
SERVICE_ACCOUNTS = principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT
ROBOTS = (
    '@id("no-robots") forbid (principal, action, resource)'
    ' when { principal.roles.contains("service_account") };'
)


async def make(
    world: World, by: tuple[str, ...] = ("admin",), **fields: Any
) -> principal_pb2.Principal:
    given: dict[str, Any] = {
        "name": CI,
        "display_name": "CI of core",
        "team": CORE,
        "roles": ["member"],
        "request_id": "c1",
    }
    request = principal_service_pb2.CreateServiceAccountRequest(**given | fields)
    with remit_token(world.client_token(ALICE, roles=by)):
        response = await world.principals().CreateServiceAccount(request)
    made: principal_pb2.Principal = response.principal
    return made


async def key(world: World, **fields: Any) -> Any:
    return await as_admin(world, "CreateApiKey", create(**{"user": CI} | fields))


async def token_of(world: World, secret: str, path: str) -> str:
    """The remit that the edge gives a call with this key."""
    response = await check(world, path, authorization=f"Bearer {secret}")
    assert response.status.code == 0, response
    return headers_of(response)["remit-token"]


# -------------------------------------------------------------------------------------- the account


async def test_one_is_made_listed_and_recorded(world: World) -> None:
    made = await make(world)
    assert (made.name, made.kind, made.display_name) == (CI, SERVICE_ACCOUNTS, "CI of core")
    assert (list(made.teams), list(made.roles)) == ([CORE], ["member"])
    assert made.working_key_count == 0
    await as_admin(world, "CreateApiKey", create())
    accounts = await listed(world, kind=SERVICE_ACCOUNTS)
    assert list(accounts.principals) == [made]
    people = await listed(world, kind=principal_pb2.PRINCIPAL_KIND_USER)
    assert [(each.name, each.kind) for each in people.principals] == [
        (BOB, principal_pb2.PRINCIPAL_KIND_USER)
    ]
    assert len((await listed(world)).principals) == 2
    error = await refused(listed(world, kind=7))
    assert [each.field for each in error.violations] == ["kind"]
    entries = [e for e in world.audit.events.values() if e.action == "principals.create"]
    (entry,) = [e for e in entries if e.kind == event_pb2.EVENT_KIND_ADMIN]
    assert (entry.resource, entry.subject) == (CI, ALICE)
    assert json.loads(entry.detail_json)["roles"] == ["member"]


async def test_a_repeated_request_makes_one_and_a_taken_name_is_refused(world: World) -> None:
    made = await asyncio.gather(*(make(world) for _ in range(4)))
    assert made == [made[0]] * 4
    error = await refused(make(world, display_name="another"))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    error = await refused(make(world, request_id="c2"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_EXISTS
    assert "as a service account" in error.message
    await as_admin(world, "CreateApiKey", create())
    error = await refused(make(world, name=BOB, request_id="c3"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_EXISTS
    assert "as a user" in error.message


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"name": "orgs/other/users/ci"}, {"name"}),
    ({"name": "orgs/acme/teams/core"}, {"name"}),
    ({"name": "ci"}, {"name"}),
    ({"display_name": ""}, {"display_name"}),
    ({"display_name": "x" * 101}, {"display_name"}),
    ({"display_name": "two\nlines"}, {"display_name"}),
    ({"team": "orgs/other/teams/core"}, {"team"}),
    ({"team": "core"}, {"team"}),
    ({"roles": []}, {"roles"}),
    ({"roles": ["member", SERVICE_ACCOUNT]}, {"roles"}),
    ({"request_id": ""}, {"request_id"}),
    ({"name": "", "display_name": "", "roles": ["x"]}, {"name", "display_name", "roles"}),
]


@pytest.mark.parametrize(("fields", "names"), BAD)
async def test_every_violation_is_named(
    world: World, fields: dict[str, Any], names: set[str]
) -> None:
    error = await refused(make(world, **fields))
    assert {each.field for each in error.violations} == names
    assert not (await listed(world)).principals


async def test_nobody_makes_one_with_more_roles_than_their_own(world: World) -> None:
    error = await refused(make(world, ("member",)))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    anybody = '@id("any") permit (principal, action == Action::"principals.create", resource);'
    source = guarded()
    await put(world, replace(source, files={**source.files, "any.cedar": anybody}))
    error = await refused(make(world, ("member",), roles=["admin", "member"]))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert "only an admin gives the role admin" in error.message
    assert (await make(world, ("member",))).name == CI


# ----------------------------------------------------------------------------------------- its keys


async def test_its_keys_have_its_team_and_its_roles_and_no_others(world: World) -> None:
    await make(world)
    made = await key(world)
    assert (made.api_key.team, list(made.api_key.roles)) == (CORE, ["member"])
    assert await enters(world, made.secret)
    assert (await key(world, team=CORE, request_id="r2")).api_key.team == CORE
    error = await refused(key(world, team=OPS, roles=["admin"], request_id="r3"))
    assert {each.field for each in error.violations} == {"team", "roles"}
    (account,) = (await listed(world, kind=SERVICE_ACCOUNTS)).principals
    assert account.working_key_count == 2
    assert account.HasField("last_use_time")
    rotated = await as_admin(world, "RotateApiKey", rotation(made.api_key.name))
    assert (rotated.api_key.user, rotated.api_key.team) == (CI, CORE)
    assert await enters(world, rotated.secret)
    with pytest.raises(RemitError):
        await bootstrap_admin(world.database, world.pepper, ORG, CI)


@given(
    st.sampled_from(["", CORE, OPS]),
    st.sets(st.sampled_from(["admin", "member"]), min_size=1),
    st.sampled_from(["", CORE, OPS]),
    st.sets(st.sampled_from(["admin", "member"]), min_size=1),
)
def test_no_key_exceeds_the_account(
    team: str, roles: set[str], own_team: str, own_roles: set[str]
) -> None:
    wanted = NewApiKey("id", CI, team, "x", tuple(sorted(roles)), b"", "", None)
    account = ServiceAccount(CI, "x", own_team, tuple(sorted(own_roles)))
    assert fitted(wanted, None) == wanted
    if team in {"", own_team} and roles <= own_roles:
        assert fitted(wanted, account) == replace(wanted, team=own_team)
        return
    with pytest.raises(RemitError) as caught:
        fitted(wanted, account)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_it_can_be_disabled_and_enabled(world: World) -> None:
    await make(world)
    secret = (await key(world)).secret
    disabled = await turn(world, "Disable", CI)
    assert disabled.kind == SERVICE_ACCOUNTS
    error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_DISABLED
    await turn(world, "Enable", CI, "e1")
    assert await enters(world, secret)


async def test_nobody_signs_in_as_one(world: World, clock: MovedClock) -> None:
    await make(world)
    end = clock.now() + timedelta(hours=1)
    identity = Identity(Principal(CI, ORG, "", ("member",)), "corporate", b"digest", end)
    error = await refused(world.credentials.token_session(identity))
    assert error.reason == reasons.ERROR_REASON_IDENTITY_NOT_MAPPED
    assert "a service account" in error.message
    person = replace(identity, principal=replace(identity.principal, user=BOB))
    assert (await world.credentials.token_session(person)).principal.user == BOB
    error = await refused(make(world, name=BOB, request_id="c2"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_EXISTS


async def test_an_admin_that_is_one_gets_hold_of_no_key_of_a_person(world: World) -> None:
    """With it, it could do what is for people alone."""
    await make(world, roles=["admin", "member"])
    robot = {"user": CI, "roles": ("admin", SERVICE_ACCOUNT)}
    error = await refused(as_admin(world, "CreateApiKey", create(request_id="k1"), **robot))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    persons = await as_admin(world, "CreateApiKey", create())
    error = await refused(as_admin(world, "RotateApiKey", rotation(persons.api_key.name), **robot))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    own = await as_admin(world, "CreateApiKey", create(user=CI, request_id="k2"), **robot)
    assert await enters(world, own.secret)


# ----------------------------------------------------------------------------------------- policies


async def test_policies_tell_it_from_a_person_at_the_edge_and_in_its_runs(world: World) -> None:
    await make(world)
    machine = (await key(world)).secret
    person = (await as_admin(world, "CreateApiKey", create(request_id="r2"))).secret
    run = f"runs/{uuid.uuid4()}"
    client = await token_of(world, machine, CREATE_RUN)
    running = await issue(world, run, client=client)
    assert (await world.hot().CheckPermission(question(running))).decision == ALLOW
    source = guarded()
    await put(world, replace(source, files={**source.files, "robots.cedar": ROBOTS}))
    error = error_of(await check(world, LIST_AGENTS, authorization=f"Bearer {machine}"))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert await enters(world, person)
    answer = await world.hot().CheckPermission(question(running))
    assert (answer.decision, list(answer.policy_ids)) == (DENY, ["no-robots"])


async def test_an_administrator_that_is_one_saves_from_a_lockout_only_if_it_may_push(
    world: World,
) -> None:
    await make(world, roles=["admin"], team="")
    await key(world, roles=["admin"])
    push = policy_set_service_pb2.PushPolicySetRequest(
        files=files(robots=ROBOTS), expected_version=1, request_id="p"
    )
    with remit_token(world.client_token(roles=("admin",))):
        error = await refused(world.policy_sets().PushPolicySet(push))
        assert error.reason == reasons.ERROR_REASON_POLICY_LOCKOUT
        await world.admin_secret()
        await world.policy_sets().PushPolicySet(push)


async def test_the_keys_of_a_disabled_administrator_save_nobody_from_a_lockout(
    world: World,
) -> None:
    await as_admin(world, "CreateApiKey", create(roles=["admin"]))
    await turn(world, "Disable", BOB)
    push = policy_set_service_pb2.PushPolicySetRequest(
        files=files(), expected_version=1, request_id="p"
    )
    with remit_token(world.client_token(roles=("admin",))):
        error = await refused(world.policy_sets().PushPolicySet(push))
    assert error.reason == reasons.ERROR_REASON_POLICY_LOCKOUT


# ---------------------------------------------------------------------------------------- approvals


@pytest.mark.parametrize("terms", ["team:ops", "role:admin", "user:ci", "role:service_account"])
async def test_it_never_approves_whatever_the_policies_want(world: World, terms: str) -> None:
    await guard(world, terms)
    await make(world, roles=["admin", "member"], team=OPS)
    secret = (await key(world, roles=["admin", "member"])).secret
    name = (await asked(world, exact(new_claim()))).approval
    robot = await token_of(world, secret, DECIDE)
    error = await refused(decide(world, name, by=robot))
    assert error.reason == reasons.ERROR_REASON_APPROVAL_NOT_YOURS
    assert "only people decide" in error.message
    (entry,) = recorded(world, "approvals.decide")
    assert (entry["subject"], entry["outcome"]) == (CI, event_pb2.OUTCOME_REFUSED)
    row = await world.approvals.get(name.removeprefix("approvals/"))
    assert row is not None
    assert not row.votes
