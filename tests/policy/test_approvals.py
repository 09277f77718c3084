"""Approvals over the mesh: asked once, bound to one exact action, decided by others, used once."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import approval_pb2, approval_service_pb2, policy_service_pb2
from remit.approvals import ExactAction, approval_digest
from remit.policy import approval_terms
from remit.rpc.errors import RemitError
from tests.policy.approvals import (
    ALLOW,
    APPROVE,
    COST,
    DENY,
    NO,
    OLGA,
    OTTO,
    REQUIRED,
    TEAM,
    approver,
    as_,
    asked,
    decide,
    exact,
    guard,
    guarded,
    new_claim,
    put,
    question,
    recorded,
    seen,
)
from tests.policy.test_service import issue, refused
from tests.policy.world import ALICE, World
from tests.waiting import eventually, in_time

PENDING = approval_pb2.APPROVAL_STATE_PENDING


@pytest.fixture(autouse=True)
async def _guarded(world: World) -> None:
    await guard(world)


async def open_approval(world: World, action: ExactAction | None = None) -> str:
    """The name of a new approval."""
    answer = await asked(world, action or exact(new_claim()))
    assert answer.decision == REQUIRED
    return str(answer.approval)


# ---------------------------------------------------------------------------------- asking, using


async def test_the_first_question_bothers_nobody(world: World) -> None:
    answer = await asked(world, exact(new_claim()), digest=b"")
    assert (answer.decision, answer.approval) == (REQUIRED, "")
    assert "mail leaves the house" in answer.reason
    assert await world.approvals.newest_sequence() == 0


async def test_asking_twice_is_asking_once(world: World) -> None:
    action = exact(new_claim())
    first, second = await asked(world, action), await asked(world, action, attempt=2)
    assert first.approval == second.approval
    assert await world.approvals.newest_sequence() == 1
    await world.recorder.sweep()
    (event,) = recorded(world, "approvals.ask")
    assert (event["subject"], event["digest"]) == (
        ALICE,
        approval_digest(action.digest(), 2).hex(),
    )


async def test_an_approved_action_is_allowed_and_recorded(world: World) -> None:
    action = exact(new_claim())
    name = await open_approval(world, action)
    approval = await decide(world, name)
    assert approval.state == approval_pb2.APPROVAL_STATE_APPROVED
    answer = await asked(world, action, attempt=2)
    assert (answer.decision, answer.approval) == (ALLOW, name)
    assert answer.reason == f"approved by {OLGA}"
    assert answer.valid_for.ToSeconds() == 10
    used = await seen(world, name)
    assert (used.state, used.used_by_attempt) == (approval_pb2.APPROVAL_STATE_USED, 2)
    await world.recorder.sweep()
    assert [len(recorded(world, f"approvals.{what}")) for what in ("ask", "decide", "use")] == [
        1,
        1,
        1,
    ]
    (decided,) = recorded(world, "approvals.decide")
    assert (decided["subject"], decided["verdict"], decided["why"]) == (
        OLGA,
        "APPROVE",
        "looks right",
    )


async def test_what_was_used_is_its_claims_alone_and_never_an_earlier_attempts(
    world: World,
) -> None:
    action = exact(new_claim())
    await decide(world, await open_approval(world, action))
    assert (await asked(world, action, attempt=2)).decision == ALLOW
    assert (await asked(world, action, attempt=2)).decision == ALLOW  # the answer was lost
    assert (await asked(world, action, attempt=3)).decision == ALLOW  # a crash before the start
    assert (await asked(world, action, attempt=2)).decision == DENY
    other = await asked(world, dataclasses.replace(action, claim=new_claim()))
    assert other.decision == REQUIRED


async def test_attempts_that_ask_at_once_use_it_once(world: World) -> None:
    action = exact(new_claim())
    await decide(world, await open_approval(world, action))
    answers = await asyncio.gather(*(asked(world, action, attempt=2) for _ in range(8)))
    assert {answer.decision for answer in answers} == {ALLOW}
    await world.recorder.sweep()
    assert len(recorded(world, "approvals.use")) == 1


CHANGED: dict[str, st.SearchStrategy[Any]] = {
    "claim": st.uuids(version=4).map(lambda u: f"claims/{u}"),
    "action": st.sampled_from(["tools.wave", "models.generate", "runs.cancel"]),
    "resource": st.sampled_from(["tools/send_fax", "tools/send_mails"]),
    "permission_class": st.sampled_from([1, 2]),
    "definition_digest": st.binary(min_size=32, max_size=32),
    "arguments_digest": st.binary(min_size=32, max_size=32),
    "cost_bound_nanos": st.integers(0, 2**62).filter(lambda n: n != COST),
    "subject": st.sampled_from(["orgs/acme/users/bob", "orgs/other/users/alice"]),
    "team": st.just(TEAM),
    "agent": st.just("agents/other"),
    "run": st.uuids(version=4).map(lambda u: f"runs/{u}"),
    "repeats_claim": st.uuids(version=4).map(lambda u: f"claims/{u}"),
}
"""Another value of each field; one that is missing here fails the test below."""


def test_every_field_is_changed() -> None:
    assert set(CHANGED) == set(ExactAction.__dataclass_fields__)


async def token_of(world: World, action: ExactAction) -> str:
    """A remit that says what an action says of who acts."""
    if not (action.run or action.agent):
        return world.client_token(action.subject, team=action.team)
    run = action.run or f"runs/{uuid.uuid4()}"
    return await issue(
        world, run, agent=action.agent or "agents/assistant", tools=["tools/send_mail"]
    )


async def executes(world: World, request: policy_service_pb2.CheckPermissionRequest) -> bool:
    """Whether an effect would happen by an approval that policy takes for its own."""
    batch = policy_service_pb2.BatchCheckPermissionsRequest(requests=[request])
    (result,) = (await world.hot().BatchCheckPermissions(batch)).results
    if result.HasField("error"):
        reason = RemitError.from_status(result.error).reason
        assert reason == reasons.ERROR_REASON_APPROVAL_MISMATCH
    return bool(result.response.decision == ALLOW)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    change=st.sampled_from(sorted(CHANGED)).flatmap(
        lambda field: CHANGED[field].map(lambda value: (field, value))
    )
)
async def test_what_was_not_approved_exactly_is_never_allowed(
    world: World, change: tuple[str, Any]
) -> None:
    field, value = change
    action = exact(new_claim())
    await decide(world, await open_approval(world, action))
    mutated = dataclasses.replace(action, **{field: value})
    token = await token_of(world, mutated)
    # Who asks states its digest honestly, or the approved one: neither is allowed.
    for digest in (mutated.digest(), action.digest()):
        request = question(token, mutated, attempt=2, digest=digest)
        assert not await executes(world, request)


async def test_another_subject_team_and_run_are_another_action(world: World) -> None:
    claim = new_claim()
    await decide(world, await open_approval(world, exact(claim)))
    run = f"runs/{uuid.uuid4()}"
    of_run = await issue(world, run, tools=["tools/send_mail"])
    tokens = {
        "subject": (world.client_token(OTTO), exact(claim, subject=OTTO)),
        "team": (world.client_token(team=TEAM), exact(claim, team=TEAM)),
        "run": (of_run, exact(claim, run=run, agent="agents/assistant")),
    }
    for token, action in tokens.values():
        answer = await world.hot().CheckPermission(question(token, action, attempt=2))
        assert answer.decision == REQUIRED
        stolen = question(token, action, attempt=2, digest=exact(claim).digest())
        error = await refused(world.hot().CheckPermission(stolen))
        assert error.reason == reasons.ERROR_REASON_APPROVAL_MISMATCH


async def test_other_policies_ask_anew_or_deny(world: World) -> None:
    action = exact(new_claim())
    name = await open_approval(world, action)
    await decide(world, name)
    await put(world, guarded("team:ops; expires=2h"))
    answer = await asked(world, action, attempt=2)
    assert answer.decision == REQUIRED
    assert answer.approval != name
    assert (await seen(world, name)).state == approval_pb2.APPROVAL_STATE_WITHDRAWN
    never = guarded()
    text = '@id("never") forbid (principal, action, resource == Tool::"tools/send_mail");'
    files = {**never.files, "never.cedar": text}
    await put(world, dataclasses.replace(never, files=files))
    await decide(world, answer.approval)
    assert (await asked(world, action, attempt=3)).decision == DENY


async def test_who_knows_of_no_approvals_is_denied(world: World) -> None:
    without_claim = question(world.client_token(), exact(new_claim()), digest=b"")
    without_claim.claim, without_claim.attempt = "", 0
    answer = await world.hot().CheckPermission(without_claim)
    assert answer.decision == DENY
    assert "only an effect can be approved" in answer.reason


async def test_an_effect_that_was_approved_goes_on_and_no_other(world: World) -> None:
    action = exact(new_claim())
    await decide(world, await open_approval(world, action))
    assert (await asked(world, action, attempt=2, continuing=True)).decision == DENY
    assert (await asked(world, action, attempt=2)).decision == ALLOW
    await put(world, guarded("team:ops; expires=2h"))
    assert (await asked(world, action, attempt=2, continuing=True)).decision == ALLOW
    assert (await asked(world, action, attempt=3, continuing=True)).decision == DENY


async def test_what_is_wrong_with_a_question_is_said(world: World) -> None:
    request = question(world.client_token(), exact(new_claim()), digest=b"short")
    error = await refused(world.hot().CheckPermission(request))
    assert "action_digest" in error.message
    request = question(world.client_token(), exact(new_claim()))
    request.ClearField("cost_bound_nanos")
    assert "cost_bound_nanos" in (await refused(world.hot().CheckPermission(request))).message


async def test_of_an_org_only_so_many_are_open(world: World) -> None:
    world.approvals._max_open = 1
    await open_approval(world)
    error = await refused(asked(world, exact(new_claim())))
    assert error.reason == reasons.ERROR_REASON_OVERLOADED


async def test_a_batch_answers_each(world: World) -> None:
    action = exact(new_claim())
    requests = [
        question(world.client_token(), action),
        question(world.client_token(), action, digest=b"x" * 32),
    ]
    answer = await world.hot().BatchCheckPermissions(
        policy_service_pb2.BatchCheckPermissionsRequest(requests=requests)
    )
    assert answer.results[0].response.decision == REQUIRED
    assert answer.results[1].HasField("error")


# ------------------------------------------------------------------------------------- bad input


async def refused_decision(
    world: World, name: str, reason: reasons.ErrorReason.ValueType, **fields: Any
) -> None:
    """A decision is refused for this reason, changes nothing, and stands in the log."""
    row = await world.approvals.get(name.removeprefix("approvals/"))
    events = len(world.audit.events)
    error = await refused(decide(world, name, **fields))
    assert error.reason == reason, error.message
    after = await world.approvals.get(name.removeprefix("approvals/"))
    assert after is not None
    assert row is not None
    assert (after.state, after.votes) == (row.state, row.votes)
    (event,) = list(world.audit.events.values())[events:]
    assert (event.action, event.outcome) == ("approvals.decide", event_pb2.OUTCOME_REFUSED)
    assert (event.kind, event.resource) == (event_pb2.EVENT_KIND_ADMIN, name)
    assert reasons.ErrorReason.Name(reason).removeprefix("ERROR_REASON_") in event.detail_json


async def test_nobody_approves_what_they_asked_for(world: World) -> None:
    name = await open_approval(world)
    own = world.client_token(ALICE, team=TEAM, roles=("member", "admin"))
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_NOT_YOURS, by=own)


async def test_a_sub_run_is_asked_for_by_who_started_it_all(world: World) -> None:
    run = f"runs/{uuid.uuid4()}"
    token = await issue(world, run, tools=["tools/send_mail"])
    action = exact(new_claim(), run=run, agent="agents/assistant")
    answer = await world.hot().CheckPermission(question(token, action))
    own = world.client_token(ALICE, team=TEAM)
    await refused_decision(world, answer.approval, reasons.ERROR_REASON_APPROVAL_NOT_YOURS, by=own)


async def test_who_is_not_asked_may_not_decide(world: World) -> None:
    name = await open_approval(world)
    admin = world.client_token("orgs/acme/users/root", roles=("admin",))
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_NOT_YOURS, by=admin)


async def test_whom_a_policy_forbids_may_not_decide(world: World) -> None:
    source = guarded()
    robots = (
        '@id("no-robots") forbid (principal == User::"orgs/acme/users/olga",'
        ' action == Action::"approvals.decide", resource is Approval);'
    )
    files = {**source.files, "robots.cedar": robots}
    await put(world, dataclasses.replace(source, files=files))
    name = await open_approval(world)
    await refused_decision(world, name, reasons.ERROR_REASON_PERMISSION_DENIED)
    await decide(world, name, by=approver(world, OTTO))


async def test_who_is_not_concerned_does_not_learn_of_it(world: World) -> None:
    name = await open_approval(world)
    for token in (
        world.client_token("orgs/acme/users/eve"),
        world.client_token("orgs/other/users/olga", team="orgs/other/teams/ops"),
    ):
        error = await refused(decide(world, name, by=token))
        assert error.reason == reasons.ERROR_REASON_APPROVAL_NOT_FOUND


async def test_one_person_has_one_voice(world: World) -> None:
    await guard(world, "team:ops; quorum=2")
    name = await open_approval(world)
    first = await decide(world, name)
    assert first.state == PENDING
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_ALREADY_GIVEN)
    assert (await decide(world, name, by=approver(world, OTTO))).state == (
        approval_pb2.APPROVAL_STATE_APPROVED
    )


async def test_the_same_request_is_one_decision(world: World) -> None:
    name = await open_approval(world)
    first = await decide(world, name, request_id="r1")
    again = await decide(world, name, request_id="r1")
    assert first == again
    error = await refused(decide(world, name, request_id="r1", reason="other"))
    assert error.reason == reasons.ERROR_REASON_KEY_REUSED
    assert len(recorded(world, "approvals.decide")) == 1


async def test_another_digest_is_refused(world: World) -> None:
    name = await open_approval(world)
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_MISMATCH, digest=b"x" * 32)


async def test_a_late_decision_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval_terms, "MIN_EXPIRY_S", 0)
    await guard(world, "team:ops; expires=0s")
    action = exact(new_claim())
    name = (await asked(world, action)).approval
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_CLOSED)
    answer = await asked(world, action, attempt=2)
    assert answer.decision == DENY
    assert "EXPIRED: nobody approved it in time" in answer.reason
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_CLOSED)


async def test_what_lapses_by_itself_is_recorded_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approval_terms, "MIN_EXPIRY_S", 0)
    await guard(world, "team:ops; expires=0s")
    name = (await asked(world, exact(new_claim()))).approval
    await world.keeper.settle()
    await world.keeper.settle()
    row = await world.approvals.get(name.removeprefix("approvals/"))
    assert row is not None
    assert (row.state, row.arguments) == ("EXPIRED", b"")
    await world.recorder.sweep()
    assert len(recorded(world, "approvals.expire")) == 1


async def test_one_no_ends_it_and_says_why(world: World) -> None:
    await guard(world, "team:ops; quorum=2")
    action = exact(new_claim())
    name = await open_approval(world, action)
    await decide(world, name)
    denied = await decide(
        world, name, by=approver(world, OTTO), verdict=NO, reason="wrong recipient"
    )
    assert denied.state == approval_pb2.APPROVAL_STATE_DENIED
    answer = await asked(world, action, attempt=2)
    assert answer.decision == DENY
    assert f"was denied by {OTTO}: wrong recipient" in answer.reason


async def test_a_no_without_a_reason_is_refused(world: World) -> None:
    name = await open_approval(world)
    error = await refused(decide(world, name, verdict=NO, reason=" "))
    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_a_decision_counts_once_it_is_recorded(world: World) -> None:
    action = exact(new_claim())
    name = await open_approval(world, action)
    world.audit.away = True
    error = await refused(decide(world, name, request_id="r1"))
    assert error.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    await world.keeper.settle()
    assert (await asked(world, action, attempt=2)).decision == REQUIRED
    assert list((await seen(world, name)).votes) == []
    world.audit.away = False
    await world.recorder.sweep()
    await world.keeper.settle()
    assert (await asked(world, action, attempt=3)).decision == ALLOW


# ---------------------------------------------------------------------------------------- people


async def test_what_is_shown_is_what_would_be_done(world: World) -> None:
    action = exact(new_claim())
    approval = await seen(world, await open_approval(world, action))
    assert approval.digest == approval_digest(action.digest(), approval.policy_epoch)
    shown = ExactAction(
        **{
            name: getattr(approval, name)
            for name in ExactAction.__dataclass_fields__
            if name != "subject"
        },
        subject=approval.requester,
    )
    assert shown == action
    assert approval.arguments["to"] == "ann@example.com"
    assert [(list(r.approvers), r.quorum) for r in approval.rules] == [(["team:ops"], 1)]


async def test_what_is_shown_is_stored_sealed_and_goes_with_its_subject(world: World) -> None:
    action = exact(new_claim())
    name = await open_approval(world, action)
    other = await open_approval(world)
    stored = await world.approvals.get(name.removeprefix("approvals/"))
    assert stored is not None
    assert b"ann@example.com" not in stored.arguments
    assert stored.arguments[1:9] == world.subjects.key_id(action.subject)
    moved = "UPDATE approvals SET arguments = $2 WHERE approval = $1::uuid"
    await world.database.execute(moved, other.removeprefix("approvals/"), stored.arguments)
    with pytest.raises(RemitError) as refused:
        await seen(world, other)
    assert refused.value.reason == reasons.ERROR_REASON_DATA_CORRUPT

    world.subjects.erase(action.subject)
    world.clock.move(world.subjects.remember_s)
    approval = await seen(world, name)
    assert not approval.HasField("arguments")
    assert approval.arguments_digest == action.arguments_digest


async def test_without_the_subjects_key_nobody_is_asked(world: World) -> None:
    world.subjects.away = True
    with pytest.raises(RemitError) as refused:
        await open_approval(world)
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    rows = await world.database.fetch("SELECT approval FROM approvals")
    assert not rows


async def test_a_list_has_pages_and_filters(world: World) -> None:
    made = [await open_approval(world) for _ in range(3)]
    await decide(world, made[0])

    async def listed(token: str, **fields: Any) -> approval_service_pb2.ListApprovalsResponse:
        request = approval_service_pb2.ListApprovalsRequest(**fields)
        return await world.people().ListApprovals(request, metadata=as_(token))

    first = await listed(approver(world), page_size=2)
    rest = await listed(approver(world), page_size=2, page_token=first.next_page_token)
    found = [*first.approvals, *rest.approvals]
    assert {each.name for each in found} == set(made)
    assert not rest.next_page_token
    assert not any(each.HasField("arguments") for each in found)
    pending = await listed(approver(world), state=PENDING)
    assert {each.name for each in pending.approvals} == set(made[1:])
    assert len((await listed(world.client_token())).approvals) == 3  # who asked
    assert not (await listed(world.client_token("orgs/acme/users/eve"))).approvals
    admin = world.client_token("orgs/acme/users/root", roles=("admin",))
    assert len((await listed(admin)).approvals) == 3


async def test_a_watch_shows_what_is_pending_and_then_each_change(world: World) -> None:
    done, waiting = await open_approval(world), await open_approval(world)
    await decide(world, done)
    keeping = asyncio.create_task(world.keeper.run())
    stream: Any = world.people().WatchApprovals(
        approval_service_pb2.WatchApprovalsRequest(), metadata=as_(approver(world))
    )
    pieces = aiter(stream)
    shown: list[approval_service_pb2.WatchApprovalsResponse] = []

    async def until(name: str, state: approval_pb2.ApprovalState.ValueType) -> None:
        while True:
            piece = await anext(pieces)
            shown.append(piece)
            if piece.approval.name == name and piece.approval.state == state:
                return

    try:
        await in_time(until(waiting, PENDING), 10)
        await decide(world, waiting)
        await in_time(until(waiting, approval_pb2.APPROVAL_STATE_APPROVED), 10)
    finally:
        await stream.aclose()
        keeping.cancel()
    assert done not in {piece.approval.name for piece in shown}
    sequences = [piece.sequence for piece in shown]
    assert sequences == sorted(sequences)


async def test_a_watch_goes_on_after_a_sequence(world: World) -> None:
    await open_approval(world)
    after = await world.approvals.newest_sequence()
    second = await open_approval(world)
    stream: Any = world.people().WatchApprovals(
        approval_service_pb2.WatchApprovalsRequest(after_sequence=after),
        metadata=as_(approver(world)),
    )
    piece = await in_time(anext(aiter(stream)), 10)
    assert (piece.approval.name, piece.sequence) == (second, after + 1)
    await stream.aclose()


# ------------------------------------------------------------------------------------------ runs


async def test_a_run_that_ends_withdraws_what_it_asked(world: World) -> None:
    run = f"runs/{uuid.uuid4()}"
    token = await issue(world, run, tools=["tools/send_mail"])
    action = exact(new_claim(), run=run, agent="agents/assistant")
    name = (await world.hot().CheckPermission(question(token, action))).approval
    agent = world.hot(options_pb2.CALLER_AGENT)
    request = policy_service_pb2.WithdrawApprovalsRequest(run=run)
    assert (await agent.WithdrawApprovals(request)).withdrawn == 1
    assert (await agent.WithdrawApprovals(request)).withdrawn == 0
    found = await agent.BatchGetApprovals(policy_service_pb2.BatchGetApprovalsRequest(names=[name]))
    assert [each.state for each in found.approvals] == [approval_pb2.APPROVAL_STATE_WITHDRAWN]
    await refused_decision(world, name, reasons.ERROR_REASON_APPROVAL_CLOSED)
    answer = await world.hot().CheckPermission(question(token, action, attempt=2))
    assert answer.decision == DENY


async def test_the_keeper_settles_by_itself(world: World) -> None:
    action = exact(new_claim())
    name = await open_approval(world, action)
    world.audit.away = True
    await refused(decide(world, name, verdict=APPROVE))
    world.audit.away = False
    await world.recorder.sweep()
    keeping = asyncio.create_task(world.keeper.run())
    try:

        async def approved() -> bool:
            row = await world.approvals.get(name.removeprefix("approvals/"))
            return row is not None and row.state == "APPROVED"

        await eventually(approved)
    finally:
        keeping.cancel()
