"""PolicyService over the mesh: decisions, remits of runs, fences and keys."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from typing import Any

import pytest
from google.protobuf import struct_pb2
from structlog.testing import capture_logs

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.api.policy.v1 import permission_pb2, policy_service_pb2
from remit.policy.entities import Principal
from remit.policy.epochs import Policies
from remit.policy.rule_sets import PolicySource
from remit.policy.service import MAX_BATCH
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained
from tests.policy.world import ALICE, LIFETIME_S, MovedClock, World

ALLOW, DENY = permission_pb2.DECISION_ALLOW, permission_pb2.DECISION_DENY
READ = permission_pb2.PERMISSION_CLASS_READ
EXECUTE = permission_pb2.PERMISSION_CLASS_EXECUTE
CLAIM = "claims/01980000-0000-7000-8000-000000000009"
AGENT, TOOLS, INFERENCE = (
    options_pb2.CALLER_AGENT,
    options_pb2.CALLER_TOOLS,
    options_pb2.CALLER_INFERENCE,
)


def new_run() -> str:
    return f"runs/{uuid.uuid4()}"


def check(remit: str, **fields: Any) -> policy_service_pb2.CheckPermissionRequest:
    arguments = struct_pb2.Struct()
    arguments.update(fields.pop("arguments", {}))
    given: dict[str, Any] = {
        "remit": remit,
        "action": "tools.call",
        "resource": "tools/calculator",
        "permission_class": READ,
        "arguments": arguments,
        "arguments_digest": hashlib.sha256(b"").digest(),
        "claim": CLAIM,
        "attempt": 1,
    }
    return policy_service_pb2.CheckPermissionRequest(**given | fields)


async def issue(
    world: World, run: str, token: int = 1, client: str | None = None, **fields: Any
) -> str:
    given: dict[str, Any] = {
        "agent": "agents/assistant",
        "tools": ["tools/calculator"],
        "models": ["models/rules"],
    }
    request = policy_service_pb2.IssueRemitRequest(
        run=run,
        fencing_token=token,
        client_remit=world.client_token() if client is None else client,
        **given | fields,
    )
    return (await world.hot(AGENT).IssueRemit(request)).remit


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


# ------------------------------------------------------------------------------------- decisions


async def test_a_run_may_call_the_tools_that_it_was_given(world: World) -> None:
    remit = await issue(world, new_run())
    answer = await world.hot().CheckPermission(check(remit))
    assert answer.decision == ALLOW
    assert answer.decision_id == "decisions/01980000-0000-7000-8000-000000000009-1"
    assert list(answer.policy_ids) == ["members-call-tools"]
    assert answer.policy_epoch == 1
    assert answer.valid_for.ToSeconds() == 10
    again = await world.hot().CheckPermission(check(remit, attempt=2))
    assert again.decision_id.endswith("-2")


DENIED: list[tuple[dict[str, Any], str]] = [
    ({"resource": "tools/send_email"}, "does not name tools/send_email"),
    ({"resource": "models/gpt", "action": "models.generate"}, "does not name models/gpt"),
    ({"permission_class": EXECUTE}, "no policy permits tools.call"),
    ({"arguments": {"path": "../etc/passwd"}}, "climbs above its root"),
    ({"action": "tools.destroy"}, "could not be evaluated"),
    ({"action": "keys.create", "resource": "orgs/acme"}, "no policy permits keys.create"),
    ({"action": "runs.read", "resource": "orgs/other"}, "another org"),
    ({"action": "runs.read", "resource": "planets/mars"}, "not the name of anything"),
]


async def test_a_denial_is_an_answer_with_its_reason(world: World) -> None:
    remit = await issue(world, new_run())
    for fields, reason in DENIED:
        answer = await world.hot().CheckPermission(check(remit, **fields))
        assert (fields, answer.decision) == (fields, DENY)
        assert reason in answer.reason
        assert answer.valid_for.ToNanoseconds() == 0


BROKEN = """
    @id("overflows") forbid (principal, action, resource)
    when { resource is Tool && resource.permission_class * 9223372036854775807 > 0 };
    @id("overflows-early") forbid (principal, action == Action::"agents.run", resource)
    when { 9223372036854775807 + 1 > 0 };
