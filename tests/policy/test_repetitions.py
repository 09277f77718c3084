"""Repeating what is in doubt: the shipped policies ask an admin; without a rule it is denied."""

from __future__ import annotations

import pytest

from remit.api.policy.v1 import approval_pb2
from remit.policy.epochs import read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.schema import SHIPPED_POLICIES, schema_text
from remit.rpc.errors import RemitError
from tests.policy.approvals import (
    ALLOW,
    DENY,
    NO,
    OLGA,
    REQUIRED,
    asked,
    decide,
    exact,
    new_claim,
    put,
    recorded,
)
from tests.policy.world import World


def an_admin(world: World) -> str:
    return world.client_token(OLGA, roles=("admin",))


async def test_the_shipped_policies_ask_an_admin(world: World) -> None:
    doubt = new_claim()
    action = exact(new_claim(), repeats_claim=doubt)
    assert (await asked(world, exact(new_claim()))).decision == ALLOW, "nothing else asks"
    first = await asked(world, action, digest=b"")
    assert (first.decision, first.approval) == (REQUIRED, "")
    waiting = await asked(world, action)
    assert waiting.decision == REQUIRED
    assert waiting.approval_state == approval_pb2.APPROVAL_STATE_PENDING
    assert list(waiting.policy_ids) == ["doubts-ask-an-admin"]
    shown = await decide(world, waiting.approval, by=an_admin(world))
    assert shown.repeats_claim == doubt
    answer = await asked(world, action, attempt=2)
    assert (answer.decision, answer.approval_state) == (ALLOW, approval_pb2.APPROVAL_STATE_USED)
    await world.recorder.sweep()
    assert recorded(world, "approvals.ask")[-1]["repeats_claim"] == doubt


async def test_a_denial_says_that_a_person_denied(world: World) -> None:
    action = exact(new_claim(), repeats_claim=new_claim())
    waiting = await asked(world, action)
    await decide(world, waiting.approval, by=an_admin(world), verdict=NO, reason="it has arrived")
    answer = await asked(world, action, attempt=2)
    assert (answer.decision, answer.approval_state) == (DENY, approval_pb2.APPROVAL_STATE_DENIED)
    assert "took effect before is unknown" in answer.reason
    assert "it has arrived" in answer.reason


async def test_an_approval_is_of_one_doubt(world: World) -> None:
    action = exact(new_claim(), repeats_claim=new_claim())
    await decide(world, (await asked(world, action)).approval, by=an_admin(world))
    other = exact(action.claim, repeats_claim=new_claim())
    assert (await asked(world, other, attempt=2)).decision == REQUIRED


async def test_where_no_policy_asks_it_is_denied_and_what_began_goes_on(world: World) -> None:
    files = dict(read_policies(SHIPPED_POLICIES).files)
    text, cut, _ = files["default.cedar"].partition('@id("doubts-ask-an-admin")')
    assert cut
    await put(world, PolicySource(files | {"default.cedar": text}, schema_text()))
    action = exact(new_claim(), repeats_claim=new_claim())
    for digest in (b"", None):
        answer = await asked(world, action, digest=digest)
        assert answer.decision == DENY
        assert "no policy says who may approve" in answer.reason
    goes_on = await asked(world, action, continuing=True)
    assert goes_on.decision == ALLOW
    assert (await asked(world, exact(new_claim()))).decision == ALLOW


async def test_what_it_repeats_is_checked_for_its_form(world: World) -> None:
    with pytest.raises(RemitError) as caught:
        await asked(world, exact(new_claim(), repeats_claim="claims/../x"))
    assert [v.field for v in caught.value.violations] == ["repeats_claim"]
