"""Recorded decisions: behind the answer, sealed, bounded, forgotten; and tried on candidates."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    permission_pb2,
    policy_service_pb2,
    policy_set_pb2,
    policy_set_service_pb2,
)
from remit.policy.decision_record import SLOTS, Page, Place, slot_of
from remit.policy.entities import Principal, reference_to
from remit.policy.facts import facts_of
from remit.policy.recorded import Recorded, question_json, question_of
from remit.policy.replay import Candidate, Step, process_pool, replay
from remit.policy.rule_sets import PolicySource
from remit.policy.rules import Decision, Question
from remit.policy.simulation import first_difference
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained
from tests.policy.test_policy_sets import SHIPPED, files
from tests.policy.world import ALICE, BOB, MOST_WAITING, MovedClock, World

Response = policy_set_service_pb2.SimulatePolicyResponse
FORBID = (
    '@id("no-mail") @reason("mail rests") forbid (principal, action == Action::"tools.call",'
    ' resource == Tool::"tools/mail");'
)


async def decide(world: World, user: str = BOB, tool: str = "tools/mail", path: str = "") -> Any:
    request = policy_service_pb2.CheckPermissionRequest(
        remit=world.client_token(user),
        action="tools.call",
        resource=tool,
        permission_class=permission_pb2.PERMISSION_CLASS_READ,
        arguments_digest=bytes(32),
    )
    if path:
        request.arguments.update({"path": path})
    return await world.hot().CheckPermission(request)


async def recorded(world: World, limit: int = 1000) -> list[Recorded | None]:
    now = world.clock.now() + timedelta(seconds=1)
    pages = world.record.read(now - timedelta(days=40), Place(now, "", limit))
    return [each async for page in pages for each in page.decisions]


async def simulate(world: World, **fields: Any) -> list[Response]:
    given = {"files": files(mail=FORBID)} | fields
    request = policy_set_service_pb2.SimulatePolicyRequest(**given)
    with remit_token(world.client_token(ALICE, roles=("admin",))):
        return [step async for step in world.policy_sets().SimulatePolicy(request)]


async def test_a_decision_is_recorded_with_what_policies_saw(
    world: World, clock: MovedClock
) -> None:
    answer = await decide(world, path="/reports/x")
    assert await recorded(world) == [], "behind the answer"
    await world.record.flush()
    (each,) = await recorded(world)
    assert each is not None
    assert (each.decision_id, each.allowed) == (answer.decision_id, True)
    assert each.policy_ids == ("members-call-tools",)
    assert each.epoch == 1
    assert each.time == clock.now()
    assert each.question.principal == Principal(BOB, "orgs/acme", "", ("member",))
    facts: Any = each.question.context["tool_call"]
    assert facts["facts"]["common_path"] == "/reports/x"
    assert world.policies.book.decide(each.question).policy_ids == each.policy_ids


async def test_what_is_recorded_is_sealed_and_an_erasure_reaches_it(world: World) -> None:
    await world.admin_secret()
    await decide(world, path="/private/diary.txt")
    await decide(world, user=ALICE)
    await world.record.flush()
    rows = await world.database.fetch("SELECT sealed_question FROM decisions")
    assert not any(b"diary" in row["sealed_question"] for row in rows)
    world.subjects.erase(BOB)
    world.clock.move(120)  # what was remembered of the key is forgotten
    left = [each.question.principal.user for each in await recorded(world) if each is not None]
    assert left == [ALICE]
    first, last = await simulate(world, files=files())
    assert (first.decisions, first.erased, last.done) == (2, 1, True)


async def test_what_no_policy_permits_is_recorded_without_a_policy(world: World) -> None:
    """Such a decision once ended the service at the next look."""
    request = policy_service_pb2.CheckPermissionRequest(
        remit=world.client_token(BOB),
        action="tools.call",
        resource="tools/mail",
        permission_class=permission_pb2.PERMISSION_CLASS_EXECUTE,
        arguments_digest=bytes(32),
    )
    denied = await world.hot().CheckPermission(request)
    assert (denied.decision, list(denied.policy_ids)) == (permission_pb2.DECISION_DENY, [])
    await decide(world)
    await world.record.flush()
    kept = {each.policy_ids: each.allowed for each in await recorded(world) if each is not None}
    assert kept == {(): False, ("members-call-tools",): True}


async def test_what_cannot_be_stored_is_dropped_alone(world: World) -> None:
    await decide(world)
    await decide(world)
    dropped = gained("remit_policy_decisions_dropped_total", reason="INTERNAL")
    question = Question(Principal(BOB, "orgs/acme", "", ("member",)), "tools.call", "tools/mail")
    no_number = Decision(allow=True, policy_ids=("a\nb",), reason="", epoch=2**70)
    world.record.note("decisions/odd", question, no_number)
    world.record.note("decisions/even", question, replace(no_number, epoch=1))
    await world.record.flush()
    kept = [each.policy_ids for each in await recorded(world) if each is not None]
    assert (dropped(), len(kept), kept.count(("a\nb",))) == (1, 3, 1)


async def test_a_full_queue_drops_and_counts_and_delays_nobody(world: World) -> None:
    dropped = gained("remit_policy_decisions_dropped_total", reason="QUEUE_FULL")
    stored = gained("remit_policy_decisions_recorded_total")
    for _ in range(MOST_WAITING + 2):
        await decide(world)
    assert dropped() == 2
    await world.record.flush()
    assert stored() == 50
    assert len(await recorded(world)) == MOST_WAITING


async def test_without_the_keys_nothing_is_stored_and_decisions_go_on(world: World) -> None:
    world.subjects.away = True
    answer = await decide(world)
    assert answer.decision == permission_pb2.DECISION_ALLOW
    with pytest.raises(RemitError):
        await world.record.flush()
    assert await world.database.fetchval("SELECT count(*) FROM decisions") == 0


async def test_days_are_read_one_after_the_other_the_newest_first(
    world: World, clock: MovedClock
) -> None:
    for _ in range(3):
        await decide(world)
        await decide(world)
        await world.record.flush()
        clock.move(86_400)
    found = [each.time for each in await recorded(world) if each is not None]
    assert found == sorted(found, reverse=True)
    assert (len(found), len(set(found))) == (6, 3)
    assert [each.time for each in await recorded(world, limit=3) if each] == found[:3]


async def test_days_that_are_too_old_are_emptied(world: World, clock: MovedClock) -> None:
    await decide(world)
    await world.record.flush()
    clock.move(7 * 86_400)
    await world.record.sweep()
    assert await world.database.fetchval("SELECT count(*) FROM decisions") == 1
    clock.move(86_400)
    assert await recorded(world) == [], "older than is kept, though it is still there"
    await world.record.sweep()
    assert await world.database.fetchval("SELECT count(*) FROM decisions") == 0


def test_no_day_that_is_kept_shares_a_partition_with_another(clock: MovedClock) -> None:
    days = [clock.now() - timedelta(days=n) for n in range(-1, 29)]
    assert len({slot_of(day) for day in days}) == len(days) <= SLOTS


async def test_a_preview_tells_what_would_change_and_by_which_rule(world: World) -> None:
    await world.admin_secret()
    for _ in range(3):
        await decide(world)
    await decide(world, user=ALICE)
    await decide(world, tool="tools/other")
    await decide(world, path="../../x")  # denied already
    world.clock.move(1)
    steps = await simulate(world)
    changes = [change for step in steps for change in step.changes]
    assert {(change.subject, change.count) for change in changes} == {(BOB, 3), (ALICE, 1)}
    first = changes[0]
    assert (first.action, first.resource) == ("tools.call", "tools/mail")
    assert (first.before, first.after) == (
        permission_pb2.DECISION_ALLOW,
        permission_pb2.DECISION_DENY,
    )
    assert list(first.policy_ids_before) == ["members-call-tools"]
    assert list(first.policy_ids_after) == [first.policy_id] == ["no-mail"]
    assert first.reason == "forbidden: mail rests"
    assert [step.done for step in steps] == [False, True]
    assert (steps[0].decisions, steps[0].newly_denied, steps[0].newly_allowed) == (6, 4, 0)
    assert steps[0].questions == 3, "what no policy can tell apart is asked once, whoever asks"
    assert [step.sequence for step in steps] == list(range(1, len(steps) + 1))
    assert await world.sets.newest_epoch() == 1, "nothing came into force"
    assert (await decide(world)).decision == permission_pb2.DECISION_ALLOW


async def test_a_preview_looks_at_the_window_and_at_the_latest(
    world: World, clock: MovedClock
) -> None:
    await world.admin_secret()
    await decide(world)
    clock.move(3600)
    middle = clock.now()
    await decide(world)
    await decide(world)
    clock.move(1)
    assert (await simulate(world))[0].decisions == 3
    assert (await simulate(world, max_decisions=2))[0].decisions == 2
    assert (await simulate(world, start_time=middle))[0].decisions == 2
    assert (await simulate(world, end_time=middle))[0].decisions == 1


async def test_a_preview_that_broke_off_goes_on_behind_its_last_step(world: World) -> None:
    await world.admin_secret()
    for _ in range(4):
        await decide(world)
        world.clock.move(1)
    first, _ = await simulate(world, max_decisions=4)
    assert first.decisions == 4
    resumed = await simulate(world, resume_token=first.resume_token)
    assert [step.done for step in resumed] == [True]
    newest = (await recorded(world))[0]
    assert newest is not None
    token = f"{newest.time.isoformat()} 2 {newest.decision_id}"
    assert (await simulate(world, resume_token=token))[0].decisions == 2
    for bad in (
        "x",
        "2026-01-01T00:00:00 2 decisions/x",
        "2026-01-01T00:00:00+00:00 -1 decisions/x",
    ):
        with pytest.raises(RemitError) as refused:
            await simulate(world, resume_token=bad)
        assert [violation.field for violation in refused.value.violations] == ["resume_token"]


async def test_a_preview_is_the_operators_and_its_candidate_must_pass(world: World) -> None:
    await world.admin_secret()
    bad = [policy_set_pb2.PolicyFile(name="x.cedar", text="permit")]
    with pytest.raises(RemitError) as refused:
        await simulate(world, files=bad)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_POLICY_INVALID
    with pytest.raises(RemitError) as refused:
        await simulate(world, max_decisions=-1)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    request = policy_set_service_pb2.SimulatePolicyRequest(files=files())
    for who in ({"roles": ("member",)}, {"user": "orgs/other/users/eve", "roles": ("admin",)}):
        with remit_token(world.client_token(**who)), pytest.raises(RemitError) as refused:
            _ = [step async for step in world.policy_sets().SimulatePolicy(request)]
        assert refused.value.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


def reads_of(world: World) -> list[event_pb2.Event]:
    events = world.audit.events.values()
    return [event for event in events if event.kind == event_pb2.EVENT_KIND_READ]


async def test_a_preview_is_in_the_log_before_anything_is_read(world: World) -> None:
    await world.admin_secret()
    with pytest.raises(RemitError):
        await simulate(world, max_decisions=-1)
    assert not reads_of(world), "what is refused reads nothing"
    await simulate(world, max_decisions=7)
    [event] = reads_of(world)
    assert (event.subject, event.org, event.action) == (ALICE, "orgs/acme", "policies.simulate")
    detail = json.loads(event.detail_json)
    assert (detail["max_decisions"], detail["resumes"]) == (7, False)
    assert FORBID not in event.detail_json, "a digest says which policies"


@pytest.mark.parametrize("what", ["away", "refusing"])
async def test_without_the_log_no_preview_reads(world: World, what: str) -> None:
    await world.admin_secret()
    await decide(world, path="/reports/x")
    setattr(world.audit, what, True)
    with pytest.raises(RemitError):
        await simulate(world)


def call(user: str, number: int) -> Question:
    context = {
        "run": reference_to(f"runs/00000000-0000-7000-8000-{number:012}"),
        "tool_call": {"arguments_digest": f"{number:064}", "facts": facts_of({}).to_cedar()},
    }
    return Question(
        Principal(user, "orgs/acme", "", ("member",)), "tools.call", "tools/mail", 2, context
    )


def test_a_question_survives_its_record(clock: MovedClock) -> None:
    question = replace(call(BOB, 1), time=clock.now())
    assert question_of(question_json(question), clock.now()) == question


async def test_many_alike_are_asked_once_in_processes_of_their_own(clock: MovedClock) -> None:
    answers = ("members-call-tools",)
    page = [
        Recorded(
            decision_id=f"decisions/{n}",
            stated=question_json(call(BOB, n)),
            time=clock.now(),
            allowed=True,
            policy_ids=answers,
            epoch=1,
        )
        for n in range(500)
    ]

    async def pages() -> AsyncIterator[Page]:
        yield Page([*page, None], Place(clock.now(), "", 1))
        yield Page(list(page), Place(clock.now(), "", 1))

    source = PolicySource({**SHIPPED.files, "mail.cedar": FORBID}, SHIPPED.schema)
    candidate = Candidate(source, ())
    pool_of = partial(process_pool, processes=1)
    steps: list[Step] = [step async for step in replay(pages(), candidate, pool_of)]
    assert [(s.looked_at, s.distinct, s.erased, s.newly_denied) for s in steps] == [
        (501, 1, 1, 500),
        (500, 0, 0, 500),
    ]
    (change,) = steps[0].changes
    assert (change.count, change.answer.policy_ids) == (500, ("no-mail",))


def test_the_first_difference_is_a_rule_that_came_or_else_one_that_went() -> None:
    assert first_difference(("a", "b"), ("a", "c")) == "c"
    assert first_difference(("a", "b"), ("a",)) == "b"
    assert first_difference((), ()) == ""