"""
"""Policies that the schema admits and that fail when they are asked."""


async def break_policies(world: World) -> None:
    source = world.policies.book.source
    await Policies.open(
        world.sets,
        PolicySource({**source.files, "broken.cedar": BROKEN}, source.schema),
        world.clock,
    )


async def test_what_could_not_be_decided_is_no_denial_in_metrics_and_named_in_the_log(
    world: World,
) -> None:
    remit = await issue(world, new_run())
    await break_policies(world)
    denied = gained("remit_policy_decisions_total", kind="tool", decision="DENY")
    undecided = gained("remit_policy_decisions_total", kind="tool", decision="UNDECIDED")
    questions = [check(remit, permission_class=EXECUTE)] * 2
    with capture_logs() as logs:
        await world.hot().CheckPermission(questions[0])
        await world.hot().BatchCheckPermissions(
            policy_service_pb2.BatchCheckPermissionsRequest(requests=questions)
        )
    assert (denied(), undecided()) == (0, 3)
    failures = [line for line in logs if line["event"] == "decision_failed"]
    assert [line["policies"] for line in failures] == [["overflows"]] * 3
    assert {line["decision"] for line in failures} == {f"decisions/{CLAIM.partition('/')[2]}-1"}
    assert "9223372036854775807" not in str(failures), "no value that a policy failed with"


async def test_a_run_that_no_policy_could_decide_about_is_counted_so(world: World) -> None:
    await break_policies(world)
    undecided = gained("remit_policy_decisions_total", kind="other", decision="UNDECIDED")
    error = await refused(issue(world, new_run()))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert undecided() == 1


async def test_a_question_that_could_not_be_asked_is_counted_by_its_reason(
    world: World, policy_database: Database
) -> None:
    run = await issue(world, new_run())
    invalid = gained("remit_policy_decisions_total", kind="tool", decision="REMIT_INVALID")
    away = gained("remit_policy_decisions_total", kind="tool", decision="DEPENDENCY_UNAVAILABLE")
    await refused(world.hot(AGENT).CheckPermission(check(run)))
    assert (invalid(), away()) == (1, 0)
    await policy_database._pool.close()
    questions = policy_service_pb2.BatchCheckPermissionsRequest(requests=[check(run)] * 2)
    await refused(world.hot().CheckPermission(check(run)))
    await refused(world.hot().BatchCheckPermissions(questions))
    assert (invalid(), away()) == (1, 3)


async def test_a_clients_own_remit_is_decided_by_the_rules_alone(world: World) -> None:
    answer = await world.hot().CheckPermission(
        check(world.client_token(), resource="tools/anything", claim="", attempt=0)
    )
    assert answer.decision == ALLOW
    assert answer.decision_id.startswith("decisions/")
    nobody = world.client_token(roles=())
    answer = await world.hot().CheckPermission(check(nobody))
    assert answer.decision == DENY


async def test_a_service_asks_only_with_remits_that_it_may_accept(world: World) -> None:
    """A run's remit is the agent's to present, not to accept; a client's is for every service."""
    run = await issue(world, new_run())
    error = await refused(world.hot(AGENT).CheckPermission(check(run)))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID
    assert (await world.hot(AGENT).CheckPermission(check(world.client_token()))).decision == ALLOW


async def test_a_worker_that_lost_its_run_is_fenced_at_its_very_next_question(
    world: World,
) -> None:
    run = new_run()
    old = await issue(world, run, 1)
    assert (await world.hot().CheckPermission(check(old))).decision == ALLOW
    await world.hot(AGENT).FenceRun(
        policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=2)
    )
    error = await refused(world.hot().CheckPermission(check(old)))
    assert error.reason == error_reason_pb2.ERROR_REASON_FENCED
    new = await issue(world, run, 2, client="")
    assert (await world.hot().CheckPermission(check(new))).decision == ALLOW


async def test_a_run_that_policy_never_registered_is_refused(world: World) -> None:
    from tests.policy.test_remits import REGISTRATION  # noqa: PLC0415 - one constant

    remit = world.issuer.for_run(REGISTRATION, 1, epoch=1).token
    error = await refused(world.hot().CheckPermission(check(remit)))
    assert error.reason == error_reason_pb2.ERROR_REASON_FENCED


BAD_QUESTIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"action": ""}, {"action"}),
    ({"resource": ""}, {"resource"}),
    ({"resource": "x" * 500}, {"resource"}),
    (
        {"permission_class": 0, "arguments_digest": b"short"},
        {
            "permission_class",
            "arguments_digest",
        },
    ),
    ({"claim": "claims/nonsense", "attempt": 0}, {"claim", "attempt"}),
]


async def test_every_violation_of_a_question_is_named(world: World) -> None:
    for fields, names in BAD_QUESTIONS:
        error = await refused(world.hot().CheckPermission(check(world.client_token(), **fields)))
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
        assert {violation.field for violation in error.violations} == names


