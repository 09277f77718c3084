"""The join loses nothing, and the sums add up, whatever the parts say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.effect_records import EffectRecords
from remit.agent.story import UNTOLD, Known, Story, story_of, told
from remit.api.agent.v1 import explanation_pb2, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.histories import RUN, accepted, histories

Attempt = attempt_pb2.Attempt
Entry = explanation_pb2.ExplainedEntry
LoggedEvent = audit_query_service_pb2.LoggedEvent
Record = cost_report_service_pb2.ReservationRecord
Reservation = reservation_pb2.Reservation
INTENT, OUTCOME = event_pb2.EVENT_KIND_INTENT, event_pb2.EVENT_KIND_OUTCOME
SUCCEEDED = event_pb2.OUTCOME_SUCCEEDED
ACCESS = event_pb2.EVENT_KIND_ACCESS
CLAIMS = tuple(f"claims/01980000-0000-7000-8000-00000000000{n}" for n in range(3))


def logged(index: int, **event: Any) -> LoggedEvent:
    made = LoggedEvent(leaf_index=index, event=event_pb2.Event(**event))
    made.event.event_time.seconds = made.event.event_time.seconds or 1_800_000_000 + index
    return made


def record(claim: str, attempt: int = 1, **reservation: Any) -> Record:
    return Record(
        key=attempt_pb2.AttemptKey(claim=claim, attempt=attempt),
        service="tools",
        reservation=Reservation(**reservation),
    )


def posted(claim: str, nanos: int, attempt: int = 1) -> Record:
    state = Reservation.STATE_SETTLED
    return record(claim, attempt, state=state, hold_nanos=nanos, posted_nanos=nanos)


def run_of(journal: Sequence[run_pb2.RunEvent]) -> run_pb2.Run:
    run = run_pb2.Run(name=RUN, state=run_pb2.RUN_STATE_RUNNING)
    for event in journal:
        for ended in (event.model_call_ended, event.tool_call_ended):
            run.cost_nanos += ended.cost_nanos
    return run


def a_story(*journal: run_pb2.RunEvent, **records: Any) -> Story:
    return story_of(Known(run_of(journal), journal, EffectRecords(**records)))


def event(sequence: int, **what: Any) -> run_pb2.RunEvent:
    made = run_pb2.RunEvent(run=RUN, sequence=sequence, **what)
    made.event_time.seconds = 1_800_000_000 + 10 * sequence
    return made


def called(sequence: int, tool: str = "tools/t") -> run_pb2.RunEvent:
    started = run_pb2.ToolCallStarted(step=1, call_id="c0", tool=tool)
    return event(sequence, tool_call_started=started)


def answered(sequence: int, claim: str = "claims/x", nanos: int = 7, **more: Any) -> Any:
    facts: dict[str, Any] = {"step": 1, "call_id": "c0", "tool": "tools/t"} | more
    ended = run_pb2.ToolCallEnded(claim=claim, cost_nanos=nanos, **facts)
    return event(sequence, tool_call_ended=ended)


places = st.tuples(st.sampled_from(CLAIMS), st.integers(min_value=1, max_value=3))
money = st.integers(min_value=0, max_value=1000)


@st.composite
def logs(draw: st.DrawFn) -> list[LoggedEvent]:
    kinds = st.sampled_from([INTENT, OUTCOME, ACCESS, event_pb2.EVENT_KIND_READ])
    found = []
    for index in range(draw(st.integers(min_value=0, max_value=12))):
        kind, (claim, attempt) = draw(kinds), draw(places)
        detail = draw(st.sampled_from(["", "[]", "{", '{"reason":"PERMISSION_DENIED"}']))
        of: dict[str, Any] = {}
        if kind in {INTENT, OUTCOME}:
            of = {"claim": claim, "attempt": attempt}
        elif kind == ACCESS:
            decided = draw(st.lists(places, max_size=3))
            detail = json.dumps({"effects": [f"{c}-{a}" for c, a in decided]})
        outcome = draw(st.sampled_from(event_pb2.Outcome.values())) if kind == OUTCOME else 0
        found.append(logged(index, kind=kind, outcome=outcome, detail_json=detail, **of))
    return found


@st.composite
def ledgers(draw: st.DrawFn) -> list[Record]:
    keys = draw(st.lists(places, unique=True, max_size=6))
    states = st.sampled_from(Reservation.State.values())
    return [
        record(*key, state=draw(states), hold_nanos=draw(money), posted_nanos=draw(money))
        for key in sorted(keys)
    ]


@st.composite
def known_attempts(draw: st.DrawFn) -> dict[str, list[Attempt]]:
    keys = draw(st.lists(places, unique=True, max_size=6))
    states = st.sampled_from(Attempt.State.values())
    made = [
        Attempt(key=attempt_pb2.AttemptKey(claim=c, attempt=a), state=draw(states)) for c, a in keys
    ]
    return {"tools": made[:3], "inference": made[3:]}


def decided_places(each: LoggedEvent) -> list[tuple[str, int]]:
    """The attempts that an entry of policy decides about."""
    if each.event.kind != ACCESS:
        return []
    named = [name.rpartition("-") for name in json.loads(each.event.detail_json)["effects"]]
    return [(claim, int(attempt)) for claim, _, attempt in named]


@given(histories(), logs(), ledgers(), known_attempts(), st.integers(min_value=0, max_value=50))
def test_nothing_is_lost_or_doubled_and_every_nano_is_named(
    events: list[run_pb2.RunEvent],
    log: list[LoggedEvent],
    ledger: list[Record],
    claims: dict[str, list[Attempt]],
    said_nanos: int,
) -> None:
    journal = [slim for each in events if (slim := told(each)) is not None]
    run = run_of(journal)
    run.cost_nanos += said_nanos
    story = story_of(Known(run, journal, EffectRecords(log, ledger, claims)))
    entries = story.entries
    assert [entry.number for entry in entries] == [*range(1, len(entries) + 1)]

    in_journal = Counter(each.sequence for each in journal if not each.HasField("sub_run_started"))
    sequences = [entry.sequence for entry in entries if entry.sequence]
    ends = [entry.end_sequence for entry in entries if entry.end_sequence]
    alone = [s for s in ends if s not in sequences]
    assert in_journal <= Counter([*sequences, *alone])
    assert sequences == sorted(sequences)

    attempts = [attempt for entry in entries for attempt in entry.attempts]
    found = Counter((each.key.claim, each.key.attempt) for each in attempts)
    known = {(each.event.claim, each.event.attempt) for each in log if each.event.claim}
    known |= {place for each in log for place in decided_places(each)}
    known |= {(each.key.claim, each.key.attempt) for each in ledger}
    known |= {
        (each.key.claim, each.key.attempt)
        for service in claims.values()
        for each in service
        if each.state != Attempt.STATE_UNKNOWN
    }
    assert found == Counter(known)
    decisions = {index for each in attempts for index in each.decision.leaf_indices}
    assert decisions == {each.leaf_index for each in log if decided_places(each)}
    leaves = Counter(each.intent.leaf_index for each in attempts if each.HasField("intent"))
    leaves.update(leaf.leaf_index for each in attempts for leaf in each.outcomes)
    leaves.update(
        int(entry.text.split("leaf ")[1].split(",")[0])
        for entry in entries
        if entry.kind == Entry.KIND_RECORD
    )
    assert leaves == Counter(each.leaf_index for each in log if not decided_places(each))

    bill = story.bill
    assert bill.posted_nanos == sum(each.reservation.posted_nanos for each in ledger)
    differences = sum(each.nanos for each in bill.differences)
    assert bill.run_nanos + differences == bill.posted_nanos + bill.sub_runs_nanos
    assert all(each.nanos and each.text for each in bill.differences)


def test_every_kind_of_event_is_told_or_said_to_be_untold() -> None:
    kinds = run_pb2.RunEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    assert {"text_delta", "stage_started"} == UNTOLD
    for field in kinds:
        what = run_pb2.RunEvent(run=RUN, sequence=1)
        getattr(what, field.name).SetInParent()
        slim = told(what)
        if field.name in UNTOLD:
            assert slim is None
            continue
        assert slim is not None
        (entry,) = a_story(slim).entries
        assert entry.kind != Entry.KIND_RECORD, field.name
        assert "nothing that is known" not in entry.text


def test_what_is_large_is_left_out() -> None:
    given_run = accepted(3)
    created = told(event(1, created=run_pb2.RunCreated(run=given_run)))
    assert created is not None
    assert (created.created.run.task, dict(created.created.run.context)) == ("", {})
    assert created.created.run.agent == given_run.agent


def test_a_call_stands_with_all_that_is_known_of_its_attempts() -> None:
    key: dict[str, Any] = {"claim": "claims/x", "attempt": 2}
    known = Attempt(
        key=attempt_pb2.AttemptKey(**key),
        state=Attempt.STATE_CLOSED,
        outcome=SUCCEEDED,
        decision="decisions/x-2",
    )
    story = a_story(
        called(1),
        answered(2),
        logged=[
            logged(4, kind=INTENT, claim="claims/x", attempt=1, trace_id="ab" * 16),
            logged(
                5, kind=OUTCOME, claim="claims/x", attempt=1, outcome=event_pb2.OUTCOME_IN_DOUBT
            ),
            logged(6, kind=INTENT, **key, trace_id="cd" * 16),
            logged(7, kind=OUTCOME, **key, outcome=SUCCEEDED, trace_id="ab" * 16),
        ],
        ledger=[posted("claims/x", 20, 1), posted("claims/x", 7, 2)],
        claims={"tools": [known]},
    )
    (entry,) = story.entries
    assert (entry.kind, entry.sequence, entry.end_sequence) == (Entry.KIND_TOOL_CALL, 1, 2)
    first, second = entry.attempts
    assert "in doubt" in first.text
    assert [leaf.leaf_index for leaf in first.outcomes] == [5]
    assert (second.service, second.intent.leaf_index) == ("tools", 6)
    assert second.decision.name == "decisions/x-2"
    assert second.decision.allowed
    assert "was allowed by decisions/x-2; took place; its bill is posted" in second.text
    assert story.trace_ids == ["ab" * 16, "cd" * 16]
    (difference,) = story.bill.differences
    assert (difference.nanos, difference.claim) == (20, "claims/x")
    assert "in doubt" in difference.text


def test_a_refusal_says_why_and_stands_with_its_call() -> None:
    error = RemitError(
        reasons.ERROR_REASON_PERMISSION_DENIED, "no policy permits", metadata={"claim": "claims/y"}
    )
    detail = '{"reason":"PERMISSION_DENIED","message":"no policy permits"}'
    refused = event_pb2.OUTCOME_REFUSED
    story = a_story(
        called(1),
        answered(2, claim="", nanos=0, error=error.to_status()),
        logged=[
            logged(0, kind=INTENT, claim="claims/y", attempt=1),
            logged(
                1,
                kind=OUTCOME,
                claim="claims/y",
                attempt=1,
                outcome=refused,
                detail_json=detail,
            ),
        ],
        ledger=[record("claims/y", state=Reservation.STATE_RELEASED, hold_nanos=9)],
    )
    (entry,) = story.entries
    assert entry.reason == "PERMISSION_DENIED"
    assert "which failed: PERMISSION_DENIED: no policy permits" in entry.text
    (attempt,) = entry.attempts
    assert not attempt.decision.allowed
    assert attempt.decision.reason == "PERMISSION_DENIED: no policy permits"
    assert "was refused" in attempt.text
    assert "its hold was released" in attempt.text
    assert not story.bill.differences


def test_an_effect_that_the_journal_does_not_name_stands_in_its_place_in_time() -> None:
    story = a_story(
        called(1),
        answered(3),
        logged=[
            logged(15, kind=INTENT, claim="claims/z", attempt=1, resource="tools/u"),
            logged(900, kind=event_pb2.EVENT_KIND_ALERT, action="budgets.alert"),
        ],
        ledger=[posted("claims/x", 7), posted("claims/z", 3)],
    )
    kinds = [entry.kind for entry in story.entries]
    assert kinds == [Entry.KIND_TOOL_CALL, Entry.KIND_EFFECT, Entry.KIND_RECORD]
    assert story.entries[1].resource == "tools/u"
    assert "leaf 900, of kind alert: budgets.alert" in story.entries[2].text
    (difference,) = story.bill.differences
    assert (difference.nanos, difference.claim) == (3, "claims/z")


def test_a_call_that_is_asked_again_keeps_both_askings() -> None:
    asked = run_pb2.ModelCallStarted(step=1, model="models/m")
    ended = run_pb2.ModelCallEnded(step=1, model="models/m", claim="claims/x")
    story = a_story(
        event(1, model_call_started=asked),
        event(2, started=run_pb2.RunStarted(fencing_token=2, replica="b")),
        event(3, model_call_started=asked),
        event(4, model_call_ended=ended),
    )
    assert [(e.sequence, e.end_sequence) for e in story.entries] == [(1, 0), (2, 0), (3, 4)]
    assert "the journal has no end of it" in story.entries[0].text
    assert "gave an answer" in story.entries[2].text


def test_a_repeated_call_stands_after_the_one_that_is_in_doubt() -> None:
    again = called(2)
    again.tool_call_started.repeats_claim = CLAIMS[0]
    story = a_story(
        called(1),
        again,
        answered(3, CLAIMS[1]),
        logged=[
            logged(n, kind=INTENT, claim=claim, attempt=1, action="tools.call")
            for n, claim in enumerate(CLAIMS[:2])
        ],
    )
    first, second = story.entries
    assert first.text == "called tools/t, and whether it took effect is unknown"
    assert first.reason == "EFFECT_IN_DOUBT"
    assert [each.key.claim for each in first.attempts] == [CLAIMS[0]]
    assert [each.key.claim for each in second.attempts] == [CLAIMS[1]]


def test_a_sub_run_is_named_with_its_bill() -> None:
    ended = {"tool": "agents/b", "run": "runs/below"}
    story = a_story(
        called(1, "agents/b"),
        event(2, sub_run_started=run_pb2.SubRunStarted(step=1, call_id="c0", run="runs/below")),
        answered(3, claim="", nanos=40, **ended),
    )
    (entry,) = story.entries
    assert (entry.kind, entry.run, entry.cost_nanos) == (Entry.KIND_SUB_RUN, "runs/below", 40)
    assert (story.bill.run_nanos, story.bill.sub_runs_nanos) == (40, 40)
    assert not story.bill.differences


@pytest.mark.parametrize(
    ("ledger", "nanos", "text"),
    [
        ([], -7, "neither ledger nor log"),
        ([record("claims/x", state=Reservation.STATE_HELD, hold_nanos=9)], -7, "not settled yet"),
        ([posted("claims/x", 8)], 1, "is not what the journal counts"),
        ([posted("claims/x", 7)], 0, ""),
    ],
)
def test_each_difference_of_the_bill_has_its_reason(
    ledger: list[Record], nanos: int, text: str
) -> None:
    bill = a_story(called(1), answered(2), ledger=ledger).bill
    assert sum(each.nanos for each in bill.differences) == nanos
    assert all(text in each.text for each in bill.differences)


def test_without_the_ledger_nothing_is_said_to_differ() -> None:
    bill = a_story(called(1), answered(2), ledger=None).bill
    assert (bill.run_nanos, bill.posted_nanos) == (7, 0)
    assert not bill.differences


def test_a_decision_names_its_policies_and_their_epoch() -> None:
    claim = CLAIMS[0]
    decided = {"effects": [f"{claim}-1"], "policy_ids": ["members-call-tools"], "policy_epoch": 3}
    log = [
        logged(4, kind=INTENT, claim=claim, attempt=1),
        logged(5, kind=ACCESS, claim=claim, attempt=1, detail_json=json.dumps(decided)),
        logged(6, kind=OUTCOME, claim=claim, attempt=1, outcome=SUCCEEDED),
    ]
    (attempt,) = a_story(called(1), answered(2, claim), logged=log).entries[0].attempts
    assert attempt.decision.policy_ids == ["members-call-tools"]
    assert (attempt.decision.policy_epoch, [*attempt.decision.leaf_indices]) == (3, [5])
    assert "was allowed (members-call-tools; policies of epoch 3)" in attempt.text
