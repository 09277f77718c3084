"""PolicyAdminService: keys within one's own org, recorded before they are acknowledged."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import timestamp_pb2

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import policy_admin_service_pb2
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.policy.world import ALICE, BOB, MovedClock, World
from tests.waiting import eventually


def create(**fields: Any) -> policy_admin_service_pb2.CreateApiKeyRequest:
    given: dict[str, Any] = {
        "display_name": "laptop",
        "user": BOB,
        "roles": ["member"],
        "request_id": "r1",
    }
    return policy_admin_service_pb2.CreateApiKeyRequest(**given | fields)


def revoke(name: str, request_id: str = "r1") -> policy_admin_service_pb2.RevokeApiKeyRequest:
    return policy_admin_service_pb2.RevokeApiKeyRequest(name=name, request_id=request_id)


def at(time: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp


async def as_admin(world: World, method: str, request: Any, **who: Any) -> Any:
    given = {"user": ALICE, "roles": ("admin",)} | who
    with remit_token(world.client_token(**given)):
        return await getattr(world.admin(), method)(request)


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def test_a_new_key_authenticates_as_its_user(world: World) -> None:
    team = "orgs/acme/teams/core"
    made = await as_admin(world, "CreateApiKey", create(team=team))
    session = await world.credentials.session(made.secret)
    assert (session.principal.user, session.principal.team) == (BOB, team)
    assert made.api_key.name == f"orgs/acme/apiKeys/{made.secret.split('_')[1]}"
    assert list(made.api_key.roles) == ["member"]


async def test_the_secret_is_nowhere_in_the_database(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    secret = made.secret.split("_")[2]
    for table in ("api_keys", "admin_requests", "principals"):
        rows = await world.database.fetch(f"SELECT t::text AS row FROM {table} t")  # noqa: S608
        assert rows
        assert not any(secret in row["row"] for row in rows)
    assert not any(secret in str(event) for event in world.audit.events.values())


async def test_a_repeated_request_gets_the_same_key_and_secret_once_recorded(
    world: World,
) -> None:
    first = await as_admin(world, "CreateApiKey", create())
    again = await as_admin(world, "CreateApiKey", create())
    assert again == first
    assert len(world.audit.events) == 1
    assert await world.database.fetchval("SELECT count(*) FROM api_keys") == 1


async def test_the_same_request_id_for_another_body_is_refused(world: World) -> None:
    await as_admin(world, "CreateApiKey", create())
    error = await refused(as_admin(world, "CreateApiKey", create(display_name="desk")))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_another_admin_with_the_same_request_gets_a_key_of_their_own(world: World) -> None:
    first = await as_admin(world, "CreateApiKey", create())
    other = await as_admin(world, "CreateApiKey", create(), user="orgs/acme/users/carol")
    assert other.secret != first.secret


async def test_many_repetitions_at_once_make_one_key(world: World) -> None:
    made = await asyncio.gather(*(as_admin(world, "CreateApiKey", create()) for _ in range(8)))
    assert len({answer.secret for answer in made}) == 1
    assert await world.database.fetchval("SELECT count(*) FROM api_keys") == 1


BAD_KEYS: list[tuple[dict[str, Any], set[str]]] = [
    ({"display_name": ""}, {"display_name"}),
    ({"display_name": "x" * 101}, {"display_name"}),
    ({"user": "orgs/other/users/bob"}, {"user"}),
    ({"user": "bob"}, {"user"}),
    ({"team": "orgs/other/teams/t"}, {"team"}),
    ({"roles": []}, {"roles"}),
    ({"roles": ["root"]}, {"roles"}),
    ({"request_id": ""}, {"request_id"}),
    ({"request_id": "x" * 65}, {"request_id"}),
    ({"user": "", "roles": [], "request_id": "a\nb"}, {"user", "roles", "request_id"}),
]


async def test_every_violation_of_a_new_key_is_named(world: World) -> None:
    for fields, names in BAD_KEYS:
        error = await refused(as_admin(world, "CreateApiKey", create(**fields)))
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
        assert {violation.field for violation in error.violations} == names


async def test_a_key_cannot_be_born_expired_but_its_request_may_be_repeated_later(
    world: World, clock: MovedClock
) -> None:
    past = create(expire_time=at(clock.now() - timedelta(seconds=1)))
    error = await refused(as_admin(world, "CreateApiKey", past))
    assert [violation.field for violation in error.violations] == ["expire_time"]
    soon = create(expire_time=at(clock.now() + timedelta(minutes=5)))
    made = await as_admin(world, "CreateApiKey", soon)
    clock.move(600)
    assert (await as_admin(world, "CreateApiKey", soon)).secret == made.secret
    expired = await refused(world.credentials.session(made.secret))
    assert expired.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID
    assert made.api_key.expire_time.ToDatetime(UTC) > made.api_key.create_time.ToDatetime(UTC)


@pytest.mark.parametrize("roles", [("member",), ()])
async def test_only_admins_administer_even_past_the_edge(
    world: World, roles: tuple[str, ...]
) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    for method, request in (
        ("CreateApiKey", create(request_id="r2")),
        ("ListApiKeys", policy_admin_service_pb2.ListApiKeysRequest()),
        ("RevokeApiKey", revoke(made.api_key.name)),
        ("GetPolicySet", policy_admin_service_pb2.GetPolicySetRequest()),
    ):
        error = await refused(as_admin(world, method, request, roles=roles))
        assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


async def test_nobody_gives_away_a_role_that_they_lack(world: World) -> None:
    from remit.policy.epochs import Policies  # noqa: PLC0415 - only here
    from remit.policy.rule_sets import PolicySource  # noqa: PLC0415

    source = world.policies.book.source
    generous = '@id("all") permit(principal, action == Action::"keys.create", resource);'
    await Policies.open(
        world.sets, PolicySource({**source.files, "x.cedar": generous}, source.schema), world.clock
    )
    member = {"user": BOB, "roles": ("member",)}
    await as_admin(world, "CreateApiKey", create(), **member)
    request = create(roles=["admin"], request_id="r2")
    error = await refused(as_admin(world, "CreateApiKey", request, **member))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


async def test_a_revoked_key_stops_here_at_once_and_stays_revoked(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    await world.credentials.session(made.secret)
    answer = await as_admin(world, "RevokeApiKey", revoke(made.api_key.name, "r2"))
    assert answer.api_key.HasField("revoke_time")
    error = await refused(world.credentials.session(made.secret))
    assert error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED
    again = await as_admin(world, "RevokeApiKey", revoke(made.api_key.name, "r3"))
    assert again.api_key.revoke_time == answer.api_key.revoke_time
    assert await as_admin(world, "CreateApiKey", create()) == made


async def test_a_key_that_is_not_there_or_anothers_does_not_exist(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    foreign = {"user": "orgs/other/users/eve"}
    for name, who in (
        ("orgs/acme/apiKeys/aaaaaaaaaaaaaaaa", {}),
        (made.api_key.name, foreign),
        (made.api_key.name.replace("acme", "other"), foreign),
    ):
        error = await refused(as_admin(world, "RevokeApiKey", revoke(name, "r9"), **who))
        assert error.reason == error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND
    assert await world.database.fetchval("SELECT count(*) FROM api_keys WHERE revoke_time IS NULL")
    error = await refused(as_admin(world, "RevokeApiKey", revoke("key", "r9")))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


async def test_the_same_revocation_id_for_another_key_is_refused(world: World) -> None:
    one = await as_admin(world, "CreateApiKey", create())
    two = await as_admin(world, "CreateApiKey", create(request_id="r2"))
    await as_admin(world, "RevokeApiKey", revoke(one.api_key.name, "r3"))
    error = await refused(as_admin(world, "RevokeApiKey", revoke(two.api_key.name, "r3")))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    await world.credentials.session(two.secret)


async def test_keys_are_listed_in_pages_newest_first_and_only_ones_own(world: World) -> None:
    made = [
        (await as_admin(world, "CreateApiKey", create(request_id=f"r{n}"))).api_key.name
        for n in range(5)
    ]
    await as_admin(
        world,
        "CreateApiKey",
        create(user="orgs/other/users/eve"),
        user="orgs/other/users/eve",
    )
    listed: list[str] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        request = policy_admin_service_pb2.ListApiKeysRequest(page_size=2, page_token=token)
        page = await as_admin(world, "ListApiKeys", request)
        assert len(page.api_keys) <= 2
        listed += [key.name for key in page.api_keys]
        token = page.next_page_token
        pages += 1
    assert listed == made[::-1]
    assert pages == 3


@pytest.mark.parametrize(
    ("fields", "names"),
    [({"page_size": -1}, {"page_size"}), ({"page_token": "'; DROP"}, {"page_token"})],
)
async def test_a_bad_page_is_refused(world: World, fields: dict[str, Any], names: set[str]) -> None:
    request = policy_admin_service_pb2.ListApiKeysRequest(**fields)
    error = await refused(as_admin(world, "ListApiKeys", request))
    assert {violation.field for violation in error.violations} == names


async def test_the_policies_in_force_are_shown_with_their_schema(world: World) -> None:
    request = policy_admin_service_pb2.GetPolicySetRequest()
    shown = await as_admin(world, "GetPolicySet", request)
    assert '@id("own-org-only")' in shown.policies
    assert "// default.cedar" in shown.policies
    assert 'action "runs.create"' in shown.schema
    assert shown.policy_epoch == 1


async def test_a_change_is_in_the_log_before_it_is_acknowledged(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    (event,) = world.audit.events.values()
    assert event.kind == event_pb2.EVENT_KIND_ADMIN
    assert (event.org, event.subject, event.action) == ("orgs/acme", ALICE, "keys.create")
    assert event.resource == made.api_key.name
    assert json.loads(event.detail_json)["user"] == BOB
    assert event.outcome == event_pb2.OUTCOME_SUCCEEDED
    assert len(event.trace_id) == 32


async def test_without_the_log_nothing_is_acknowledged_and_nothing_is_lost(world: World) -> None:
    world.audit.away = True
    error = await refused(as_admin(world, "CreateApiKey", create()))
    assert error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    sweep = asyncio.create_task(world.recorder.run())
    try:
        world.audit.away = False
        await eventually(lambda: world.audit.events)
    finally:
        sweep.cancel()
    made = await as_admin(world, "CreateApiKey", create())
    assert made.secret
    assert len(world.audit.events) == 1
    await eventually(lambda: all_recorded(world))


async def test_a_revocation_holds_even_while_the_log_is_away(world: World) -> None:
    made = await as_admin(world, "CreateApiKey", create())
    await world.credentials.session(made.secret)
    world.audit.away = True
    await refused(as_admin(world, "RevokeApiKey", revoke(made.api_key.name, "r2")))
    error = await refused(world.credentials.session(made.secret))
    assert error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED


async def all_recorded(world: World) -> bool:
    unrecorded = "SELECT count(*) FROM admin_requests WHERE record_time IS NULL"
    return not int(await world.database.fetchval(unrecorded))