async def test_a_batch_answers_each_question_on_its_own(world: World) -> None:
    run = new_run()
    old = await issue(world, run, 1)
    new = await issue(world, run, 2, client="")
    request = policy_service_pb2.BatchCheckPermissionsRequest(
        requests=[
            check(new),
            check("not a remit"),
            check(old),
            check(new, action=""),
            check(new, permission_class=EXECUTE),
            check(world.client_token()),
        ]
    )
    results = (await world.hot().BatchCheckPermissions(request)).results
    assert [r.WhichOneof("result") for r in results] == [
        "response",
        "error",
        "error",
        "error",
        "response",
        "response",
    ]
    assert [RemitError.from_status(results[n].error).reason for n in (1, 2, 3)] == [
        error_reason_pb2.ERROR_REASON_REMIT_INVALID,
        error_reason_pb2.ERROR_REASON_FENCED,
        error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
    ]
    assert [results[n].response.decision for n in (0, 4, 5)] == [ALLOW, DENY, ALLOW]


@pytest.mark.parametrize("count", [0, MAX_BATCH + 1])
async def test_a_batch_has_bounds(world: World, count: int) -> None:
    request = policy_service_pb2.BatchCheckPermissionsRequest(requests=[check("x")] * count)
    error = await refused(world.hot().BatchCheckPermissions(request))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


async def test_a_full_batch_reads_the_database_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remit = await issue(world, new_run())
    reads = []
    fences = world.runs.fences

    async def counted(*about: Any) -> Any:
        reads.append(1)
        return await fences(*about)

    monkeypatch.setattr(world.runs, "fences", counted)
    request = policy_service_pb2.BatchCheckPermissionsRequest(requests=[check(remit)] * MAX_BATCH)
    results = (await world.hot().BatchCheckPermissions(request)).results
    assert len(results) == MAX_BATCH
    assert len(reads) == 1


async def test_a_decision_is_never_older_than_the_policies_in_force(world: World) -> None:
    remit = world.client_token()
    assert (await world.hot().CheckPermission(check(remit))).decision == ALLOW
    source = world.policies.book.source
    forbid = '@id("stop") @reason("stopped by hand") forbid(principal, action, resource);'
    await Policies.open(
        world.sets, PolicySource({**source.files, "stop.cedar": forbid}, source.schema), world.clock
    )
    answer = await world.hot().CheckPermission(check(remit))
    assert (answer.decision, answer.policy_epoch) == (DENY, 2)
    assert answer.reason == "forbidden: stopped by hand"


@pytest.mark.parametrize("caller", [options_pb2.CALLER_PUBLIC])
async def test_only_services_that_enforce_or_stream_may_ask(
    world: World, caller: Caller.ValueType
) -> None:
    error = await refused(world.hot(caller).CheckPermission(check(world.client_token())))
    assert error.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


async def test_what_began_in_time_may_go_on_after_its_remit_expired_and_not_for_ever(
    world: World, clock: MovedClock
) -> None:
    run = new_run()
    remit = await issue(world, run)
    clock.move(LIFETIME_S + 300)
    going_on = check(remit, continuing=True)
    assert (await world.hot().CheckPermission(going_on)).decision == ALLOW
    await world.hot(AGENT).FenceRun(
        policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=2)
    )
    error = await refused(world.hot().CheckPermission(going_on))
    assert error.reason == error_reason_pb2.ERROR_REASON_FENCED
    clock.move(310)
    error = await refused(world.hot().CheckPermission(going_on))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID
    unclaimed = check(remit, continuing=True, claim="", attempt=0)
    error = await refused(world.hot().CheckPermission(unclaimed))
    assert [violation.field for violation in error.violations] == ["continuing"]


async def test_an_expired_remit_decides_nothing(world: World, clock: MovedClock) -> None:
    remit = world.client_token()
    clock.move(700)
    error = await refused(world.hot().CheckPermission(check(remit)))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID


# ------------------------------------------------------------------------------------------ runs


async def test_the_first_remit_registers_whose_run_it_is(world: World) -> None:
    run = new_run()
    client = world.client_token(team="orgs/acme/teams/core", roles=("admin",))
    token = await issue(world, run, 3, client=client, max_cost_nanos=9)
    remit = await world.verifier.verify(token, audience=INFERENCE, presenter=AGENT)
    assert (remit.subject, remit.team, remit.roles) == (
        ALICE,
        "orgs/acme/teams/core",
        frozenset({"admin"}),
    )
    assert remit.account == f"orgs/acme/teams/core/users/alice/agents/assistant/{run}"
    assert (remit.fencing_token, remit.max_cost_nanos) == (3, 9)


async def test_a_renewal_after_a_crash_needs_no_client(world: World, clock: MovedClock) -> None:
    run = new_run()
    await issue(world, run, 1)
    clock.move(3600)
    request = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=2)
    adopted = await World.open(world.database, clock)  # another replica, with empty caches
    response = await adopted.hot(AGENT).IssueRemit(request)
    remit = await world.verifier.verify(response.remit, audience=TOOLS, presenter=AGENT)
    assert remit.tools == {"tools/calculator"}
    assert 599 <= response.lifetime.ToSeconds() <= 600
    stale = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=1)
    error = await refused(world.hot(AGENT).IssueRemit(stale))
    assert error.reason == error_reason_pb2.ERROR_REASON_FENCED


