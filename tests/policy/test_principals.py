"""Users who are disabled, and keys: their scopes, their last use, and one in another's place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import duration_pb2

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import permission_pb2, policy_admin_service_pb2, principal_service_pb2
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.policy.test_admin_service import as_admin, at, create, refused, revoke
from tests.policy.test_ext_authz import CREATE_KEY, LIST_AGENTS, check, error_of
from tests.policy.test_service import check as question
from tests.policy.world import ALICE, BOB, CACHE_S, MovedClock, World

CREATE_RUN = "/remit.api.agent.v1.AgentService/CreateRun"
LIST_RUNS = "/remit.api.agent.v1.AgentService/ListRuns"
ALLOW, DENY = permission_pb2.DECISION_ALLOW, permission_pb2.DECISION_DENY
HOUR = duration_pb2.Duration(seconds=3600)


def rotation(
    name: str, request_id: str = "rot", **more: Any
) -> policy_admin_service_pb2.RotateApiKeyRequest:
    return policy_admin_service_pb2.RotateApiKeyRequest(name=name, request_id=request_id, **more)


async def turn(world: World, verb: str, name: str = BOB, request_id: str = "d1", **who: Any) -> Any:
    kind = getattr(principal_service_pb2, f"{verb}PrincipalRequest")
    given = {"user": ALICE, "roles": ("admin",)} | who
    with remit_token(world.client_token(**given)):
        call = getattr(world.principals(), f"{verb}Principal")
        return (await call(kind(name=name, request_id=request_id))).principal


async def enters(world: World, secret: str, path: str = LIST_AGENTS) -> bool:
    return (await check(world, path, authorization=f"Bearer {secret}")).status.code == 0


# ---------------------------------------------------------------------------------- disabled users


async def test_a_disabled_user_is_refused_at_once_and_an_enabled_one_is_not(world: World) -> None:
    secret = (await as_admin(world, "CreateApiKey", create())).secret
    assert await enters(world, secret)
    disabled = await turn(world, "Disable")
    assert disabled.HasField("disable_time")
    error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_DISABLED
    assert BOB in error.message
    enabled = await turn(world, "Enable", request_id="e1")
    assert not enabled.HasField("disable_time")
    assert await enters(world, secret)


async def test_a_refusal_of_a_disabled_user_is_told_under_their_name(world: World) -> None:
    secret = (await as_admin(world, "CreateApiKey", create())).secret
    await turn(world, "Disable")
    await check(world, authorization=f"Bearer {secret}")
    await world.accesses.flush()
    (told,) = [e for e in world.audit.events.values() if "PRINCIPAL_DISABLED" in e.detail_json]
    assert (told.subject, told.outcome) == (BOB, event_pb2.OUTCOME_REFUSED)


async def test_whoever_was_never_seen_can_be_disabled_and_it_is_recorded_once(
    world: World,
) -> None:
    name = "orgs/acme/users/never"
    first = await turn(world, "Disable", name)
    assert await turn(world, "Disable", name) == first
    assert (await turn(world, "Disable", name, "d2")).disable_time == first.disable_time
    entries = [e for e in world.audit.events.values() if e.action == "principals.disable"]
    admin = [e for e in entries if e.kind == event_pb2.EVENT_KIND_ADMIN]
    assert [(e.resource, e.subject) for e in admin] == [(name, ALICE)] * 2


async def test_who_may_disable_whom(world: World) -> None:
    for name in ("orgs/other/users/bob", "orgs/acme", "orgs/acme/teams/core", "", ALICE):
        error = await refused(turn(world, "Disable", name))
        assert (name, error.reason_name) == (name, "INVALID_REQUEST")
    error = await refused(turn(world, "Disable", roles=("member",)))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    error = await refused(turn(world, "Disable", request_id=""))
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_no_decision_is_made_for_a_disabled_user(world: World) -> None:
    token = world.client_token(BOB)
    assert (await world.hot().CheckPermission(question(token))).decision == ALLOW
    await turn(world, "Disable")
    answer = await world.hot().CheckPermission(question(token))
    assert answer.decision == DENY
    assert "is disabled" in answer.reason


# --------------------------------------------------------------------------------------- the list


async def listed(world: World, roles: tuple[str, ...] = ("admin",), **fields: Any) -> Any:
    with remit_token(world.client_token(ALICE, roles=roles)):
        return await world.principals().ListPrincipals(
            principal_service_pb2.ListPrincipalsRequest(**fields)
        )


async def test_users_are_listed_with_what_their_working_keys_say(world: World) -> None:
    core, ops = "orgs/acme/teams/core", "orgs/acme/teams/ops"
    first = await as_admin(world, "CreateApiKey", create(team=ops, roles=["admin"]))
    assert await enters(world, first.secret)
    for number, team in enumerate((core, "", core)):
        await as_admin(world, "CreateApiKey", create(team=team, request_id=f"more{number}"))
    old = await as_admin(
        world, "CreateApiKey", create(team="orgs/acme/teams/gone", request_id="gone")
    )
    await as_admin(world, "RevokeApiKey", revoke(old.api_key.name))
    (bob,) = (await listed(world)).principals
    assert (bob.name, bob.working_key_count) == (BOB, 4)
    assert (list(bob.teams), list(bob.roles)) == ([core, ops], ["admin", "member"])
    assert bob.HasField("last_use_time")
    assert bob.HasField("create_time")
    assert not bob.HasField("disable_time")


async def test_whoever_was_disabled_beforehand_is_listed(world: World) -> None:
    name = "orgs/acme/users/never"
    disabled = await turn(world, "Disable", name)
    (never,) = (await listed(world)).principals
    assert never == disabled
    assert (never.working_key_count, list(never.roles)) == (0, [])


async def test_users_are_listed_in_pages_and_those_of_other_orgs_are_not(world: World) -> None:
    made = [f"orgs/acme/users/u{number}" for number in range(5)]
    for name in made:
        await turn(world, "Disable", name, request_id=name[-2:])
    await turn(world, "Disable", "orgs/other/users/eve", user="orgs/other/users/mallory")
    found: list[str] = []
    token = ""
    while not found or token:
        page = await listed(world, page_size=2, page_token=token)
        assert len(page.principals) <= 2
        found += [each.name for each in page.principals]
        token = page.next_page_token
    assert found == made
    everybody = await listed(world, page_size=10_000)
    assert (len(everybody.principals), everybody.next_page_token) == (5, "")


async def test_who_may_list_and_how(world: World) -> None:
    error = await refused(listed(world, ("member",)))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    for fields in (
        {"page_size": -1},
        {"page_token": "x"},
        {"page_token": "orgs/other/users/eve"},
    ):
        error = await refused(listed(world, **fields))
        assert (fields, error.reason_name) == (fields, "INVALID_REQUEST")
        assert [each.field for each in error.violations] == [*fields]


# ------------------------------------------------------------------------------------------ scopes


async def test_a_key_with_scopes_enters_for_those_alone(world: World) -> None:
    made = await as_admin(
        world, "CreateApiKey", create(roles=["admin"], scopes=["runs", "agents.list"])
    )
    assert list(made.api_key.scopes) == ["agents.list", "runs"]
    for path, passes in ((LIST_AGENTS, True), (CREATE_RUN, True), (CREATE_KEY, False)):
        assert (path, await enters(world, made.secret, path)) == (path, passes)
    error = error_of(await check(world, CREATE_KEY, authorization=f"Bearer {made.secret}"))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert "limited to agents.list, runs" in error.message


async def test_a_scope_gives_nothing(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create(scopes=["keys", "runs.read"]))
    assert not await enters(world, made.secret, CREATE_KEY)
    assert await enters(world, made.secret, LIST_RUNS)
    assert not await enters(world, made.secret, CREATE_RUN)


@pytest.mark.parametrize("scopes", [["nothing"], [""], ["runs."], ["*"], ["runs"] * 33])
async def test_a_scope_that_is_none_is_refused(world: World, scopes: list[str]) -> None:
    error = await refused(as_admin(world, "CreateApiKey", create(scopes=scopes)))
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST


# ---------------------------------------------------------------------------------------- last use


async def test_the_last_use_is_noted_once_a_minute(world: World, clock: MovedClock) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    assert not made.api_key.HasField("last_use_time")

    async def noted() -> Any:
        listed = await as_admin(world, "ListApiKeys", policy_admin_service_pb2.ListApiKeysRequest())
        return listed.api_keys[0].last_use_time.ToNanoseconds()

    await enters(world, made.secret)
    first = await noted()
    assert first
    clock.move(CACHE_S)
    await enters(world, made.secret)
    assert await noted() == first
    await world.database.execute("UPDATE api_keys SET last_use_time = now() - interval '2 minutes'")
    clock.move(CACHE_S)
    await enters(world, made.secret)
    assert await noted() > first


# ---------------------------------------------------------------------------------------- rotation


async def test_both_keys_work_until_the_overlap_is_over(world: World, clock: MovedClock) -> None:
    team = "orgs/acme/teams/core"
    old = await as_admin(world, "CreateApiKey", create(team=team, scopes=["agents"]))
    made = await as_admin(world, "RotateApiKey", rotation(old.api_key.name, overlap=HOUR))
    assert made.replaced.replaced_by == made.api_key.name != old.api_key.name
    assert (made.api_key.user, made.api_key.team) == (BOB, team)
    assert list(made.api_key.scopes) == ["agents"]
    assert not made.api_key.HasField("expire_time")
    assert made.replaced.HasField("expire_time")
    assert await enters(world, old.secret)
    assert await enters(world, made.secret)
    clock.reach(made.replaced.expire_time)
    clock.move(CACHE_S)
    error = error_of(await check(world, authorization=f"Bearer {old.secret}"))
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    assert await enters(world, made.secret)


async def test_without_an_overlap_the_old_key_stops_at_once(
    world: World, clock: MovedClock
) -> None:
    old = await as_admin(world, "CreateApiKey", create())
    assert await enters(world, old.secret)
    made = await as_admin(world, "RotateApiKey", rotation(old.api_key.name))
    clock.reach(made.replaced.expire_time)
    assert not await enters(world, old.secret)


async def test_a_repeated_rotation_is_the_same_and_another_is_refused(world: World) -> None:
    old = await as_admin(world, "CreateApiKey", create())
    first = await as_admin(world, "RotateApiKey", rotation(old.api_key.name, overlap=HOUR))
    again = await as_admin(world, "RotateApiKey", rotation(old.api_key.name, overlap=HOUR))
    assert again == first
    error = await refused(as_admin(world, "RotateApiKey", rotation(old.api_key.name)))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    error = await refused(as_admin(world, "RotateApiKey", rotation(old.api_key.name, "other")))
    assert error.reason == reasons.ERROR_REASON_INVALID_STATE
    assert first.api_key.name in error.message
    (entry,) = [e for e in world.audit.events.values() if e.kind == event_pb2.EVENT_KIND_ADMIN][1:]
    assert (entry.action, entry.resource) == ("keys.rotate", old.api_key.name)
    assert first.api_key.name in entry.detail_json
    assert first.secret.split("_")[2] not in entry.detail_json


async def test_an_overlap_never_prolongs_a_key(world: World, clock: MovedClock) -> None:
    end = at(clock.now() + timedelta(minutes=10))
    old = await as_admin(world, "CreateApiKey", create(expire_time=end))
    made = await as_admin(world, "RotateApiKey", rotation(old.api_key.name, overlap=HOUR))
    assert made.replaced.expire_time == old.api_key.expire_time == made.api_key.expire_time


async def test_what_cannot_be_rotated(world: World, clock: MovedClock) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    name = made.api_key.name
    await as_admin(world, "RevokeApiKey", revoke(name, "r2"))
    error = await refused(as_admin(world, "RotateApiKey", rotation(name)))
    assert error.reason == reasons.ERROR_REASON_INVALID_STATE
    for other in ("orgs/other/apiKeys/x", "orgs/acme/apiKeys/aaaaaaaaaaaaaaaa"):
        error = await refused(as_admin(world, "RotateApiKey", rotation(other)))
        assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    month = duration_pb2.Duration(seconds=31 * 86_400)
    for bad in (
        rotation("key"),
        rotation(name, ""),
        rotation(name, overlap=month),
        rotation(name, overlap=duration_pb2.Duration(seconds=-1)),
    ):
        error = await refused(as_admin(world, "RotateApiKey", bad))
        assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    fresh = await as_admin(world, "CreateApiKey", create(request_id="r3"))
    past = at(clock.now() - timedelta(hours=1))
    error = await refused(
        as_admin(world, "RotateApiKey", rotation(fresh.api_key.name, expire_time=past))
    )
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    with pytest.raises(RemitError) as caught:
        await as_admin(world, "RotateApiKey", rotation(fresh.api_key.name), roles=("member",))
    assert caught.value.reason == reasons.ERROR_REASON_PERMISSION_DENIED
