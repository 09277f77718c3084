"""RateLimitService: limits within one's own org, recorded, and in force within a bound."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from google.protobuf import duration_pb2

from remit import names
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2
from remit.api.policy.v1 import rate_limit_service_pb2 as messages
from remit.policy.entities import Principal
from remit.policy.epochs import read_policies
from remit.policy.ext_authz import admitted
from remit.policy.limit_book import meters_of
from remit.policy.limits import Limit
from remit.policy.rule_sets import PolicySource, compile_policies
from remit.policy.rules import Question, RuleBook
from remit.policy.schema import SHIPPED_POLICIES
from remit.postgres import Database
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from scripts.protos import ROOT
from tests.policy.world import ALICE, BOB, CACHE_S, ORG, MovedClock, World


def wanted(principal: str = ALICE, **fields: Any) -> messages.SetRateLimitRequest:
    given: dict[str, Any] = {"max_runs": 3, "request_id": "r1"} | fields
    return messages.SetRateLimitRequest(principal=principal, **given)


def seconds(window_s: int, nanos: int = 0) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=window_s, nanos=nanos)


async def as_admin(world: World, method: str, request: Any, **who: Any) -> Any:
    with remit_token(world.client_token(**({"user": ALICE, "roles": ("admin",)} | who))):
        return await getattr(world.limiting(), method)(request)


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def limits_at_the_edge(world: World, secret: str) -> dict[str, Limit]:
    """What the edge is told of a key, and so what its calls count against."""
    answer = admitted(await world.credentials.session(secret), "runs.create")
    meters = meters_of({key: str(value) for key, value in answer.dynamic_metadata.items()})
    return {meter.principal: meter.limit for meter in meters}


async def test_a_limit_replaces_the_default_until_it_is_deleted(world: World) -> None:
    secret = await world.admin_secret()
    assert await limits_at_the_edge(world, secret) == {ALICE: Limit(10, 60)}
    made = await as_admin(world, "SetRateLimit", wanted(window=seconds(30)))
    assert (made.rate_limit.max_runs, made.rate_limit.window.seconds) == (3, 30)
    assert await limits_at_the_edge(world, secret) == {ALICE: Limit(3, 30)}
    key = (await world.credentials.session(secret)).holder.key
    await as_admin(world, "SetRateLimit", wanted(key, max_runs=2, request_id="r2"))
    await as_admin(world, "SetRateLimit", wanted(ORG, max_runs=100, request_id="r3"))
    await as_admin(world, "SetRateLimit", wanted(BOB, max_runs=1, request_id="r4"))
    expected = {ALICE: Limit(3, 30), key: Limit(2, 60), ORG: Limit(100, 60)}
    assert await limits_at_the_edge(world, secret) == expected
    deleted = await as_admin(
        world, "DeleteRateLimit", messages.DeleteRateLimitRequest(principal=ALICE, request_id="r5")
    )
    assert deleted.rate_limit == made.rate_limit
    assert (await limits_at_the_edge(world, secret))[ALICE] == Limit(10, 60)


async def test_no_limit_is_a_limit_of_its_own_kind(world: World) -> None:
    secret = await world.admin_secret()
    made = await as_admin(world, "SetRateLimit", wanted(max_runs=0))
    assert not made.rate_limit.HasField("window")
    assert await limits_at_the_edge(world, secret) == {}


async def test_a_change_reaches_another_replica_within_its_caches_time(
    policy_database: Database, clock: MovedClock
) -> None:
    here, there = [await World.open(policy_database, clock) for _ in range(2)]
    secret = await here.admin_secret()
    assert await limits_at_the_edge(there, secret) == {ALICE: Limit(10, 60)}
    await as_admin(here, "SetRateLimit", wanted())
    assert await limits_at_the_edge(here, secret) == {ALICE: Limit(3, 60)}
    clock.move(CACHE_S)
    assert await limits_at_the_edge(there, secret) == {ALICE: Limit(3, 60)}


async def test_a_repeated_request_changes_nothing_and_another_body_is_refused(
    world: World,
) -> None:
    made = await as_admin(world, "SetRateLimit", wanted())
    assert await as_admin(world, "SetRateLimit", wanted()) == made
    error = await refused(as_admin(world, "SetRateLimit", wanted(max_runs=4)))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    error = await refused(as_admin(world, "SetRateLimit", wanted(BOB)))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    again = await as_admin(world, "SetRateLimit", wanted(max_runs=4, request_id="r2"))
    assert again.rate_limit.create_time == made.rate_limit.create_time
    assert (
        again.rate_limit.update_time.ToNanoseconds() > made.rate_limit.update_time.ToNanoseconds()
    )


async def test_changes_are_in_the_log_before_they_are_acknowledged(world: World) -> None:
    await as_admin(world, "SetRateLimit", wanted(window=seconds(30)))
    (event,) = world.audit.events.values()
    assert (event.action, event.resource, event.subject) == ("limits.set", ALICE, ALICE)
    world.audit.away = True
    gone = messages.DeleteRateLimitRequest(principal=ALICE, request_id="r2")
    error = await refused(as_admin(world, "DeleteRateLimit", gone))
    assert error.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    world.audit.away = False
    await as_admin(world, "DeleteRateLimit", gone)
    assert [e.action for e in world.audit.events.values()] == ["limits.set", "limits.delete"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"principal": "orgs/other/users/bob"}, "principal"),
        ({"principal": "orgs/other"}, "principal"),
        ({"principal": "orgs/acme/teams/core"}, "principal"),
        ({"principal": "alice"}, "principal"),
        ({"principal": ""}, "principal"),
        ({"max_runs": -1}, "max_runs"),
        ({"max_runs": 10_001}, "max_runs"),
        ({"window": seconds(0)}, "window"),
        ({"window": seconds(86_401)}, "window"),
        ({"window": seconds(1, 5)}, "window"),
        ({"request_id": ""}, "request_id"),
        ({"max_unfinished_runs": -1}, "max_unfinished_runs"),
        ({"max_unfinished_runs": 10_001}, "max_unfinished_runs"),
        ({"principal": f"{ORG}/apiKeys/k", "max_unfinished_runs": 1}, "max_unfinished_runs"),
    ],
)
async def test_what_is_wrong_is_named(world: World, fields: dict[str, Any], named: str) -> None:
    given = {"principal": ALICE} | fields
    error = await refused(as_admin(world, "SetRateLimit", wanted(**given)))
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert [violation.field for violation in error.violations] == [named]


async def test_only_administrators_of_the_org(world: World) -> None:
    await as_admin(world, "SetRateLimit", wanted())
    for method, request in (
        ("SetRateLimit", wanted(max_runs=0, request_id="r2")),
        ("DeleteRateLimit", messages.DeleteRateLimitRequest(principal=ALICE, request_id="r3")),
        ("ListRateLimits", messages.ListRateLimitsRequest()),
    ):
        error = await refused(as_admin(world, method, request, roles=("member",)))
        assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    stranger = {"user": "orgs/other/users/eve"}
    listed = await as_admin(world, "ListRateLimits", messages.ListRateLimitsRequest(), **stranger)
    assert not listed.rate_limits
    error = await refused(as_admin(world, "SetRateLimit", wanted(request_id="r4"), **stranger))
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_what_is_not_set_cannot_be_deleted(world: World) -> None:
    gone = messages.DeleteRateLimitRequest(principal=ALICE, request_id="r1")
    error = await refused(as_admin(world, "DeleteRateLimit", gone))
    assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND


async def test_limits_are_listed_page_by_page(world: World) -> None:
    for number in range(5):
        name = f"{ORG}/users/u{number}"
        await as_admin(world, "SetRateLimit", wanted(name, request_id=f"r{number}"))
    found: list[str] = []
    token = ""
    while True:
        page = await as_admin(
            world, "ListRateLimits", messages.ListRateLimitsRequest(page_size=2, page_token=token)
        )
        found += [limit.principal for limit in page.rate_limits]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"{ORG}/users/u{number}" for number in range(5)]
    for wrong in ({"page_token": "orgs/other"}, {"page_size": -1}):
        error = await refused(
            as_admin(world, "ListRateLimits", messages.ListRateLimitsRequest(**wrong))
        )
        assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_what_an_event_says(world: World) -> None:
    await as_admin(world, "SetRateLimit", wanted(window=seconds(30)))
    rows = await world.database.fetch("SELECT detail FROM admin_requests")
    assert json.loads(rows[0]["detail"]) == {
        "max_runs": 3,
        "window_s": 30,
        "max_unfinished_runs": 0,
    }


def test_a_policy_can_keep_an_orgs_own_limit_from_its_administrators() -> None:
    """As docs/DEPLOYMENT.md says."""
    source = read_policies(SHIPPED_POLICIES)
    own = '@id("own-limit") forbid (principal, action in [Action::"limits"], resource is Org);'
    rules = compile_policies(PolicySource({**source.files, "own.cedar": own}, source.schema))
    book = RuleBook(rules, 1)
    admin = Principal(ALICE, ORG, "", ("admin",))
    assert not book.decide(Question(admin, "limits.set", ORG)).allow
    assert book.decide(Question(admin, "limits.set", BOB)).allow
    assert own in (ROOT / "docs/DEPLOYMENT.md").read_text("utf-8")


async def test_a_new_run_is_told_how_many_its_user_and_org_may_have(world: World) -> None:
    async def told(run: str) -> tuple[int, int]:
        answer = await world.hot(options_pb2.CALLER_AGENT).IssueRemit(
            policy_service_pb2.IssueRemitRequest(
                run=run,
                fencing_token=1,
                client_remit=world.client_token(),
                agent="agents/assistant",
            )
        )
        return answer.max_user_runs, answer.max_org_runs

    runs = [names.run_name(str(uuid.uuid4())) for _ in range(2)]
    assert await told(runs[0]) == (0, 0)
    await as_admin(world, "SetRateLimit", wanted(max_unfinished_runs=4))
    await as_admin(world, "SetRateLimit", wanted(ORG, max_unfinished_runs=9, request_id="r2"))
    assert await told(runs[1]) == (4, 9)
    assert await told(runs[1]) == (4, 9), "asked again, it is told again"
