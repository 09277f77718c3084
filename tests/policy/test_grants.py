"""Grants: tools for one principal, readable as policies, gone when they end or are revoked."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf import timestamp_pb2

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    grant_pb2,
    grant_service_pb2,
    permission_pb2,
    policy_admin_service_pb2,
    policy_service_pb2,
    policy_set_service_pb2,
)
from remit.policy import grant_store
from remit.policy.entities import Principal, reference_to
from remit.policy.epochs import Policies
from remit.policy.facts import facts_of
from remit.policy.rule_sets import compile_policies
from remit.policy.rules import Question
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.policy.test_policy_sets import SHIPPED, files
from tests.policy.world import ALICE, BOB, MovedClock, World

EXECUTE = permission_pb2.PERMISSION_CLASS_EXECUTE
TEAM = "orgs/acme/teams/core"
OTHERS = "orgs/acme/users/carol"
CLASSES = range(permission_pb2.PERMISSION_CLASS_NONE, EXECUTE + 1)


def grant(**fields: Any) -> grant_service_pb2.GrantToolAccessRequest:
    given: dict[str, Any] = {"principal": BOB, "tool": "tools/send_email", "request_id": "r1"}
    return grant_service_pb2.GrantToolAccessRequest(**given | fields)


def at(time: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp


async def ask(world: World, method: str, request: Any, **who: Any) -> Any:
    with remit_token(world.client_token(**{"user": ALICE, "roles": ("admin",)} | who)):
        return await getattr(world.grants(), method)(request)


async def granted(world: World, **fields: Any) -> grant_pb2.ToolGrant:
    made: grant_pb2.ToolGrant = (await ask(world, "GrantToolAccess", grant(**fields))).grant
    return made


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def call_tool(
    world: World,
    user: str = BOB,
    tool: str = "tools/send_email",
    permission_class: int = EXECUTE,
    team: str = "",
    arguments: dict[str, str] | None = None,
) -> policy_service_pb2.CheckPermissionResponse:
    request = policy_service_pb2.CheckPermissionRequest(
        remit=world.client_token(user, team=team),
        action="tools.call",
        resource=tool,
        permission_class=permission_pb2.PermissionClass.ValueType(permission_class),
        arguments_digest=bytes(32),
    )
    request.arguments.update(arguments or {})
    return await world.hot().CheckPermission(request)


def is_allowed(answer: policy_service_pb2.CheckPermissionResponse) -> bool:
    return answer.decision == permission_pb2.DECISION_ALLOW


async def test_a_grant_permits_one_tool_to_one_user_with_the_next_question(world: World) -> None:
    assert not is_allowed(await call_tool(world))
    made = await granted(world)
    answer = await call_tool(world)
    assert is_allowed(answer)
    assert list(answer.policy_ids) == [made.name]
    assert answer.policy_epoch == made.policy_epoch == 2
    assert answer.reason == f"permitted: {ALICE} granted tools/send_email to {BOB}"
    assert answer.valid_for.seconds == 10
    assert not is_allowed(await call_tool(world, tool="tools/execute_command"))
    assert not is_allowed(await call_tool(world, user=OTHERS))


async def test_a_grant_is_a_policy_that_a_person_can_read(world: World, clock: MovedClock) -> None:
    end = clock.now() + timedelta(hours=1)
    made = await granted(world, expire_time=at(end))
    assert f'principal == User::"{BOB}"' in made.policy
    assert 'resource == Tool::"tools/send_email"' in made.policy
    assert f'@id("{made.name}")' in made.policy
    assert "when { context.now < datetime(" in made.policy
    for text in (
        made.policy,
        (await granted(world, principal=TEAM, request_id="r2")).policy,
        (await granted(world, principal="agents/clerk", request_id="r3")).policy,
        (await granted(world, tool="", permission_class=EXECUTE, request_id="r4")).policy,
    ):
        own = text.replace("orgs/acme/grants/", "grant-")
        source = SHIPPED.__class__({"grant.cedar": own}, SHIPPED.schema)
        assert len(compile_policies(source).policies) == 1


async def test_an_expired_grant_permits_nothing_though_nobody_revoked_it(
    world: World, clock: MovedClock
) -> None:
    await granted(world, expire_time=at(clock.now() + timedelta(seconds=4)))
    answer = await call_tool(world)
    assert is_allowed(answer)
    assert 3 <= answer.valid_for.seconds <= 4, "no longer than the grant"
    clock.move(3.999)
    assert is_allowed(await call_tool(world))
    clock.move(0.001)
    answer = await call_tool(world)
    assert not is_allowed(answer)
    assert answer.policy_epoch == 2, "time alone ends it"


async def test_a_revoked_grant_permits_nothing_from_the_next_question_on(world: World) -> None:
    made = await granted(world)
    revoke = grant_service_pb2.RevokeToolAccessRequest(name=made.name, request_id="r2")
    gone = (await ask(world, "RevokeToolAccess", revoke)).grant
    assert gone.HasField("revoke_time")
    answer = await call_tool(world)
    assert not is_allowed(answer)
    assert answer.policy_epoch == 3
    again = grant_service_pb2.RevokeToolAccessRequest(name=made.name, request_id="r3")
    assert (await ask(world, "RevokeToolAccess", again)).grant == gone
    assert await world.sets.newest_epoch() == 3


async def test_a_team_and_an_agent_are_granted_tools(world: World) -> None:
    await granted(world, principal=TEAM)
    assert is_allowed(await call_tool(world, team=TEAM))
    assert is_allowed(await call_tool(world, user=OTHERS, team=TEAM))
    assert not is_allowed(await call_tool(world))
    assert not is_allowed(await call_tool(world, team="orgs/acme/teams/other"))
    made = await granted(world, principal="agents/clerk", tool="tools/x", request_id="r2")
    book = await world.policies.newest()
    call = {"arguments_digest": "", "facts": facts_of({}).to_cedar()}
    for agent, org, allowed in (
        ("agents/clerk", "orgs/acme", True),
        ("agents/other", "orgs/acme", False),
        ("agents/clerk", "orgs/other", False),
    ):
        who = Principal(f"{org}/users/bob", org, "", ("member",))
        context = {"tool_call": call, "agent": reference_to(agent)}
        decision = book.decide(Question(who, "tools.call", "tools/x", EXECUTE, context))
        assert decision.allow is allowed
        assert decision.policy_ids == ((made.name,) if allowed else ())


@pytest.mark.parametrize("permission_class", CLASSES)
async def test_a_class_permits_what_is_not_above_it(world: World, permission_class: int) -> None:
    stranger = ("stranger",)
    await granted(world, tool="", permission_class=permission_class)
    for asked in CLASSES:
        request = policy_service_pb2.CheckPermissionRequest(
            remit=world.client_token(BOB, roles=stranger),
            action="tools.call",
            resource="tools/any",
            permission_class=permission_pb2.PermissionClass.ValueType(asked),
            arguments_digest=bytes(32),
        )
        answer = await world.hot().CheckPermission(request)
        assert is_allowed(answer) == (asked <= permission_class)


@pytest.mark.parametrize("permission_class", CLASSES)
async def test_without_a_grant_members_call_up_to_write_and_strangers_nothing(
    world: World, permission_class: int
) -> None:
    answer = await call_tool(world, permission_class=permission_class)
    assert is_allowed(answer) == (permission_class <= permission_pb2.PERMISSION_CLASS_WRITE)


async def test_a_tool_without_a_class_is_refused_whatever_was_granted(world: World) -> None:
    await granted(world, tool="", permission_class=EXECUTE)
    error = await refused(call_tool(world, permission_class=0))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    assert not is_allowed(await call_tool(world, tool="planets/mars"))


async def test_a_forbid_wins_over_a_grant(world: World) -> None:
    await granted(world)
    answer = await call_tool(world, arguments={"path": "../../etc/passwd"})
    assert not is_allowed(answer)
    assert list(answer.policy_ids) == ["paths-stay-below-their-root"]


async def test_a_policy_that_fails_denies_what_a_grant_permits(world: World) -> None:
    await world.admin_secret()
    await granted(world)
    broken = (
        '@id("overflows") forbid (principal, action == Action::"tools.call", resource is Tool)'
        " when { resource.permission_class * 9223372036854775807 > 0 };"
    )
    push = policy_set_service_pb2.PushPolicySetRequest(
        files=files(broken=broken), expected_version=1, request_id="p"
    )
    with remit_token(world.client_token(roles=("admin",))):
        await world.policy_sets().PushPolicySet(push)
    assert not is_allowed(await call_tool(world))


async def test_grants_and_policies_share_the_epoch_and_a_push_needs_no_new_version(
    world: World,
) -> None:
    """Who changes policies does not collide with who grants a tool meanwhile."""
    await world.admin_secret()
    before = world.policies.book.rules
    await granted(world)
    assert world.policies.book.rules is before, "nothing was parsed again"
    push = policy_set_service_pb2.PushPolicySetRequest(
        files=files(x='@id("x") permit (principal, action == Action::"runs.create", resource);'),
        expected_version=1,
        request_id="p",
    )
    with remit_token(world.client_token(roles=("admin",))):
        made = await world.policy_sets().PushPolicySet(push)
        shown = await world.admin().GetPolicySet(policy_admin_service_pb2.GetPolicySetRequest())
    assert made.policy_set.version == shown.policy_epoch == 3
    assert is_allowed(await call_tool(world))


async def test_another_replica_follows_with_its_next_question(world: World) -> None:
    other = await Policies.open(world.sets, SHIPPED, world.clock)
    made = await granted(world)
    book = await other.at_least(made.policy_epoch)
    who = Principal(BOB, "orgs/acme", "", ("member",))
    context = {"tool_call": {"arguments_digest": "", "facts": facts_of({}).to_cedar()}}
    question = Question(who, "tools.call", "tools/send_email", EXECUTE, context)
    assert book.decide(question).policy_ids == (made.name,)


async def test_a_grant_is_recorded_and_repeated_requests_make_one(world: World) -> None:
    made = await asyncio.gather(*(granted(world) for _ in range(4)))
    assert len({each.name for each in made}) == 1
    (event,) = world.audit.events.values()
    assert (event.action, event.resource, event.subject) == ("grants.create", BOB, ALICE)
    assert json.loads(event.detail_json)["tool"] == "tools/send_email"
    error = await refused(granted(world, tool="tools/other"))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_only_admins_grant_and_only_in_their_own_org(world: World) -> None:
    made = await granted(world)
    revoke = grant_service_pb2.RevokeToolAccessRequest(name=made.name, request_id="r2")
    listing = grant_service_pb2.ListToolGrantsRequest()
    for method, request in (
        ("GrantToolAccess", grant(request_id="r3")),
        ("RevokeToolAccess", revoke),
        ("ListToolGrants", listing),
    ):
        error = await refused(ask(world, method, request, roles=("member",)))
        assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    eve = "orgs/other/users/eve"
    error = await refused(ask(world, "RevokeToolAccess", revoke, user=eve))
    assert error.reason == error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND
    assert not (await ask(world, "ListToolGrants", listing, user=eve)).grants
    error = await refused(ask(world, "GrantToolAccess", grant(request_id="r4"), user=eve))
    assert [violation.field for violation in error.violations] == ["principal"]


async def test_grants_are_listed_in_pages_and_by_principal(world: World) -> None:
    made = [await granted(world, tool=f"tools/t{n}", request_id=f"r{n}") for n in range(4)]
    await granted(world, principal=TEAM, request_id="r9")
    listed: list[str] = []
    token = ""
    while not listed or token:
        request = grant_service_pb2.ListToolGrantsRequest(
            page_size=3, page_token=token, principal=BOB
        )
        page = await ask(world, "ListToolGrants", request)
        listed += [each.name for each in page.grants]
        token = page.next_page_token
    assert listed == [each.name for each in reversed(made)]
    everything = await ask(world, "ListToolGrants", grant_service_pb2.ListToolGrantsRequest())
    assert len(everything.grants) == 5


async def test_a_principal_has_a_bounded_number_of_grants(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_store, "MOST_OF_PRINCIPAL", 1)
    await granted(world)
    error = await refused(granted(world, request_id="r2"))
    assert "has 1 grants already" in error.violations[0].description


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"principal": "orgs/other/users/bob"}, {"principal"}),
    ({"principal": 'agents/x" }'}, {"principal"}),
    ({"principal": "tools/x"}, {"principal"}),
    ({"tool": 'tools/x"'}, {"tool"}),
    ({"tool": ""}, {"tool"}),
    ({"permission_class": EXECUTE}, {"tool"}),
    ({"tool": "", "permission_class": 9}, {"permission_class"}),
    ({"request_id": ""}, {"request_id"}),
    ({"expire_time": timestamp_pb2.Timestamp(seconds=1)}, {"expire_time"}),
    ({"expire_time": timestamp_pb2.Timestamp(seconds=2**61)}, {"expire_time"}),
]


@pytest.mark.parametrize(("fields", "names"), BAD)
async def test_every_violation_of_a_grant_is_named(
    world: World, fields: dict[str, Any], names: set[str]
) -> None:
    error = await refused(granted(world, **fields))
    assert {violation.field for violation in error.violations} == names
    assert await world.sets.newest_epoch() == 1