async def test_the_same_run_with_other_grants_is_refused(world: World) -> None:
    run = new_run()
    await issue(world, run, 1)
    await issue(world, run, 1)
    error = await refused(issue(world, run, 2, tools=["tools/calculator", "tools/send_email"]))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    assert (await world.runs.fences([run])).min_tokens == {run: 1}


async def test_an_unregistered_run_without_a_client_is_not_known(world: World) -> None:
    error = await refused(issue(world, new_run(), 1, client=""))
    assert error.reason == error_reason_pb2.ERROR_REASON_RUN_NOT_FOUND


async def test_whoever_may_not_run_agents_gets_no_run(world: World) -> None:
    client = world.client_token(roles=())
    error = await refused(issue(world, new_run(), 1, client=client))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert error.metadata["permission"] == "agents.run"


async def test_the_remit_of_a_run_starts_no_other_run(world: World) -> None:
    run_remit = await issue(world, new_run(), 1)
    error = await refused(issue(world, new_run(), 1, client=run_remit))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID


BAD_REGISTRATIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"run": "runs/x"}, {"run"}),
    ({"token": 0}, {"fencing_token"}),
    ({"agent": "assistant"}, {"agent"}),
    ({"agent": ""}, {"agent"}),
    ({"tools": ["tools/a", "b"], "models": ["gpt"]}, {"tools[1]", "models[0]"}),
    ({"tools": ["tools/a"] * 300}, {"tools"}),
    ({"max_cost_nanos": -1}, {"max_cost_nanos"}),
]


async def test_every_violation_of_a_registration_is_named(world: World) -> None:
    for fields, names in BAD_REGISTRATIONS:
        error = await refused(issue(world, **{"run": new_run()} | fields))
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
        assert {violation.field for violation in error.violations} == names


async def test_two_workers_that_claim_one_run_at_once_get_one_registration(world: World) -> None:
    run, client = new_run(), world.client_token()
    tokens = await asyncio.gather(*(issue(world, run, 1, client=client) for _ in range(8)))
    for token in tokens:
        await world.verifier.verify(token, audience=TOOLS)


async def test_fencing_answers_the_minimum_in_force(world: World) -> None:
    run = new_run()

    async def fence(token: int) -> int:
        request = policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=token)
        return (await world.hot(AGENT).FenceRun(request)).min_fencing_token

    assert await fence(4) == 4
    assert await fence(2) == 4
    for request in (
        policy_service_pb2.FenceRunRequest(run="runs/1", min_fencing_token=1),
        policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=0),
    ):
        error = await refused(world.hot(AGENT).FenceRun(request))
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


async def test_the_listed_keys_verify_what_policy_signs(world: World, clock: MovedClock) -> None:
    from remit.rpc.keys import RemoteKeys  # noqa: PLC0415 - only here
    from remit.rpc.remits import RemitVerifier  # noqa: PLC0415

    verifier = RemitVerifier(RemoteKeys(world.hot(options_pb2.CALLER_COST), clock), clock)
    remit = await verifier.verify(world.client_token(), audience=options_pb2.CALLER_COST)
    assert remit.subject == ALICE


def remit_for(world: World, permission: str) -> str:
    """A client's remit as the edge signs it for one call."""
    principal = Principal(ALICE, "orgs/acme", "", ("admin",))
    return world.issuer.for_client(principal, permission, api_key="", epoch=1).token


async def test_a_remit_for_reading_registers_no_run(world: World) -> None:
    run = new_run()
    error = await refused(issue(world, run, client=remit_for(world, "runs.read")))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert error.metadata["permission"] == "runs.create"
    assert await issue(world, run, client=remit_for(world, "runs.create"))


async def test_a_clients_effect_is_of_what_its_remit_is_for(world: World) -> None:
    answer = await world.hot().CheckPermission(check(remit_for(world, "tools.list")))
    assert answer.decision == permission_pb2.DECISION_DENY
    assert "not issued for tools.call" in answer.reason
    answer = await world.hot().CheckPermission(check(remit_for(world, "tools.call")))
    assert answer.decision == permission_pb2.DECISION_ALLOW


async def test_a_remit_of_another_installation_is_refused(world: World) -> None:
    from tests.policy.test_remits import CLOCK, issuer_and_verifier  # noqa: PLC0415

    principal = Principal(ALICE, "orgs/acme", "", ("admin",))
    foreign = issuer_and_verifier(CLOCK)[0].for_client(principal, api_key="k", epoch=1).token
    error = await refused(world.hot().CheckPermission(check(foreign)))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID
