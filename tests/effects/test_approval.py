"""An effect that a person must approve: asked when it has its money, done once, as approved."""

from __future__ import annotations

import dataclasses

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import permission_pb2
from remit.api.usage.v1 import usage_pb2
from remit.approvals import APPROVAL, ExactAction
from remit.effects import EffectRequest, EffectResult, Outcome, Permit
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.effects.test_gate import claims, one, state_of, world  # noqa: F401 - fixtures
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down

# ruff: noqa: F811 - fixtures are named as parameters


@pytest.fixture(autouse=True)
def _wanted(world: World) -> None:
    world.wants_approval = True


def guarded(key: str = "key") -> EffectRequest:
    return dataclasses.replace(a_request(key), definition_digest=b"d" * 32)


async def refused(one: Replica, world: World, request: EffectRequest) -> RemitError:
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(request, world.effect)
    return caught.value


async def test_an_effect_without_approval_is_refused_and_holds_nothing(
    one: Replica, world: World, claims: Database
) -> None:
    error = await refused(one, world, guarded())
    assert error.reason == error_reason_pb2.ERROR_REASON_APPROVAL_REQUIRED
    claim = error.metadata["claim"]
    assert error.metadata[APPROVAL] == claim.replace("claims", "approvals")
    assert not error.retryable
    await settled_down(one)
    assert await state_of(claims) == [(1, "REFUSED", True)]
    assert world.open_holds() == []
    assert not world.touched


async def test_people_are_asked_about_exactly_what_would_be_done(
    one: Replica, world: World
) -> None:
    request = guarded()
    claim = (await refused(one, world, request)).metadata["claim"]
    first, second = world.questions
    assert (first.action_digest, first.HasField("cost_bound_nanos")) == (b"", False)
    asked = ExactAction(
        claim=claim,
        subject="orgs/acme/users/alice",
        team="",
        agent="",
        run="",
        action="tools.call",
        resource="tools/send_email",
        permission_class=permission_pb2.PERMISSION_CLASS_UNSPECIFIED,
        definition_digest=b"d" * 32,
        arguments_digest=b"",
        cost_bound_nanos=100,
    )
    assert second.action_digest == asked.digest()
    assert (second.cost_bound_nanos, second.claim, second.attempt) == (100, claim, 1)


async def test_nobody_is_asked_for_what_has_no_money(one: Replica, world: World) -> None:
    world.out_of_money = True
    error = await refused(one, world, guarded())
    assert error.reason == error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert [bool(question.action_digest) for question in world.questions] == [False]


async def test_an_approved_effect_happens_once_under_its_key(
    one: Replica, world: World, claims: Database
) -> None:
    await refused(one, world, guarded())
    world.approved.add(world.questions[-1].action_digest)
    with a_call():
        done = await one.gate.perform(guarded(), world.effect)
        again = await one.gate.perform(guarded(), world.effect)
    assert (done.attempt, again.replayed) == (2, True)
    assert sum(world.touched.values()) == 1
    await settled_down(one)
    assert await state_of(claims) == [(1, "REFUSED", True), (2, "CLOSED", True)]
    assert world.faults == []


@pytest.mark.parametrize(
    "change",
    [
        {"definition_digest": b"e" * 32},
        {"arguments_digest": b"a" * 32},
        {"bound": usage_pb2.Usage(calls=2)},
        {"most": usage_pb2.Usage(calls=3)},
        {"permission_class": permission_pb2.PERMISSION_CLASS_WRITE},
        {"resource": "tools/other"},
        {"action": "tools.other"},
        {"key": "another key, so another claim"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_changed_since_is_not_done(
    one: Replica, world: World, change: dict[str, object]
) -> None:
    await refused(one, world, guarded())
    world.approved.add(world.questions[-1].action_digest)
    changed = dataclasses.replace(guarded(), **change)  # type: ignore[arg-type]
    error = await refused(one, world, changed)
    assert error.reason == error_reason_pb2.ERROR_REASON_APPROVAL_REQUIRED
    assert not world.touched


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "orgs/acme/users/bob"},
        {"team": "orgs/acme/teams/ops"},
        {"agent": "agents/a"},
        {"run": "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_nobody_else_does_it(one: Replica, world: World, change: dict[str, str]) -> None:
    await refused(one, world, guarded())
    world.approved.add(world.questions[-1].action_digest)
    remit = dataclasses.replace(guarded().remit, **change)  # type: ignore[arg-type]
    error = await refused(one, world, dataclasses.replace(guarded(), remit=remit))
    assert error.reason == error_reason_pb2.ERROR_REASON_APPROVAL_REQUIRED
    assert not world.touched


async def test_a_crash_after_the_approval_was_used_leaves_it_to_the_same_claim(
    one: Replica, world: World, claims: Database
) -> None:
    """Used, and STARTED was never committed: the next attempt of the claim may use it again."""
    await refused(one, world, guarded())
    digest = world.questions[-1].action_digest
    world.approved.add(digest)
    world.used[digest] = 2  # by an attempt whose gate died
    await claims.execute("UPDATE effect_claims SET attempt = 2")
    await claims.execute(
        "INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires, subject, run,"
        " action, resource, trace_id) SELECT claim, 2, 'CLAIMED', 'dead', clock_timestamp(),"
        " subject, run, action, resource, trace_id FROM effect_attempts"
    )
    other = replica(ClaimStore(claims, owner="two", lease_s=LEASE_S), world)
    with a_call():
        done = await other.gate.perform(guarded(), world.effect)
    assert done.attempt == 3
    assert sum(world.touched.values()) == 1
    await settled_down(other)


async def test_a_denial_is_told_with_the_approval(one: Replica, world: World) -> None:
    await refused(one, world, guarded())
    world.denied = True
    error = await refused(one, world, guarded())
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


async def test_what_was_approved_may_go_on_and_grow_within_what_was_approved(
    one: Replica, world: World
) -> None:
    request = dataclasses.replace(guarded(), most=usage_pb2.Usage(calls=5))

    async def long(permit: Permit) -> EffectResult:
        await permit.hold.recheck()
        await permit.hold.extend(usage_pb2.Usage(calls=4))
        return EffectResult(Outcome.SUCCEEDED, usage_pb2.Usage(calls=4), payload=b"long")

    await refused(one, world, request)
    assert world.questions[-1].cost_bound_nanos == 500
    world.approved.add(world.questions[-1].action_digest)
    with a_call():
        done = await one.gate.perform(request, long)
    assert done.cost_nanos == 400
    assert {q.action_digest for q in world.questions if q.continuing} == world.approved
