"""A candidate in shadow: it sees what is decided, changes nothing, and its counts are exact."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    grant_service_pb2,
    permission_pb2,
    policy_service_pb2,
    policy_set_pb2,
    policy_set_service_pb2,
)
from remit.policy.approval_terms import parsed_terms
from remit.policy.entities import Principal
from remit.policy.rules import Decision, Question, rule_book
from remit.policy.shadow import Shadow
from remit.policy.shadow_store import Running
from remit.policy.shadow_tally import (
    MOST_CHANGES,
    ChangeKey,
    Kind,
    Outcome,
    Tally,
    compared,
    example_of,
    kind_of,
)
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained
from tests.policy.test_decision_record import FORBID, decide
from tests.policy.test_policy_sets import BAD, LOCKOUTS, SHIPPED, ask, files, push, refused
from tests.policy.test_rules import call
from tests.policy.world import ALICE, BOB, MOST_WAITING, MovedClock, World
from tests.waiting import eventually

PolicyShadow = policy_set_service_pb2.PolicyShadow
ASK = (
    '@id("ask-first") @reason("mail is looked at") @approval("role:admin") forbid (principal,'
    ' action == Action::"tools.call", resource == Tool::"tools/mail");'
)
FAILS = (
    '@id("overflows") forbid (principal, action == Action::"tools.call", resource)'
    " when { 9223372036854775807 + 1 > 0 };"
)
MAY = (
    '@id("may") @reason("anybody may") permit (principal, action == Action::"tools.call",'
    ' resource == Tool::"tools/mail");'
)


def start(**fields: Any) -> policy_set_service_pb2.StartPolicyShadowRequest:
    given: dict[str, Any] = {
        "files": files(mail=FORBID),
        "message": "mail shall rest",
        "request_id": "s1",
    }
    return policy_set_service_pb2.StartPolicyShadowRequest(**given | fields)


def stop(request_id: str = "s9") -> policy_set_service_pb2.StopPolicyShadowRequest:
    return policy_set_service_pb2.StopPolicyShadowRequest(request_id=request_id)


async def started(world: World, **fields: Any) -> PolicyShadow:
    shadow: PolicyShadow = (await ask(world, "StartPolicyShadow", start(**fields))).shadow
    await world.shadow.look()
    return shadow


async def shown(world: World) -> PolicyShadow:
    """What is told, after a look."""
    await world.shadow.look()
    return await told(world)


async def told(world: World) -> PolicyShadow:
    request = policy_set_service_pb2.GetPolicyShadowRequest()
    shadow: PolicyShadow = (await ask(world, "GetPolicyShadow", request)).shadow
    return shadow


@pytest.fixture
async def admin(world: World) -> World:
    await world.admin_secret()
    return world


async def test_a_candidate_is_told_what_it_would_have_decided_otherwise(admin: World) -> None:
    made = await started(admin)
    assert (made.author, made.message, made.end) == (ALICE, "mail shall rest", 0)
    assert made.expire_time.ToSeconds() - made.create_time.ToSeconds() in {604_800, 604_801}
    assert made.policy_count == len(admin.policies.book.rules.policies) + 1
    answers = [await decide(admin) for _ in range(3)]
    assert {each.decision for each in answers} == {permission_pb2.DECISION_ALLOW}
    await decide(admin, tool="tools/calculator")
    assert (await told(admin)).agreed == 0, "behind the answer"
    found = await shown(admin)
    assert (found.agreed, found.newly_denied, found.newly_allowed) == (1, 3, 0)
    (change,) = found.changes
    assert (change.count, change.action, change.resource) == (3, "tools.call", "tools/mail")
    assert (change.before, change.after) == (
        permission_pb2.DECISION_ALLOW,
        permission_pb2.DECISION_DENY,
    )
    assert (change.policy_id, change.reason) == ("no-mail", "forbidden: mail rests")
    assert list(change.policy_ids_before) == ["members-call-tools"]
    assert list(change.policy_ids_after) == ["no-mail"]
    assert (change.decision_id, change.subject) == (answers[-1].decision_id, "")


CANDIDATES = {
    "forbids": (FORBID, Outcome.NEWLY_DENIED),
    "asks": (ASK, Outcome.NEWLY_ASKED),
    "fails": (FAILS, Outcome.FAILED),
    "agrees": (MAY, Outcome.AGREED),
}


@pytest.mark.parametrize("name", CANDIDATES)
async def test_no_candidate_changes_an_answer(admin: World, name: str) -> None:
    text, outcome = CANDIDATES[name]

    def comparable(answer: Any) -> Any:
        answer.ClearField("decision_id")
        return answer

    before = comparable(await decide(admin))
    await started(admin, files=files(mine=text))
    counted = gained("remit_policy_shadow_decisions_total", outcome=outcome)
    assert comparable(await decide(admin)) == before
    await admin.shadow.look()
    assert comparable(await decide(admin)) == before
    found = await shown(admin)
    assert (counted(), getattr(found, outcome.value.lower())) == (2, 2)
    assert admin.policies.book.epoch == 1


async def test_a_failing_candidate_says_which_policy_fails(admin: World) -> None:
    await started(admin, files=files(mine=FAILS))
    await decide(admin)
    found = await shown(admin)
    assert (found.failed, found.newly_denied) == (1, 0)
    (change,) = found.changes
    assert change.reason == "could not be evaluated: overflows"


async def test_what_is_permitted_more_is_told(admin: World) -> None:
    only_readers = '@id("none") forbid (principal, action == Action::"tools.call", resource);'
    await ask(admin, "PushPolicySet", push(files=files(mine=only_readers)))
    await started(admin, files=files())
    assert (await decide(admin)).decision == permission_pb2.DECISION_DENY
    (change,) = (await shown(admin)).changes
    assert (change.before, change.after) == (
        permission_pb2.DECISION_DENY,
        permission_pb2.DECISION_ALLOW,
    )


async def test_a_denial_that_no_policy_makes_names_nobody(admin: World) -> None:
    removed = SHIPPED.files["default.cedar"].replace(
        '@id("members-call-tools")',
        '@id("nobody") @reason("x") forbid (principal, action =='
        ' Action::"models.list", resource); @id("members-call-tools")',
    )
    narrowed = removed.replace("resource.permission_class <= 3", "resource.permission_class < 0")
    assert narrowed != removed
    candidate = [policy_set_pb2.PolicyFile(name="default.cedar", text=narrowed)]
    await started(admin, files=candidate)
    await decide(admin)
    (change,) = (await shown(admin)).changes
    assert change.reason == "no policy decides it"
    assert BOB not in str(change)


async def test_the_grants_in_force_are_the_candidates_too(admin: World) -> None:
    await started(admin, files=files())
    grant = grant_service_pb2.GrantToolAccessRequest(
        principal=BOB, tool="tools/mail", request_id="g1"
    )
    with remit_token(admin.client_token(roles=("admin",))):
        await admin.grants().GrantToolAccess(grant)
    question = policy_service_pb2.CheckPermissionRequest(
        remit=admin.client_token(BOB),
        action="tools.call",
        resource="tools/mail",
        permission_class=permission_pb2.PERMISSION_CLASS_EXECUTE,
        arguments_digest=bytes(32),
    )
    answer = await admin.hot().CheckPermission(question)
    assert answer.decision == permission_pb2.DECISION_ALLOW, "by the grant alone"
    found = await shown(admin)
    assert (found.agreed, len(found.changes)) == (1, 0)


async def test_a_replica_that_starts_goes_on_and_replicas_add_up(
    admin: World, clock: MovedClock
) -> None:
    await started(admin)
    await decide(admin)
    await admin.shadow.look()
    others = [await World.open(admin.database, clock) for _ in range(3)]
    await asyncio.gather(*(other.shadow.look() for other in others))
    await asyncio.gather(*(decide(other) for other in others for _ in range(4)))
    await asyncio.gather(*(other.shadow.look() for other in others))
    found = await shown(admin)
    assert found.newly_denied == 13
    assert [change.count for change in found.changes] == [13]


async def insert(world: World, text: str, lifetime: str) -> None:
    """A candidate as the database has it, whatever it is worth."""
    await world.database.execute(
        "INSERT INTO policy_shadows (shadow, digest, files, author, message, policy_count,"
        " expire_time) VALUES (gen_random_uuid(), sha256(''), $1, 'a', '', 1,"
        " clock_timestamp() + $2::text::interval)",
        json.dumps({"a.cedar": text}),
        lifetime,
    )


async def test_a_candidate_ends_by_its_time_and_sees_nothing_more(admin: World) -> None:
    await insert(admin, FORBID, "0.2 s")
    await admin.shadow.look()
    await decide(admin)

    async def has_ended() -> bool:
        return (await shown(admin)).end == PolicyShadow.END_EXPIRED

    await eventually(has_ended)
    found = await told(admin)
    assert found.HasField("end_time")
    await decide(admin)
    assert await shown(admin) == found


async def test_what_is_put_in_force_is_in_shadow_no_more(admin: World) -> None:
    await started(admin)
    await ask(admin, "PushPolicySet", push())
    assert (await shown(admin)).end == PolicyShadow.END_UNSPECIFIED, "another was pushed"
    request = push(files=files(mail=FORBID), expected_version=2, request_id="r2")
    await ask(admin, "PushPolicySet", request)
    found = await shown(admin)
    assert found.end == PolicyShadow.END_PUSHED
    await decide(admin)
    assert (await shown(admin)).agreed == found.agreed


async def test_one_candidate_takes_the_place_of_another(admin: World) -> None:
    await started(admin)
    await decide(admin)
    await admin.shadow.look()
    await decide(admin)  # which the first does not see any more
    await started(admin, files=files(mine=MAY), request_id="s2")
    await decide(admin)
    found = await shown(admin)
    assert (found.agreed, found.newly_denied) == (1, 0)
    ended = await admin.database.fetch("SELECT ended, newly_denied FROM policy_shadows")
    assert {tuple(row.values()) for row in ended} == {("REPLACED", 1), (None, 0)}


async def test_only_the_newest_few_are_kept(admin: World) -> None:
    for number in range(23):
        await ask(admin, "StartPolicyShadow", start(request_id=f"s{number}"))
    assert await admin.database.fetchval("SELECT count(*) FROM policy_shadows") == 20


async def test_what_fits_no_more_is_ended_and_harms_nobody(admin: World) -> None:
    text = '@id("a") permit (principal, action == Action::"moon", resource);'
    await insert(admin, text, "1 h")
    with capture_logs() as logs:
        found = await shown(admin)
    assert found.end == PolicyShadow.END_BROKEN
    assert "moon" in next(each for each in logs if each["event"] == "policy_shadow_broken")["text"]
    assert (await decide(admin)).decision == permission_pb2.DECISION_ALLOW


async def test_a_candidate_is_stopped_once_and_the_answer_is_kept(admin: World) -> None:
    error = await refused(told(admin))
    assert error.reason == error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND
    error = await refused(ask(admin, "StopPolicyShadow", stop()))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_STATE
    first = await ask(admin, "StartPolicyShadow", start())
    assert await ask(admin, "StartPolicyShadow", start()) == first
    error = await refused(ask(admin, "StartPolicyShadow", start(message="else")))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    await admin.shadow.look()
    await decide(admin)
    await admin.shadow.look()
    ended = await ask(admin, "StopPolicyShadow", stop())
    assert (ended.shadow.end, ended.shadow.newly_denied) == (PolicyShadow.END_STOPPED, 1)
    assert len(ended.shadow.changes) == 1
    assert await ask(admin, "StopPolicyShadow", stop()) == ended
    error = await refused(ask(admin, "StopPolicyShadow", stop("s10")))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_STATE


async def test_starting_and_stopping_is_in_the_log(admin: World) -> None:
    made = await started(admin)
    await ask(admin, "StopPolicyShadow", stop())
    begun, ended = list(admin.audit.events.values())[-2:]
    assert {begun.kind, ended.kind} == {event_pb2.EVENT_KIND_ADMIN}
    assert (begun.subject, begun.action) == (ALICE, "policies.shadow")
    assert begun.resource == f"policySets/{made.digest.hex()}"
    assert json.loads(begun.detail_json) == {
        "digest": made.digest.hex(),
        "lifetime_s": 604_800,
        "message": "mail shall rest",
    }
    assert (ended.subject, ended.action) == (ALICE, "policies.stop_shadow")


async def test_only_admins_of_the_org_that_operates_the_mesh_try_policies(admin: World) -> None:
    request = policy_set_service_pb2.GetPolicyShadowRequest()
    for who in ({"roles": ("member",)}, {"user": "orgs/other/users/eve"}):
        for method, asked in (
            ("StartPolicyShadow", start()),
            ("StopPolicyShadow", stop()),
            ("GetPolicyShadow", request),
        ):
            error = await refused(ask(admin, method, asked, **who))
            assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


@pytest.mark.parametrize(("text", "where", "says"), BAD)
async def test_what_does_not_pass_is_refused(
    admin: World, text: str, where: str, says: str
) -> None:
    error = await refused(ask(admin, "StartPolicyShadow", start(files=files(mine=text))))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_INVALID
    assert error.violations[0].field == where
    assert says in error.violations[0].description
    assert await admin.database.fetchval("SELECT count(*) FROM policy_shadows") == 0


@pytest.mark.parametrize("texts", LOCKOUTS)
async def test_what_could_not_be_pushed_is_not_tried(
    admin: World, texts: Mapping[str, str]
) -> None:
    candidate = [policy_set_pb2.PolicyFile(name=name, text=text) for name, text in texts.items()]
    error = await refused(ask(admin, "StartPolicyShadow", start(files=candidate)))
    assert error.reason == error_reason_pb2.ERROR_REASON_POLICY_LOCKOUT


@pytest.mark.parametrize("lifetime", [{"seconds": 59}, {"seconds": 2_592_001}, {"seconds": -1}])
async def test_every_violation_is_named(admin: World, lifetime: Mapping[str, int]) -> None:
    request = start(
        lifetime=duration_pb2.Duration(**lifetime), message="a\nb", request_id="", files=[]
    )
    error = await refused(ask(admin, "StartPolicyShadow", request))
    names = {violation.field for violation in error.violations}
    assert names == {"files", "lifetime", "message", "request_id"}
    error = await refused(ask(admin, "StopPolicyShadow", stop("")))
    assert [violation.field for violation in error.violations] == ["request_id"]


async def test_too_many_at_once_are_counted_and_delay_nobody(admin: World) -> None:
    await started(admin)
    for _ in range(MOST_WAITING + 3):
        await decide(admin)
    found = await shown(admin)
    assert (found.newly_denied, found.dropped) == (MOST_WAITING, 3)


async def test_without_a_candidate_nothing_waits(admin: World) -> None:
    await decide(admin)
    await started(admin)
    found = await shown(admin)
    assert (found.newly_denied, found.agreed, found.dropped) == (0, 0, 0)


async def test_what_cannot_be_listed_is_counted_all_the_same(admin: World) -> None:
    """A name that the database does not take ends neither policy nor the count."""
    await started(admin)
    who = Principal(BOB, "orgs/acme", "", ("member",))
    question = Question(who, "tools.call", "tools/\0", 2, call())
    admin.shadow.note(
        "decisions/odd", question, Decision(allow=True, policy_ids=("a",), reason="", epoch=1)
    )
    await decide(admin)
    with capture_logs() as logs:
        await admin.shadow.look()
    assert [each["event"] for each in logs] == ["policy_shadow_not_storable"]
    found = await shown(admin)
    seen = found.agreed + found.newly_denied + found.failed
    assert (seen, found.unlisted, list(found.changes)) == (2, found.newly_denied, [])


class Kept:
    """Keeps what is counted, as the database does; may be told to be away."""

    def __init__(self, running: Running | None) -> None:
        self.current = running
        self.total = Tally()
        self.away = False
        self.meanwhile: Callable[[], None] = lambda: None

    async def running(self) -> Running | None:
        return self.current

    async def end(self, shadow: UUID, why: object) -> bool:
        raise AssertionError

    async def add(self, shadow: UUID, tally: Tally) -> None:
        if self.away:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        self.total.take(tally)
        self.meanwhile()


class HurriedClock(MovedClock):
    """Each look at it takes a second."""

    def monotonic(self) -> float:
        self.move(1)
        return super().monotonic()


def shadow_of(
    world: World, kept: Kept, clock: MovedClock, every_s: float = 60, max_queue: int = 1_000
) -> Shadow:
    store: Any = kept
    return Shadow(store, world.policies, clock, max_queue=max_queue, every_s=every_s)


def running(text: str, number: int = 1) -> Running:
    return Running(UUID(int=number), {**SHIPPED.files, "mine.cedar": text})


def mail(world: World, user: str = BOB) -> tuple[Question, Decision]:
    who = Principal(user, "orgs/acme", "", ("member",))
    question = Question(who, "tools.call", "tools/mail", 2, call())
    decision = world.policies.book.decide(question)
    assert decision.allow
    return question, decision


def two_meanwhile(world: World, kept: Kept, shadow: Shadow) -> None:
    """While counts are stored next, two decisions are made, one more than there is room for."""

    def note() -> None:
        kept.meanwhile = lambda: None
        for number in range(2):
            shadow.note(f"decisions/{number}", *mail(world))

    kept.meanwhile = note


async def test_counts_survive_a_database_that_is_away(world: World, clock: MovedClock) -> None:
    kept = Kept(running(FORBID))
    shadow = shadow_of(world, kept, clock)
    await shadow.look()
    kept.away = True
    for round_of in range(3):
        shadow.note(f"decisions/{round_of}", *mail(world))
        with pytest.raises(RemitError):
            await shadow.look()
    kept.away = False
    await shadow.look()
    await shadow.look()
    assert kept.total.outcomes == {Outcome.NEWLY_DENIED: 3}


async def test_what_is_counted_while_counts_are_stored_is_stored_with_the_next(
    world: World, clock: MovedClock
) -> None:
    kept = Kept(running(FORBID))
    shadow = shadow_of(world, kept, clock, max_queue=1)

    await shadow.look()
    shadow.note("decisions/first", *mail(world))
    two_meanwhile(world, kept, shadow)
    await shadow.look()
    await shadow.look()
    assert kept.total.outcomes == {Outcome.NEWLY_DENIED: 2, Outcome.DROPPED: 1}


async def test_nothing_that_one_candidate_saw_is_counted_for_the_next(
    world: World, clock: MovedClock
) -> None:
    kept = Kept(running(FORBID))
    shadow = shadow_of(world, kept, clock, max_queue=1)

    await shadow.look()
    shadow.note("decisions/first", *mail(world))
    two_meanwhile(world, kept, shadow)
    await shadow.look()
    kept.current, kept.total = running(MAY, 2), Tally()
    await shadow.look()
    assert kept.total.outcomes == {Outcome.DROPPED: 1}, "of the first, at its end"
    kept.total = Tally()
    await shadow.look()
    assert kept.total.outcomes == {}


async def test_a_candidate_takes_its_share_and_the_others_wait_for_the_next_look(
    world: World,
) -> None:
    kept = Kept(running(FORBID))
    shadow = shadow_of(world, kept, HurriedClock(), every_s=8)
    await shadow.look()
    for number in range(7):
        shadow.note(f"decisions/{number}", *mail(world))
    await shadow.look()
    assert kept.total.outcomes == {Outcome.NEWLY_DENIED: 3}
    await shadow.look()
    await shadow.look()
    assert kept.total.outcomes == {Outcome.NEWLY_DENIED: 7}


ALLOW = Decision(allow=True, policy_ids=("a",), reason="permitted: x", epoch=1)
DENY = replace(ALLOW, allow=False)
ASKED = replace(DENY, approval=parsed_terms("role:admin"))
FAILED = replace(DENY, policy_ids=(), errors=("e",), failed_policies=("f",))
DECISIONS = [ALLOW, DENY, ASKED, FAILED]


@given(st.lists(st.tuples(st.sampled_from(DECISIONS), st.sampled_from(DECISIONS)), max_size=60))
def test_every_decision_is_counted_once_and_every_change_is_listed_or_counted(
    pairs: list[tuple[Decision, Decision]],
) -> None:
    world_time = MovedClock().now()
    tally = Tally()
    for number, (before, after) in enumerate(pairs):
        tally.count(compared(before, after))
        if kind_of(before) is not kind_of(after):
            key = ChangeKey(f"a{number % 7}", "p", kind_of(before), kind_of(after))
            tally.differs(key, example_of("decisions/d", world_time, "r", before, after))
    assert sum(tally.outcomes.values()) == len(pairs)
    differing = [pair for pair in pairs if kind_of(pair[0]) is not kind_of(pair[1])]
    assert sum(count for count, _ in tally.changes.values()) == len(differing)
    failed = sum(1 for _, after in pairs if after.errors)
    assert tally.outcomes.get(Outcome.FAILED, 0) == failed
    newly = Counter(kind_of(after) for before, after in differing if not after.errors)
    for kind, outcome in (
        (Kind.ALLOW, Outcome.NEWLY_ALLOWED),
        (Kind.DENY, Outcome.NEWLY_DENIED),
        (Kind.APPROVAL_REQUIRED, Outcome.NEWLY_ASKED),
    ):
        assert tally.outcomes.get(outcome, 0) == newly[kind]


def test_no_more_kinds_are_listed_than_there_is_room_for() -> None:
    tally = Tally()
    example = example_of("decisions/d", MovedClock().now(), "r", ALLOW, DENY)
    for number in range(MOST_CHANGES + 5):
        for _ in range(2):
            tally.differs(ChangeKey(f"a{number}", "p", Kind.ALLOW, Kind.DENY), example)
    assert (len(tally.changes), tally.unlisted) == (MOST_CHANGES, 10)
    tally.unlist()
    assert (len(tally.changes), tally.unlisted) == (0, 2 * MOST_CHANGES + 10)


async def test_replicas_list_no_more_kinds_than_there_is_room_for(admin: World) -> None:
    await started(admin)
    row = await admin.shadows.running()
    assert row is not None
    example = example_of("decisions/d", admin.clock.now(), "r", ALLOW, DENY)

    async def replica(first: int) -> None:
        tally = Tally()
        for number in range(first, first + 80):
            tally.count(Outcome.NEWLY_DENIED)
            tally.differs(ChangeKey(f"a{number}", "p", Kind.ALLOW, Kind.DENY), example)
        await admin.shadows.add(row.shadow, tally)

    await asyncio.gather(*(replica(first) for first in (0, 40, 80)))
    found = await told(admin)
    assert (len(found.changes), found.newly_denied) == (MOST_CHANGES, 240)
    assert sum(change.count for change in found.changes) + found.unlisted == 240


def test_what_an_example_tells_is_bounded() -> None:
    ids = tuple(f"p{number}" for number in range(900))
    many = Decision(allow=True, policy_ids=ids, reason="x" * 9_000, epoch=1)
    example = example_of("decisions/d", MovedClock().now(), "r", many, many)
    assert (len(example.policy_ids_before), len(example.policy_ids_after)) == (4, 4)
    assert len(example.reason) == 400


async def test_a_candidate_decides_as_it_would_in_force(world: World, clock: MovedClock) -> None:
    """The comparison is with the very decision that a push would make."""
    for text in (FORBID, ASK, FAILS, MAY):
        kept = Kept(running(text))
        shadow = shadow_of(world, kept, clock)
        await shadow.look()
        question, before = mail(world)
        shadow.note("decisions/d", question, before)
        await shadow.look()
        source = replace(SHIPPED, files={**SHIPPED.files, "mine.cedar": text})
        after = rule_book(source, 2).decide(question)
        assert kept.total.outcomes == {compared(before, after): 1}
