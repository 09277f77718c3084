"""PolicySetService: what is in force changes by versions that were checked, and can be undone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    permission_pb2,
    policy_admin_service_pb2,
    policy_service_pb2,
    policy_set_pb2,
    policy_set_service_pb2,
)
from remit.policy.epochs import Policies, read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.policy.world import ALICE, BOB, World

SHIPPED = read_policies(SHIPPED_POLICIES)
STOP = (
    '@id("stop") @reason("models rest") forbid (principal, action in Action::"models", resource);'
)
PolicySet = policy_set_pb2.PolicySet


def files(**more: str) -> list[policy_set_pb2.PolicyFile]:
    texts = {**SHIPPED.files, **{f"{name}.cedar": text for name, text in more.items()}}
    return [policy_set_pb2.PolicyFile(name=name, text=text) for name, text in texts.items()]


def push(**fields: Any) -> policy_set_service_pb2.PushPolicySetRequest:
    given: dict[str, Any] = {
        "files": files(stop=STOP),
        "expected_version": 1,
        "message": "models rest on sundays",
        "request_id": "r1",
    }
    return policy_set_service_pb2.PushPolicySetRequest(**given | fields)


def rollback(version: int, expected: int, request_id: str = "r9") -> Any:
    return policy_set_service_pb2.RollbackPolicySetRequest(
        version=version, expected_version=expected, request_id=request_id, message="back"
    )


async def ask(world: World, method: str, request: Any, **who: Any) -> Any:
    given = {"user": ALICE, "roles": ("admin",)} | who
    stub = world.admin() if method == "GetPolicySet" else world.policy_sets()
    with remit_token(world.client_token(**given)):
        return await getattr(stub, method)(request)


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def may_list_models(world: World) -> policy_service_pb2.CheckPermissionResponse:
    question = policy_service_pb2.CheckPermissionRequest(
        remit=world.client_token(), action="models.list", resource="models/m"
    )
    return await world.hot().CheckPermission(question)


@pytest.fixture
async def admin(world: World) -> World:
    """A world in which somebody has the key of an admin."""
    await world.admin_secret()
    return world


async def test_a_push_is_in_force_with_the_next_question_and_stays_in_the_history(
    admin: World,
) -> None:
    assert (await may_list_models(admin)).decision == permission_pb2.DECISION_ALLOW
    made = (await ask(admin, "PushPolicySet", push())).policy_set
    assert (made.version, made.origin, made.author) == (2, PolicySet.ORIGIN_PUSH, ALICE)
    assert made.policy_count == len(admin.policies.book.rules.policies)
    answer = await may_list_models(admin)
    assert answer.decision == permission_pb2.DECISION_DENY
    assert (list(answer.policy_ids), answer.policy_epoch) == (["stop"], 2)
    assert answer.reason == "forbidden: models rest"
    page = policy_set_service_pb2.ListPolicySetsRequest()
    listed = await ask(admin, "ListPolicySets", page)
    newest, first = listed.policy_sets
    assert newest == made
    assert (first.version, first.origin, first.author) == (1, PolicySet.ORIGIN_FILES, "")
    assert newest.message == "models rest on sundays"
    assert len(newest.digest) == 32


async def test_a_push_is_in_the_log_before_it_is_acknowledged(admin: World) -> None:
    made = (await ask(admin, "PushPolicySet", push())).policy_set
    event = list(admin.audit.events.values())[-1]
    assert event.kind == event_pb2.EVENT_KIND_ADMIN
    assert (event.subject, event.action) == (ALICE, "policies.push")
    assert event.resource == f"policySets/{made.digest.hex()}"
    assert json.loads(event.detail_json) == {
        "digest": made.digest.hex(),
        "expected_version": 1,
        "message": "models rest on sundays",
    }


async def test_a_repeated_push_gets_the_same_answer_and_another_body_is_refused(
    admin: World,
) -> None:
    first = await ask(admin, "PushPolicySet", push())
    again = await asyncio.gather(*(ask(admin, "PushPolicySet", push()) for _ in range(4)))
    assert all(answer == first for answer in again)
    assert await admin.sets.newest_epoch() == 2
    error = await refused(ask(admin, "PushPolicySet", push(message="else")))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_what_is_in_force_already_changes_nothing(admin: World) -> None:
    made = await ask(admin, "PushPolicySet", push(files=files()))
    assert made.policy_set.version == 1
    assert await admin.sets.newest_epoch() == 1


async def test_of_two_that_began_with_the_same_version_one_is_told(admin: World) -> None:
    pushes = [
        push(files=files(mine=STOP.replace("stop", f"s{n}")), request_id=f"r{n}") for n in range(4)
    ]
    answers = await asyncio.gather(
        *(ask(admin, "PushPolicySet", each) for each in pushes), return_exceptions=True
    )
    errors = [answer for answer in answers if isinstance(answer, RemitError)]
    assert len(errors) == 3
    assert {error.reason for error in errors} == {
        error_reason_pb2.ERROR_REASON_POLICY_VERSION_CONFLICT
    }
    assert "version 2 of the policies is in force, not 1" in errors[0].message
    assert await admin.sets.newest_epoch() == 2


OK = '@id("ok") permit (principal, action, resource);'
DEEP = f"{'!(' * 900}true{')' * 900}"
UUID = "0198a5b0-0000-7000-8000-000000000000"
BAD = [
    ("permit (principal, action, resource)", "mine.cedar:1", "does not end with `;`"),
    ('\n@id("p")\npermit (principal action, resource);', "mine.cedar:2", "does not parse"),
    (
        '@id("p") permit (principal, action == Action::"runs.fly", resource);',
        "mine.cedar:1",
        "runs.fly",
    ),
    (
        f'{OK}\n\n@id("p") permit (principal, action, resource) when {{ principal.age > 3 }};',
        "mine.cedar:3",
        "policy p",
    ),
    ("permit (principal, action, resource);", "mine.cedar:1", "needs an @id"),
    ('@id("own-org-only") permit (principal, action, resource);', "mine.cedar:1", "default.cedar:"),
    (
        f'@id("orgs/acme/grants/{UUID}") permit (principal, action, resource);',
        "mine.cedar:1",
        "the name of a grant",
    ),
    (
        f'@id("p") permit (principal, action, resource) when {{ {DEEP} }};',
        "mine.cedar:1",
        "nest deeper",
    ),
]


@pytest.mark.parametrize(("text", "where", "says"), BAD)
async def test_what_does_not_pass_is_refused_at_its_file_and_line(
    admin: World, text: str, where: str, says: str
) -> None:
    for method, request in (
        ("PushPolicySet", push(files=files(mine=text))),
        ("DiffPolicySets", policy_set_service_pb2.DiffPolicySetsRequest(files=files(mine=text))),
    ):
        error = await refused(ask(admin, method, request))
        assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_INVALID
        assert error.violations[0].field == where
        assert says in error.violations[0].description
        assert where in error.message
    assert await admin.sets.newest_epoch() == 1


LOCKOUTS = [
    {"x.cedar": '@id("nobody") forbid (principal, action == Action::"policies.push", resource);'},
    {
        "x.cedar": '@id("members") permit (principal, action, resource)'
        ' when { principal.roles.contains("member") };'
    },
    {
        "x.cedar": '@id("broken") permit (principal, action, resource);\n'
        '@id("overflows") forbid (principal, action, resource)'
        " when { 9223372036854775807 + 1 > 0 };"
    },
]


@pytest.mark.parametrize("texts", LOCKOUTS)
async def test_nobody_locks_the_last_administrator_out(
    admin: World, texts: Mapping[str, str]
) -> None:
    candidate = [policy_set_pb2.PolicyFile(name=name, text=text) for name, text in texts.items()]
    error = await refused(ask(admin, "PushPolicySet", push(files=candidate)))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_LOCKOUT
    assert "none of the 1 principals of orgs/acme" in error.message
    assert await admin.sets.newest_epoch() == 1


async def test_a_revoked_key_saves_nobody_from_a_lockout(admin: World) -> None:
    secret = await admin.admin_secret()
    revoke = policy_admin_service_pb2.RevokeApiKeyRequest(
        name=f"orgs/acme/apiKeys/{secret.split('_')[1]}", request_id="r"
    )
    with remit_token(admin.client_token(roles=("admin",))):
        await admin.admin().RevokeApiKey(revoke)
    error = await refused(ask(admin, "PushPolicySet", push()))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_LOCKOUT


async def test_only_admins_of_the_org_that_operates_the_mesh_push(admin: World) -> None:
    for who in ({"roles": ("member",)}, {"user": "orgs/other/users/eve"}):
        for method, request in (("PushPolicySet", push()), ("RollbackPolicySet", rollback(1, 1))):
            error = await refused(ask(admin, method, request, **who))
            assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    error = await refused(ask(admin, "PushPolicySet", push(), user="orgs/other/users/eve"))
    assert "orgs/acme alone" in error.message


async def test_a_rollback_is_a_new_version_with_the_old_files(admin: World) -> None:
    await ask(admin, "PushPolicySet", push())
    back = (await ask(admin, "RollbackPolicySet", rollback(1, 2))).policy_set
    assert (back.version, back.origin, back.source_version) == (3, PolicySet.ORIGIN_ROLLBACK, 1)
    assert (await may_list_models(admin)).decision == permission_pb2.DECISION_ALLOW
    assert await ask(admin, "RollbackPolicySet", rollback(1, 2)) is not None
    assert await admin.sets.newest_epoch() == 3
    error = await refused(ask(admin, "RollbackPolicySet", rollback(2, 2, "r10")))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_VERSION_CONFLICT
    error = await refused(ask(admin, "RollbackPolicySet", rollback(7, 3, "r11")))
    assert error.reason == error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND


async def test_a_rollback_that_would_lock_out_is_refused_like_a_push(admin: World) -> None:
    """Whoever has a key that works now counts, not whoever had one then."""
    only_alice = (
        '@id("only-alice") forbid (principal, action == Action::"policies.push", resource)'
        ' unless { principal == User::"orgs/acme/users/alice" };'
    )
    await ask(admin, "PushPolicySet", push(files=files(alice=only_alice)))
    await ask(admin, "PushPolicySet", push(expected_version=2, request_id="r2"))
    create = policy_admin_service_pb2.CreateApiKeyRequest(
        display_name="bob", user=BOB, roles=["admin"], request_id="k"
    )
    with remit_token(admin.client_token(roles=("admin",))):
        await admin.admin().CreateApiKey(create)
    assert (await ask(admin, "RollbackPolicySet", rollback(2, 3))).policy_set.version == 4
    await ask(admin, "PushPolicySet", push(expected_version=4, request_id="r3"))
    secret = await admin.admin_secret()
    revoke = policy_admin_service_pb2.RevokeApiKeyRequest(
        name=f"orgs/acme/apiKeys/{secret.split('_')[1]}", request_id="r"
    )
    with remit_token(admin.client_token(roles=("admin",))):
        await admin.admin().RevokeApiKey(revoke)
    error = await refused(ask(admin, "RollbackPolicySet", rollback(2, 5, "r12"), user=BOB))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_LOCKOUT


async def test_differences_are_told_by_policy(admin: World) -> None:
    changed = SHIPPED.files["default.cedar"].replace(
        "permission_class <= 3", "permission_class <= 2"
    )
    changed = changed.replace('@id("own-keys-only")', '@id("own-keys")')
    candidate = [
        policy_set_pb2.PolicyFile(name="default.cedar", text=changed),
        policy_set_pb2.PolicyFile(name="stop.cedar", text=STOP),
    ]
    request = policy_set_service_pb2.DiffPolicySetsRequest(files=candidate)
    found = await ask(admin, "DiffPolicySets", request)
    kinds = policy_set_pb2.PolicyDifference
    assert {each.policy_id: each.kind for each in found.differences} == {
        "members-call-tools": kinds.KIND_CHANGED,
        "own-keys": kinds.KIND_ADDED,
        "own-keys-only": kinds.KIND_REMOVED,
        "stop": kinds.KIND_ADDED,
    }
    by_id = {each.policy_id: each for each in found.differences}
    assert "<= 3" in by_id["members-call-tools"].before
    assert "<= 2" in by_id["members-call-tools"].after
    assert (by_id["stop"].file, by_id["stop"].line, by_id["stop"].effect) == (
        "stop.cedar",
        1,
        "forbid",
    )
    assert (found.from_version, found.to_version) == (1, 0)
    await ask(admin, "PushPolicySet", push())
    request = policy_set_service_pb2.DiffPolicySetsRequest(from_version=1)
    found = await ask(admin, "DiffPolicySets", request)
    assert [each.policy_id for each in found.differences] == ["stop"]
    assert (found.from_version, found.to_version) == (1, 2)


async def test_versions_are_shown_and_paged(admin: World) -> None:
    for number in range(1, 4):
        text = STOP.replace('"stop"', f'"s{number}"')
        request = push(files=files(mine=text), expected_version=number, request_id=f"r{number}")
        await ask(admin, "PushPolicySet", request)
    listed: list[int] = []
    token = ""
    while not listed or token:
        page = policy_set_service_pb2.ListPolicySetsRequest(page_size=3, page_token=token)
        answer = await ask(admin, "ListPolicySets", page)
        listed += [each.version for each in answer.policy_sets]
        token = answer.next_page_token
    assert listed == [4, 3, 2, 1]
    shown = await ask(
        admin, "GetPolicySet", policy_admin_service_pb2.GetPolicySetRequest(version=2)
    )
    assert (shown.policy_set.version, shown.policy_epoch) == (2, 4)
    assert '@id("s1")' in {file.name: file.text for file in shown.files}["mine.cedar"]
    missing = policy_admin_service_pb2.GetPolicySetRequest(version=9)
    error = await refused(ask(admin, "GetPolicySet", missing))
    assert error.reason == error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND


async def test_every_violation_of_a_request_is_named(admin: World) -> None:
    bad: list[tuple[str, Any, set[str]]] = [
        (
            "PushPolicySet",
            push(expected_version=0, message="a\nb", request_id=""),
            {"expected_version", "message", "request_id"},
        ),
        ("PushPolicySet", push(files=[]), {"files"}),
        ("PushPolicySet", push(files=files() * 2), {"files"}),
        ("RollbackPolicySet", rollback(0, 0, ""), {"version", "expected_version", "request_id"}),
        (
            "ListPolicySets",
            policy_set_service_pb2.ListPolicySetsRequest(page_size=-1, page_token="x"),
            {"page_size", "page_token"},
        ),
        (
            "DiffPolicySets",
            policy_set_service_pb2.DiffPolicySetsRequest(from_version=-1),
            {"from_version"},
        ),
        (
            "DiffPolicySets",
            policy_set_service_pb2.DiffPolicySetsRequest(to_version=1, files=files()),
            {"to_version"},
        ),
        ("GetPolicySet", policy_admin_service_pb2.GetPolicySetRequest(version=-1), {"version"}),
    ]
    for method, request, names in bad:
        error = await refused(ask(admin, method, request))
        assert {violation.field for violation in error.violations} == names


async def test_from_the_first_push_on_the_files_of_the_service_say_nothing(admin: World) -> None:
    await ask(admin, "PushPolicySet", push())
    reopened = await Policies.open(admin.sets, SHIPPED, admin.clock)
    assert reopened.book.epoch == 2
    assert "stop.cedar" in reopened.book.source.files


async def test_a_newer_remit_gives_what_was_pushed_its_schema(admin: World) -> None:
    await ask(admin, "PushPolicySet", push())
    newer = PolicySource(SHIPPED.files, SHIPPED.schema + '\naction "moons";\n')
    reopened = await Policies.open(admin.sets, newer, admin.clock)
    facts = (await admin.sets.in_force()).stored.facts
    assert (facts.version, facts.origin) == (3, "UPGRADE")
    assert (reopened.book.source.schema, reopened.book.epoch) == (newer.schema, 3)
    assert "stop.cedar" in reopened.book.source.files
