"""A call that repeats one in doubt: only what is in doubt, and only as a person approved it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.effects import EffectRequest
from remit.names import claim_name
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.effects.test_gate import claims, cut_off, one, state_of, world  # noqa: F401 - fixtures
from tests.effects.world import Replica, World, a_call, a_request

# ruff: noqa: F811 - fixtures are named as parameters


async def doubt(one: Replica, claims: Database) -> str:
    """Leaves an effect in doubt; returns its claim."""
    await cut_off(one, idempotent=False)
    return claim_name(str(await claims.fetchval("SELECT claim FROM effect_claims")))


def repetition(of: str, key: str = "again") -> EffectRequest:
    return replace(a_request(key), body_digest=a_request().body_digest, repeats_claim=of)


async def refused(one: Replica, world: World, request: EffectRequest) -> RemitError:
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(request, world.effect)
    return caught.value


async def test_a_person_is_asked_about_the_doubt_and_the_approved_repetition_happens_once(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await doubt(one, claims)
    world.wants_approval = True
    error = await refused(one, world, repetition(claim))
    assert error.reason == reasons.ERROR_REASON_APPROVAL_REQUIRED
    asked = world.questions[-1]
    assert asked.repeats_claim == claim
    world.approved.add(asked.action_digest)
    with a_call():
        done = await one.gate.perform(repetition(claim), world.effect)
        again = await one.gate.perform(repetition(claim), world.effect)
    assert (done.claim != claim, again.replayed) == (True, True)
    assert sum(world.touched.values()) == 1
    intents = [json.loads(e.detail_json) for e in world.events.values() if e.claim == done.claim]
    assert {detail["repeats"] for detail in intents if "body_sha256" in detail} == {claim}


async def test_what_it_repeats_is_part_of_what_is_approved(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await doubt(one, claims)
    world.wants_approval = True
    await refused(one, world, repetition(claim))
    with_it = world.questions[-1].action_digest
    await refused(one, world, replace(repetition(claim), repeats_claim=""))
    without_it = world.questions[-1].action_digest
    assert world.questions[-1].claim == world.questions[-3].claim
    assert with_it != without_it


async def test_what_has_an_outcome_is_not_repeated(one: Replica, world: World) -> None:
    with a_call():
        done = await one.gate.perform(a_request(), world.effect)
    error = await refused(one, world, repetition(done.claim))
    assert error.reason == reasons.ERROR_REASON_INVALID_STATE
    assert "its own request_id tells its outcome" in error.message
    assert sum(world.touched.values()) == 1
    assert not any(question.repeats_claim for question in world.questions), "nobody was asked"


async def test_another_call_is_no_repetition(one: Replica, world: World, claims: Database) -> None:
    claim = await doubt(one, claims)
    other = replace(repetition(claim, "other"), body_digest=b"x" * 32)
    assert (await refused(one, world, other)).reason == reasons.ERROR_REASON_KEY_REUSED
    unknown = repetition("claims/01981a2b-0000-7000-8000-000000000000", "unknown")
    error = await refused(one, world, unknown)
    assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    of_another = replace(repetition(claim).remit, subject="orgs/acme/users/mallory")
    error = await refused(one, world, replace(repetition(claim), remit=of_another))
    assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    assert not world.touched


async def test_a_refused_repetition_leaves_the_doubt_as_it_is(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await doubt(one, claims)
    world.denied = True
    error = await refused(one, world, repetition(claim))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    error = await refused(one, world, a_request())
    assert error.reason == reasons.ERROR_REASON_EFFECT_IN_DOUBT
    assert error.metadata["claim"] == claim
